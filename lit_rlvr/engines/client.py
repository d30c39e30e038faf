"""HTTP client of one vLLM server."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from lit_rlvr.common.files import write_atomically
from lit_rlvr.common.log import log
from lit_rlvr.errors import UserError, first_line
from lit_rlvr.policy.sources import ADAPTER_CONFIG

if TYPE_CHECKING:
    import aiohttp


_T = TypeVar("_T")
START_HINT = "start it with `lit-rlvr serve --model ...`"
HEALTH_SECONDS = 5.0
"""Seconds between two health checks of a server, and that one may take."""
WAIT_POLL = 0.5
"""Seconds between two looks at a server that something is waited for."""


@dataclass(frozen=True)
class AdapterLimits:
    """Which adapters a server takes: up to a rank (0 = none), in layers of these names (None = in all)."""

    rank: int
    layers: tuple[str, ...] | None

    def include(self, adapter: dict[str, Any]) -> bool:
        """Return whether it takes adapters of these settings, which are peft's."""
        named = self.layers is None or {*adapter["target_modules"]} <= {*self.layers}
        return adapter["r"] <= self.rank and named


class ServerError(Exception):
    """Error of a server that cannot be reached or reports a failure.

    Attributes:
        transient: whether the same request may succeed: the connection was closed without an answer, as a busy server
            may do with one that was idle, or vLLM reports an internal error, as it does when its process for requests
            believes that the other one has an image.
    """

    transient = False


class VLLMServer:
    """The requests that a trainer makes to a server. They ignore proxies.

    The API key goes only into the requests' headers; it is neither stored in a config nor logged.

    Args:
        url: http://host:port
        api_key_env: NAME of the environment variable that holds the server's `--api-key`, if it has one.
        timeout: seconds to wait for the server to start, for a weight update, and for a sign of life.
        recompute_cache: empty its cache of keys and values at each weight update.
    """

    def __init__(self, url: str, api_key_env: str | None, timeout: float, recompute_cache: bool = True) -> None:
        self.url = url.rstrip("/")
        self.timeout = timeout
        self.recompute_cache = recompute_cache
        self.headers = {}
        if api_key_env is not None:
            if not os.environ.get(api_key_env):
                raise UserError(f"VLLMServerEngine.api_key_env: the environment variable {api_key_env} is not set")
            self.headers["Authorization"] = f"Bearer {os.environ[api_key_env]}"

    def settings(self) -> dict[str, Any]:
        """Return vLLM's model settings, such as `dtype`, `max_model_len` and `logprobs_mode`.

        Among them are whether it is `batch_invariant`, how many sequences it generates at once (`max_num_seqs`, over
        all its `replicas`), which adapters it takes (`adapters`), and whether it returns experts (`returns_routes`).

        Raises:
            UserError: the server does not allow changing its weights, or has a cache that outlives them.
        """
        refusal = f"{self.url} does not accept weights: it runs without VLLM_SERVER_DEV_MODE=1; {START_HINT}"
        answer = self.get("/server_info?config_format=json", refusal)
        config = answer["vllm_config"]
        if (config.get("kv_transfer_config") or {}).get("kv_connector"):
            raise UserError(
                f"{self.url}: it keeps keys and values of older weights in a KV connector; start it without "
                "--kv-transfer-config"
            )
        sequences = config["scheduler_config"]["max_num_seqs"] * config["parallel_config"]["data_parallel_size"]
        invariant = bool(answer["vllm_env"].get("VLLM_BATCH_INVARIANT"))
        # An adapter that one of several processes for requests loads is unknown to the others.
        alone = config["parallel_config"].get("_api_process_count", 1) == 1
        loads = alone and answer["vllm_env"].get("VLLM_ALLOW_RUNTIME_LORA_UPDATING")
        lora = (config.get("lora_config") if loads else None) or {"max_lora_rank": 0}
        layers = lora.get("target_modules")
        limits = AdapterLimits(lora["max_lora_rank"], None if layers is None else tuple(layers))
        return {
            **config["model_config"],
            "batch_invariant": invariant,
            "max_num_seqs": sequences,
            "adapters": limits,
            "replicas": config["parallel_config"]["data_parallel_size"],
            "returns_routes": (config.get("aux_output_config") or {}).get("enable_return_routed_experts", False),
        }

    def workers(self) -> int:
        """Return how many GPUs hold its weights, or shards of them."""
        return int(self.get("/get_world_size")["world_size"])

    def version(self) -> str:
        """Return the label of its current weights."""
        return str(self.get("/weight_info")["weight_version"])

    def is_paused(self) -> bool:
        """Return True while its weights are being changed."""
        return bool(self.get("/is_paused")["is_paused"])

    def digests(self) -> dict[str, set[str]]:
        """Return the SHA-256 of each weight that vLLM holds, by its name and its part of a split model.

        Replicas in one server give several if they differ.
        """
        digests: dict[str, set[str]] = {}
        for name, digest in self.post("/weight_checker", {"action": "checksum"})["checksums"].items():
            digests.setdefault(name.partition(":")[2], set()).add(digest)  # without the number of the replica
        return digests

    def forget_weights(self) -> None:
        """Overwrite the weights with zeros, so that a weight that is not updated cannot go unnoticed."""
        self.take(lambda: self.post("/weight_checker", {"action": "reset"}), "zeros")

    def load(self, folder: Path, version: str) -> None:
        """Load the weights or the adapters from a folder that the server can read."""
        path = {"weights_path": str(folder)}
        if (folder / ADAPTER_CONFIG).exists():
            self.take(lambda: self._load_adapter(folder, version), version)
        else:
            self.take(lambda: self.post("/collective_rpc", {"method": "reload_weights", "kwargs": path}), version)

    def _load_adapter(self, folder: Path, name: str) -> None:
        """Load an adapter and unload all others. Its name must be new: vLLM keeps what it has loaded by name."""
        for model in self.get("/v1/models")["data"]:
            if model.get("parent"):
                self.post("/v1/unload_lora_adapter", {"lora_name": model["id"]})
        self.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})

    def take(self, update: Callable[[], object], version: str) -> None:
        """Call `update`, which changes the weights, while generation is paused."""
        self.pause()
        update()
        self.resume(version)

    def pause(self) -> None:
        """Stop generating until `resume`; what runs is kept."""
        self.post("/pause?mode=keep&clear_cache=false")

    def resume(self, version: str) -> None:
        """Empty the caches that older weights have made, label the weights and generate again.

        vLLM's cache of processed images stays: it holds pixels. With `recompute_cache`, vLLM computes the keys and
        values of what runs anew, so that later tokens are those of the new weights. Without, they stay, and so do the
        blocks of the prefix cache, which vLLM cannot empty while requests hold some.

        Raises:
            ServerError: the prefix cache could not be emptied.
        """
        if self.recompute_cache:
            answer = self.post("/reset_prefix_cache?reset_running_requests=true")
            if answer.get("success") is False:
                raise ServerError(f"{self.url}: its prefix cache could not be emptied")
        self.post("/reset_encoder_cache")
        self.post("/update_weight_version", {"new_version": version})
        self.post("/resume")

    def get(self, path: str, refusal: str = "") -> dict[str, Any]:
        return run_coroutine(self._control("GET", path, refusal=refusal))

    def post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return run_coroutine(self._control("POST", path, body))

    async def _control(
        self, method: str, path: str, body: dict[str, Any] | None = None, refusal: str = ""
    ) -> dict[str, Any]:
        """Return the answer to a request that may take `timeout` seconds, unless the server's engine dies.

        vLLM does not answer then, and its server does not end before the request does.

        Args:
            method: of HTTP.
            path: of the URL.
            body: sent as JSON; None = nothing.
            refusal: the error if the server does not know the path.
        """
        import aiohttp

        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(self.timeout)) as session:
            request = asyncio.create_task(self._ask(session, method, path, body, refusal))
            try:
                while not (await asyncio.wait([request], timeout=HEALTH_SECONDS))[0]:
                    await self.is_healthy(session)
            finally:
                request.cancel()
            return await request

    async def complete(self, session: aiohttp.ClientSession, request: dict[str, Any]) -> dict[str, Any]:
        """Return one completion from `/inference/v1/generate`: tokens in, tokens out.

        Raises:
            UserError: the server does not accept tokens.
            ServerError: it cannot be reached, reports a failure, or aborted the completion.
        """
        refusal = f"{self.url} does not accept tokens: it runs without --enable-scale-out; {START_HINT}"
        answer = await self._ask(session, "POST", "/inference/v1/generate", request, refusal)
        choice = dict(answer["choices"][0])
        if choice["finish_reason"] not in ("stop", "length"):
            raise ServerError(f"{self.url} aborted a completion: {choice['finish_reason']}")
        return choice

    async def score(self, sequences: Sequence[list[int]], at_once: int) -> list[list[float]]:
        """Return for each sequence the log-probabilities of its tokens at temperature 1; 0 for the first token.

        Args:
            sequences: token ids.
            at_once: most sequences that are scored at the same time.
        """
        import aiohttp

        allowed = asyncio.Semaphore(at_once)

        async def score(token_ids: list[int]) -> list[float]:
            request = {"prompt": token_ids, "max_tokens": 1, "prompt_logprobs": 0}
            async with allowed:
                answer = await self._ask(session, "POST", "/v1/completions", request, "")
            tokens = zip(answer["choices"][0]["prompt_logprobs"][1:], token_ids[1:], strict=True)
            return [0.0, *(logprobs[str(token)]["logprob"] for logprobs, token in tokens)]

        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(self.timeout)) as session:
            return await all_or_none(map(score, sequences))

    async def is_healthy(self, session: aiohttp.ClientSession) -> bool:
        """Return True if the server's engine lives, False if it is too busy to say so.

        Raises:
            ServerError: it has died, or cannot be reached.
        """
        import aiohttp

        try:
            limit = aiohttp.ClientTimeout(HEALTH_SECONDS)
            async with session.get(f"{self.url}/health", headers=self.headers, timeout=limit) as answer:
                status = answer.status
        except TimeoutError:
            return False
        except aiohttp.ClientError as error:
            raise ServerError(f"{self.url}: {_reason(error)}") from error
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            raise ServerError(f"{self.url}: its engine has died")
        return status == HTTPStatus.OK

    async def _ask(
        self, session: aiohttp.ClientSession, method: str, path: str, body: dict[str, Any] | None, refusal: str
    ) -> dict[str, Any]:
        """Return the answer to a request.

        Args:
            session: that the request is made in.
            method: of HTTP.
            path: of the URL.
            body: sent as JSON; None = nothing.
            refusal: the error if the server does not know the path.
        """
        import aiohttp

        where = f"{self.url}{path.partition('?')[0]}"
        try:
            async with session.request(method, self.url + path, json=body, headers=self.headers) as answer:
                content = await answer.read()
                if answer.status == HTTPStatus.OK:
                    if answer.content_type == "application/json":
                        return dict(json.loads(content))
                    return {}
        except TimeoutError as error:
            raise ServerError(f"{where}: no answer within {self.timeout:g} s") from error
        except aiohttp.ClientError as error:
            failure = ServerError(f"{where}: {_reason(error)}")
            failure.transient = isinstance(error, aiohttp.ServerDisconnectedError | ConnectionResetError)
            raise failure from error
        if answer.status == HTTPStatus.UNAUTHORIZED:
            raise UserError(f"{self.url} requires an API key; name its environment variable in api_key_env")
        if answer.status == HTTPStatus.NOT_FOUND and refusal and b"does not exist" not in content:  # an adapter
            raise UserError(refusal)
        message = " ".join(content.decode(errors="replace").split())[:300]
        failure = ServerError(f"{where}: status {answer.status}: {message}")
        failure.transient = answer.status == HTTPStatus.INTERNAL_SERVER_ERROR
        raise failure


def _reason(error: Exception) -> str:
    """Return why a request failed; the texts of aiohttp and asyncio repeat the address."""
    cause = getattr(error, "os_error", None)
    if isinstance(cause, socket.gaierror):
        return str(cause.strerror)
    if isinstance(cause, OSError) and cause.errno:
        return os.strerror(cause.errno)
    return first_line(error)


ENDED_VARIABLE = "LIT_RLVR_ENDED_SERVERS"
"""Environment variable with the folder in which `fit --servers` notes for all processes which servers have ended."""


def note_end(url: str, reason: str) -> None:
    """Note for all processes of this run why the server at a URL will never answer."""
    write_atomically(Path(os.environ[ENDED_VARIABLE]) / quote(url, safe=""), reason)


def why_ended(url: str) -> str | None:
    """Return why the server at a URL will never answer; None = it may."""
    folder = os.environ.get(ENDED_VARIABLE)
    if folder is None:
        return None
    note = Path(folder) / quote(url, safe="")
    if note.exists():
        return note.read_text()
    return None


def wait_for(servers: Sequence[VLLMServer], least: int) -> list[VLLMServer]:
    """Wait until at least `least` servers are healthy, and return those that are; with 0, do not wait.

    Raises:
        UserError: they are not within their `timeout`, or too many have ended for good.
    """
    deadline = time.monotonic() + max(server.timeout for server in servers)
    waiting = False
    while True:
        reasons = run_coroutine(_reasons(servers))
        if len(servers) - len(reasons) >= least:
            return [server for server in servers if server not in reasons]
        ended = []
        for server in servers:
            why = why_ended(server.url)
            if why is not None:
                ended.append((server.url, why))
        if len(servers) - len(ended) < least:
            raise UserError(": ".join(ended[0]))
        silent, reason = next(iter(reasons.items()))
        if time.monotonic() > deadline:
            raise UserError(
                f"{silent.url} does not answer within {silent.timeout:g} s ({reason.removeprefix(f'{silent.url}: ')}); "
                f"{START_HINT}"
            )
        if not waiting:
            log.info("waiting for the vLLM server %s", silent.url)
            waiting = True
        time.sleep(WAIT_POLL)


async def _reasons(servers: Sequence[VLLMServer]) -> dict[VLLMServer, str]:
    """Return why servers are not healthy; all are asked at once."""
    import aiohttp

    async def reason(server: VLLMServer) -> str:
        try:
            if await server.is_healthy(session):
                return ""
            return "it is not healthy"
        except ServerError as error:
            return str(error)

    async with aiohttp.ClientSession() as session:
        texts = await asyncio.gather(*map(reason, servers))
    return {server: text for server, text in zip(servers, texts, strict=True) if text}


async def all_or_none(coroutines: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Return what coroutines return that run together; if one fails, cancel the others and raise its error."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


class RequestLoop:
    """An event loop in a thread of its own, for the requests of several threads."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="lit-rlvr-requests", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Return what a coroutine returns; it is cancelled if the thread that waits is interrupted."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Cancel what runs, and end the thread."""
        self.run(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def run_coroutine(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Return what a coroutine returns; it runs in another thread if this one has an event loop, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


def on_each(servers: Sequence[VLLMServer], action: Callable[[VLLMServer], _T]) -> list[_T]:
    """Return what `action` returns for each server; it is called for all at once."""
    with ThreadPoolExecutor(max(1, len(servers))) as threads:
        return list(threads.map(action, servers))
