"""HTTP client of one vLLM server."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from lit_rlvr.errors import UserError, first_line

if TYPE_CHECKING:
    import httpx


_T = TypeVar("_T")
START_HINT = "start it with `lit-rlvr serve --model ...`"
HEALTH_SECONDS = 5.0
"""Seconds between two health checks of a server that has not answered a request yet."""
_log = logging.getLogger("lit_rlvr")


class ServerError(Exception):
    """Error of a server that cannot be reached or reports a failure."""


class VLLMServer:
    """The requests that a trainer makes to a server.

    The API key goes only into the requests' headers; it is neither stored in a config nor logged.

    Args:
        url: http://host:port
        api_key_env: NAME of the environment variable that holds the server's `--api-key`, if it has one.
        timeout: seconds to wait for the server to start, for a weight update, and for a completion.
    """

    def __init__(self, url: str, api_key_env: str | None, timeout: float) -> None:
        self.url, self.timeout = url.rstrip("/"), timeout
        self.headers = {}
        if api_key_env is not None:
            if not os.environ.get(api_key_env):
                raise UserError(f"VLLMServerEngine.api_key_env: the environment variable {api_key_env} is not set")
            self.headers["Authorization"] = f"Bearer {os.environ[api_key_env]}"

    def wait(self) -> None:
        """Wait until the server is healthy.

        Raises:
            UserError: it is not within `timeout`.
        """
        import httpx

        deadline, said = time.monotonic() + self.timeout, False
        while True:
            try:
                if httpx.get(f"{self.url}/health", headers=self.headers, timeout=5).is_success:
                    return
                reason = "it is not healthy"
            except httpx.HTTPError as error:
                reason = first_line(error)
            if time.monotonic() > deadline:
                raise UserError(f"{self.url} does not answer within {self.timeout:g} s ({reason}); {START_HINT}")
            if not said:
                _log.info("waiting for the vLLM server %s", self.url)
                said = True
            time.sleep(0.5)

    def settings(self) -> dict[str, Any]:
        """Return vLLM's model settings: `dtype`, `max_model_len`, `logprobs_mode`, ..., and whether it is
        `batch_invariant`.

        Raises:
            UserError: the server does not allow changing its weights.
        """
        answer = self._ask("GET", "/server_info?config_format=json")
        if answer.status_code == HTTPStatus.NOT_FOUND:
            raise UserError(f"{self.url} does not accept weights: it runs without VLLM_SERVER_DEV_MODE=1; {START_HINT}")
        found = self._checked(answer)
        invariant = bool(found["vllm_env"].get("VLLM_BATCH_INVARIANT"))
        return {**found["vllm_config"]["model_config"], "batch_invariant": invariant}

    def workers(self) -> int:
        """Return how many GPUs hold its weights, or shards of them."""
        return int(self.get("/get_world_size")["world_size"])

    def version(self) -> str:
        """Return the label of its current weights."""
        return str(self.get("/weight_info")["weight_version"])

    def forget_weights(self) -> None:
        """Overwrite the weights with zeros, so that a weight that is not updated cannot go unnoticed."""
        self.take(lambda: self.post("/weight_checker", {"action": "reset"}), "zeros")

    def load(self, folder: Path, version: str) -> None:
        """Load the weights from a folder that the server can read."""
        path = {"weights_path": str(folder)}
        self.take(lambda: self.post("/collective_rpc", {"method": "reload_weights", "kwargs": path}), version)

    def take(self, update: Callable[[], object], version: str) -> None:
        """Call `update`, which changes the weights, while generation is paused; then empty every cache."""
        self.pause()
        update()
        self.resume(version)

    def pause(self) -> None:
        """Abort running requests and stop generating until `resume`."""
        self.post("/pause?mode=abort")

    def resume(self, version: str) -> None:
        """Empty every cache, label the weights and generate again.

        Raises:
            ServerError: a cache could not be emptied.
        """
        for cache in ("prefix", "mm", "encoder"):
            answer = self.post(f"/reset_{cache}_cache")
            if answer.get("success") is False:
                raise ServerError(f"{self.url}: its {cache} cache could not be emptied")
        self.post("/update_weight_version", {"new_version": version})
        self.post("/resume")

    def get(self, path: str) -> dict[str, Any]:
        return self._checked(self._ask("GET", path))

    def post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._checked(self._ask("POST", path, body))

    async def complete(self, client: httpx.AsyncClient, request: dict[str, Any]) -> dict[str, Any]:
        """Return one completion from `/inference/v1/generate`: tokens in, tokens out.

        Raises:
            UserError: the server does not accept tokens.
            ServerError: it cannot be reached, or reports a failure.
        """
        import httpx

        try:
            answer = await client.post(f"{self.url}/inference/v1/generate", json=request)
        except httpx.HTTPError as error:
            raise ServerError(f"{self.url}: {first_line(error)}") from error
        if answer.status_code == HTTPStatus.NOT_FOUND:
            raise UserError(f"{self.url} does not accept tokens: it runs without --enable-scale-out; {START_HINT}")
        return dict(self._checked(answer)["choices"][0])

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        import httpx

        try:
            return run_coroutine(self._answer(method, path, body))
        except httpx.HTTPError as error:
            raise ServerError(f"{self.url}{path}: {first_line(error)}") from error

    async def _answer(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        """Return the answer to a request, unless the server's engine dies.

        vLLM does not answer then, and its server does not end before the request does.
        """
        import httpx

        async with httpx.AsyncClient(headers=self.headers, timeout=self.timeout) as client:
            request = asyncio.create_task(client.request(method, self.url + path, json=body))
            try:
                while not (await asyncio.wait([request], timeout=HEALTH_SECONDS))[0]:
                    await self._check_health(client, path)
            finally:
                request.cancel()
            return await request

    async def _check_health(self, client: httpx.AsyncClient, path: str) -> None:
        """Check that the server's engine lives; one that is too busy to answer counts as alive.

        Raises:
            ServerError: it does not.
        """
        import httpx

        try:
            health = await client.get(f"{self.url}/health", timeout=HEALTH_SECONDS)
        except httpx.TimeoutException:
            return
        if health.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
            raise ServerError(f"{self.url}{path}: its engine has died")

    def _checked(self, answer: httpx.Response) -> dict[str, Any]:
        path = answer.request.url.path
        if answer.status_code == HTTPStatus.UNAUTHORIZED:
            raise UserError(f"{self.url} requires an API key; name its environment variable in api_key_env")
        if not answer.is_success:
            said = " ".join(answer.text.split())[:300]
            raise ServerError(f"{self.url}{path}: status {answer.status_code}: {said}")
        return dict(answer.json()) if answer.content else {}


def run_coroutine(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Return what a coroutine returns; it runs in another thread if this one has an event loop, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


def dtype_of(settings: dict[str, Any]) -> torch.dtype:
    """Return a server's compute type, from its `settings`."""
    return getattr(torch, str(settings["dtype"]).removeprefix("torch."))
