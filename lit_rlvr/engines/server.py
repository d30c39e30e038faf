"""vLLM as a server, on other machines or on other GPUs of this machine."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_rlvr.common.init_arguments import init_arguments
from lit_rlvr.common.log import log
from lit_rlvr.common.pictures import png_url
from lit_rlvr.distributed.collectives import gather_objects, raise_on_all_ranks, rank, world_size
from lit_rlvr.engines.base import EngineContext, OnGroupStarted, RolloutEngine
from lit_rlvr.engines.client import (
    START_HINT,
    WAIT_POLL,
    AdapterLimits,
    RequestLoop,
    ServerError,
    VLLMServer,
    all_or_none,
    on_each,
    wait_for,
)
from lit_rlvr.engines.dispatch import Dispatch, Placement, Replica, is_cancelled
from lit_rlvr.engines.synced import catch_crash
from lit_rlvr.engines.transfer import WeightTransfer
from lit_rlvr.engines.transfer.base import Settings, weights_or_exit
from lit_rlvr.engines.turns import Continuation, OnGroupDone, Row, Turns, read_completion, within_budget
from lit_rlvr.engines.vllm import (
    FP8,
    check_images,
    lora_rank,
    routes_of,
    sampling_parameters,
    with_single_placeholders,
    with_tied_head,
)
from lit_rlvr.errors import UserError
from lit_rlvr.plan import RunPlan
from lit_rlvr.policy.adapters import changing_weights
from lit_rlvr.policy.loading import load_model_config
from lit_rlvr.policy.policy import Policy
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Completion, Prompt

SIZE_ENDINGS = ("_size", "_layers", "_heads", "_dim", "experts")
"""Ends of the names under which configs have the sizes of a model's weights."""
NO_WEIGHTS = "its weights have not been restored"
"""Why a server that came back while the engine restarts takes no requests yet."""
ENVIRONMENT_POLL = 0.005
"""Seconds between two looks for the answers of environments."""
ROUTES_OPTION = "--enable-return-routed-experts"
"""Option with which a server returns the experts of each token."""
RANK_SECONDS = 1.0
"""Seconds that each rank waits longer than the one before it for somebody else to restore a server's weights."""


class VLLMServerEngine(RolloutEngine):
    """Generates on vLLM servers started by `lit-rlvr serve`. The groups of all ranks are spread over all servers.

    A server that dies is dropped, the others take over its completions, and it is used again once it is back.

    Every completion carries the labels of the weights that sampled its tokens. The weights are zeroed before the first
    sync, so that on a GPU a weight that the sync misses cannot go unnoticed; on a CPU, vLLM has packed copies, and
    later probes catch it.

    Args:
        urls: URLs of the servers, such as http://host:8000.
        transfer: how weights reach the servers: `FileTransfer` or `NCCLTransfer`.
        api_key_env: NAME of the environment variable that holds the servers' `--api-key`, if they have one.
        timeout: seconds to wait for a server to start, for a weight update, and for a sign of life.
        recompute_cache: with `rollout.staleness`, compute the keys and values of completions in flight anew at each
            weight update, so that each token is sampled as its version of the weights would from the start. False =
            keep them, which saves as long as reading all tokens in flight takes: a token after an update then depends
            on older weights, too, and its logged log-probability, with which it was sampled, is not that of fresh
            scoring. Such tokens are recorded (`stale_cache`) and counted (`train/staleness/stale_cache`). New requests
            never use older keys and values, so the probe is exact as before, and replays train on what was logged.
    """

    concurrent = True
    keeps_weights = True
    in_process = False
    takes_stop = False

    def __init__(
        self,
        urls: list[str],
        transfer: WeightTransfer,
        api_key_env: str | None = None,
        timeout: float = 1800.0,
        recompute_cache: bool = False,
    ) -> None:
        self.init_args = init_arguments()
        if not urls:
            raise UserError("VLLMServerEngine.urls: name at least one server, such as http://host:8000")
        for url in urls:
            if not url.startswith(("http://", "https://")):
                raise UserError(f"VLLMServerEngine.urls: {url!r} must begin with http:// or https://")
        transfer.check_urls(urls)
        self.recompute_cache = recompute_cache
        self.servers = [VLLMServer(url, api_key_env, timeout, recompute_cache) for url in urls]
        self.transfer = transfer
        self._context: EngineContext = None  # type: ignore[assignment]  # from `start` on
        self._policy: Policy = None  # type: ignore[assignment]  # whose weights the servers have, from `sync` on
        self._dtype = torch.float32
        self._changing: frozenset[str] | None = None  # names of the weights that later syncs send; None = all
        self._run = ""
        self._syncs = 0
        self._salt = ""  # the label of the weights that all servers have: those of the last sync that is over
        self._replicas = [Replica(server, 1) for server in self.servers]
        self._dispatch = Dispatch(self._replicas, self._take_back)
        self._loop: RequestLoop = None  # type: ignore[assignment]  # where the dispatch runs, from `start` to `close`
        self._weights_change = threading.Lock()  # held while a sync or a restore changes servers' weights
        self._takes: dict[VLLMServer, AdapterLimits] = {}  # which adapters each takes
        self._copies = dict.fromkeys(self.servers, 1)  # of the weights in each
        self._adapter: Settings | None = None  # of the adapters that are sent in place of merged weights
        self._names_adapter = False  # requests name the adapters of the last sync

    @property
    def compute_dtype(self) -> torch.dtype:
        return self._dtype

    def route_problems(self, plan: RunPlan) -> Iterator[str]:
        """Yield nothing: `start` asks the servers whether they return experts."""
        yield from ()

    @property
    def label(self) -> str:
        """The label of the last sync's weights."""
        return f"{self._run}-{self._syncs}"

    def start(self, context: EngineContext) -> None:
        """Check all servers; after a crash, those that answer."""
        check_images(context)
        if context.max_videos:
            raise UserError("rollout.engine: frames are not sent to vLLM servers; for videos, use vllm or hf")
        self._context = context
        self._changing = changing_weights(context.policy.model)
        answering = wait_for(self.servers, least=1 if self._syncs else len(self.servers))
        for replica in self._replicas:
            if replica.server not in answering:
                replica.failure = f"{replica.server.url} did not answer"
            elif replica.failure is not None:  # it takes no requests before it has the weights
                replica.failure = NO_WEIGHTS
        for server in answering:
            self._check(server, context)
        if self._loop is None:
            offset = rank() % len(self.servers)  # ranks begin with different servers
            self._dispatch = Dispatch([*self._replicas[offset:], *self._replicas[:offset]], self._take_back)
            self._loop = RequestLoop()
            self._loop.run(self._dispatch.open())
        if not self._syncs:
            self._adapter = self._resolve_adapters(context.policy.adapter_config, context.streams)
        if rank() == 0 and not self._syncs:
            for server in self.servers:
                server.forget_weights()

    def _resolve_adapters(self, adapter: Settings | None, streams: bool) -> Settings | None:
        """Return the adapters' settings if all servers take them, and log what the syncs send; None = merge them."""
        if adapter is None:
            return None
        urls = []
        for server in self.servers:
            if not self._takes[server].include(adapter):
                urls.append(server.url)
        if urls:
            reason = f"; start {urls[0]} with {lora_options(adapter)} to send them alone"
        else:
            reason = ""
        if streams:  # what runs keeps the adapters that it began with
            reason = ", because completions go on with new weights (rollout.staleness)"
        if urls or streams or not self.transfer.sends_adapters:
            log.info("engine vllmserver: each sync sends weights with the adapters merged in%s", reason)
            return None
        log.info("engine vllmserver: the first sync sends all weights, and later ones only the adapters")
        return adapter

    def _check(self, server: VLLMServer, context: EngineContext) -> None:
        """Refuse a server with another model, too short a context, or log-probabilities it does not sample from."""
        settings = server.settings()
        check_model(server.url, str(settings["model"]), context.policy.model.config)
        self._dtype = getattr(torch, str(settings["dtype"]).removeprefix("torch."))
        self._replica(server).capacity = ceil(settings["max_num_seqs"] / world_size())
        self._takes[server] = settings["adapters"]
        self._copies[server] = settings["replicas"]
        if self._adapter is not None and not self._takes[server].include(self._adapter):
            raise UserError(f"{server.url}: it takes no adapters any more; start it with {lora_options(self._adapter)}")
        self.quantized = settings.get("quantization") is not None
        if settings.get("quantization") not in (None, FP8):
            raise UserError(
                f"{server.url}: its weights are quantised by {settings['quantization']}, which is not supported; start "
                "it with `lit-rlvr serve --quantize fp8 ...`, or without --quantization"
            )
        if settings["max_model_len"] < context.max_tokens:
            raise UserError(
                f"{server.url}: prompts and completions have up to {context.max_tokens} tokens, but it takes "
                f"{settings['max_model_len']}; start it with --max-model-len {context.max_tokens}"
            )
        if settings["logprobs_mode"] != "processed_logprobs":
            raise UserError(
                f"{server.url}: its log-probabilities are not those it samples from; {START_HINT}, "
                "or with --logprobs-mode processed_logprobs"
            )
        if context.policy.replays_routes and not settings["returns_routes"]:
            raise UserError(
                f"{server.url}: rollout.replay_routes needs the experts of tokens, which it does not return; start it "
                f"with {ROUTES_OPTION} (on a GPU)"
            )
        if context.deterministic and torch.cuda.is_available() and not settings["batch_invariant"]:
            raise UserError(
                f"{server.url}: rollout.deterministic needs a server with batch-invariant kernels; start it with "
                "`lit-rlvr serve --deterministic ...`"
            )
        if self._dtype != context.dtype:
            log.warning(
                "%s computes in %s and the trainer in %s, so their log-probabilities differ by more than they need to: "
                "start it with --dtype %s",
                server.url,
                *(str(d).removeprefix("torch.") for d in (self._dtype, context.dtype, context.dtype)),
            )

    def _replica(self, server: VLLMServer) -> Replica:
        return next(replica for replica in self._replicas if replica.server is server)

    @property
    def _lost(self) -> list[VLLMServer]:
        """The servers without the weights of the last sync."""
        lost = []
        for replica in self._replicas:
            if replica.failure is not None:
                lost.append(replica.server)
        return lost

    def sync(self, policy: Policy) -> None:
        with self._weights_change:  # on all ranks, so that no server is taken back meanwhile
            self._sync(policy)

    def _sync(self, policy: Policy) -> None:
        self._policy = policy
        adapter = None
        if self._adapter:
            adapter = policy.adapter_config
        self._names_adapter = adapter is not None
        if self._adapter and adapter is None and self._syncs:
            return  # they have these weights, and requests name no adapters
        self._run = self._run or gather_objects(uuid.uuid4().hex[:12])[0]
        self._syncs += 1

        def weights(everything: bool) -> Iterable[tuple[str, Tensor]]:
            if self._adapter is None:
                named = with_tied_head(policy, None if everything else self._changing, self._dtype)
            elif everything:
                named = with_tied_head(policy.owner.without_adapters(), None, self._dtype)
            else:
                named = policy.adapter_weights(self._dtype)
            return weights_or_exit(named)

        frozen = self._changing is not None
        failures: list[str] = []
        for _ in range(1 if self.transfer.restores_alone else 1 + len(self.servers)):
            if failures:
                log.warning("a weight update failed: %s; trying again with the servers that answer", failures[0])
            servers = self._answering()
            failure = catch_crash(
                lambda: self.transfer.send(servers, weights, self._dtype, self.label, frozen, adapter)  # noqa: B023
            )
            failures = [text for text in gather_objects(failure) if text]
            if not failures:
                for replica in self._replicas:
                    if replica.server in servers:
                        replica.failure = None
                self._salt = self.label
                return
        raise ServerError(failures[0].removeprefix("ServerError: "))  # on all ranks, which then restart

    def check_copies(self) -> None:
        """Compare the weights that vLLM holds in all servers and their replicas, without adapters.

        Servers that split the model otherwise, or quantise it, are compared with those alone that do the same.
        """
        servers = []
        for server in self.servers:
            if server not in self._lost:
                servers.append(server)

        def compare() -> str:
            if rank() > 0 or (len(servers) == 1 and self._copies[servers[0]] == 1):
                return ""
            results = zip(servers, on_each(servers, VLLMServer.digests), strict=True)
            return differing_copies({server.url: digests for server, digests in results})

        problem = gather_objects(raise_on_all_ranks(compare, ServerError))[0]
        if problem:
            raise UserError(problem)

    def _answering(self) -> list[VLLMServer]:
        """Return the servers that answer the first rank; the others get no weights.

        Collective: call it on every rank.

        Raises:
            ServerError: none does.
        """
        answering = gather_objects([s.url for s in wait_for(self.servers, least=0)] if rank() == 0 else [])[0]
        if not answering:
            raise ServerError(f"{', '.join(server.url for server in self.servers)}: no server answers")
        for replica in self._replicas:
            if replica.server.url not in answering:
                self._loop.run(self._dispatch.drop(replica, f"{replica.server.url} does not answer"))
        alive = []
        for server in self.servers:
            if server.url in answering:
                alive.append(server)
        return alive

    def restore(self, policy: Policy) -> None:
        self._policy, self._names_adapter = policy, bool(self._adapter and policy.adapter_config)
        with self._weights_change:
            for replica in self._replicas:
                if replica.failure in (None, NO_WEIGHTS):
                    self._restore_server(replica.server)
                    replica.failure = None
            self._salt = self.label

    def _take_back(self, server: VLLMServer) -> None:
        """Check a server that came back, and give it the last sync's weights.

        Raises:
            UserError: it was started with other options than the run needs, or has to wait for the next sync.
        """
        with self._weights_change:
            self._check(server, self._context)
            if not self._syncs:
                return
            trains_meanwhile = self._context.streams and self.transfer.restores_current
            if trains_meanwhile and server.version() != self.label:
                raise UserError(
                    f"{server.url} was restarted and lost its weights, which training is changing: it gets them with "
                    "the next update"
                )
            self._restore_server(server)

    def _restore_server(self, server: VLLMServer) -> None:
        """Give a restarted server the last sync's weights, unless an earlier rank does."""
        began = time.monotonic()
        while server.version() != self.label:
            waited = time.monotonic() - began
            its_turn = waited >= rank() * RANK_SECONDS and not server.is_paused()
            if rank() == 0 or its_turn or waited > server.timeout:
                self.transfer.restore(server, self.label)
                return
            time.sleep(WAIT_POLL)

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        done: OnGroupDone | None = None,
        turns: Turns | None = None,
    ) -> list[list[Completion]]:
        return self._loop.run(self._generate(prompts, sampling, seeds, done, turns))

    def generate_stream(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        started: OnGroupStarted,
        done: OnGroupDone,
        turns: Turns | None = None,
    ) -> None:
        self._loop.run(self._generate(prompts, sampling, seeds, done, turns, started))

    async def _generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        done: OnGroupDone | None,
        turns: Turns | None,
        started: OnGroupStarted | None = None,
    ) -> list[list[Completion]]:
        if sampling.stop:
            raise UserError("rollout.sampling.stop: a vLLM server ends turns at EOS tokens only; leave it empty")
        turns = within_budget(sampling, self._context.tokenizer, self._context.limit, turns)
        turns.begin(prompts, sampling, seeds)
        pending = _PendingTurns(turns)
        return await all_or_none(  # a server aborts requests whose connection is closed
            self._group(p, prompt, sampling, seeds[p], done, pending, started) for p, prompt in enumerate(prompts)
        )

    async def _group(
        self,
        p: int,
        prompt: Prompt,
        sampling: Sampling,
        seeds: Sequence[int],
        done: OnGroupDone | None,
        pending: _PendingTurns,
        started: OnGroupStarted | None,
    ) -> list[Completion]:
        dispatch = self._dispatch
        limit = self._context.limit(sampling.max_tokens, len(prompt.token_ids))
        rows = [Row(p, g, prompt, seed, limit) for g, seed in enumerate(seeds)]
        place = await dispatch.place(len(rows), later=started is not None)
        pngs = _PNGs()
        episodes = asyncio.gather(*(self._episode(dispatch, place, row, sampling, pending, pngs) for row in rows))
        if started is not None:
            started(p, partial(asyncio.get_running_loop().call_soon_threadsafe, episodes.cancel))
        try:
            group = list(await episodes)
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            return []  # the group alone was dropped
        finally:
            dispatch.release(place, place.completions)
        if done is not None and group:
            done(p, group)
        return group

    async def _episode(
        self, dispatch: Dispatch, place: Placement, row: Row, sampling: Sampling, pending: _PendingTurns, pngs: _PNGs
    ) -> Completion:
        """Return one completion, turn after turn.

        Args:
            dispatch: sends the requests.
            place: where the group is generated.
            row: the completion.
            sampling: how its tokens are drawn.
            pending: the turns that wait for an answer.
            pngs: the group's images.
        """
        row.open(pending.turns)
        while True:
            parameters = sampling_parameters(self._policy, sampling, row.seed, row.limit)
            request = await self._input(row.start, pngs) | {"sampling_params": parameters} | self._weight_fields()
            turn = self._completion(await dispatch.complete(place, request), request.get("cache_salt"))
            row.tokens = list(turn.token_ids)
            answer = await pending.answer(row.p, row.g, turn)
            if isinstance(answer, Completion):
                dispatch.release(place)
                return answer
            row.next_turn(answer)

    def _weight_fields(self) -> dict[str, Any]:
        """Return the fields of a request that name weights.

        These are the adapters, unless they are merged, and the weights whose keys and values it may use, unless there
        are no others.
        """
        adapter = {"model": self.label} if self._names_adapter else {}
        if self.recompute_cache:
            return adapter
        return adapter | {"cache_salt": self._salt}

    async def _input(self, prompt: Prompt, pngs: _PNGs) -> dict[str, Any]:
        """Return a prompt, with each image as one placeholder and a PNG, which is lossless."""
        if prompt.pixels is None:
            return {"token_ids": list(prompt.token_ids)}
        parts = [{"type": "image_url", "url": await pngs.encode(image)} for image in prompt.pixels.images]
        return {"token_ids": with_single_placeholders(self._policy, prompt), "content_parts": parts}

    def _completion(self, choice: dict[str, Any], salt: str | None) -> Completion:
        logprobs = []
        for content in choice["logprobs"]["content"]:
            logprobs.append(float(content["logprob"]))
        stopped = choice["finish_reason"] == "stop"
        turn = read_completion(self._context.tokenizer, choice["token_ids"], logprobs, stopped)
        labels = ["none"] * len(turn.token_ids)
        for span in choice["weight_versions"] or []:
            labels[span["start"] : span["end"]] = [span["version"]] * (span["end"] - span["start"])
        stale = () if salt is None else tuple(label != salt for label in labels)  # other weights came meanwhile
        routes = None
        if self._context.policy.replays_routes and choice["routed_experts"] is not None:
            routes = routes_of(self._context.policy, read_array(choice["routed_experts"]))
        return replace(turn, labels=tuple(labels), stale_cache=stale, routes=routes)

    def close(self) -> None:
        if self._loop is not None:
            self._loop.run(self._dispatch.close())
            self._loop.close()
        self._loop = None  # type: ignore[assignment]
        self.transfer.close()


def read_array(text: str) -> np.ndarray:
    """Return the array that a server sends as an .npy file in base64."""
    return np.asarray(np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False))


def differing_copies(digests: dict[str, dict[str, set[str]]]) -> str:
    """Return which servers hold different weights, as an error; "" = none do.

    Args:
        digests: of each server, by its URL: the digests of each weight, one for each replica that differs.
    """
    for url, weights in digests.items():
        split = []
        for name, variants in weights.items():
            if len(variants) > 1:
                split.append(name)
        if split:
            return f"{url}: its replicas hold different weights after a sync ({split[0]}); start it again"
    for (url, a), (other, b) in combinations(digests.items(), 2):
        differing = []
        for name in a:
            if a.keys() == b.keys() and a[name] != b[name]:
                differing.append(name)
        if differing:
            return f"{url} and {other} hold different weights after a sync ({differing[0]}); start them again"
    return ""


def lora_options(adapter: Settings) -> str:
    """Return the options with which a server takes adapters of these settings."""
    return f"--enable-lora --max-lora-rank {lora_rank(adapter['r'])} --api-server-count 1"


def check_model(url: str, served: str, ours: Any) -> None:
    """Refuse a server whose model cannot hold the trainer's weights, where its config can be read from here.

    Args:
        url: the server's, for the error.
        served: the server's model: its folder, or its hub id.
        ours: the config of the trainer's model.

    Raises:
        UserError: the models differ in kind or in a size.
    """
    try:
        server_sizes = model_sizes(load_model_config(served))
    except UserError:
        if served != ours.name_or_path:
            log.warning("%s serves %s, which cannot be read here: it must be %s", url, served, ours.name_or_path)
        return
    trainer_sizes = model_sizes(ours)
    differing = [name for name, size in trainer_sizes.items() if server_sizes.get(name, size) != size][:3]
    if differing:
        server_text = ", ".join(f"{name} {server_sizes[name]}" for name in differing)
        trainer_text = ", ".join(f"{name} {trainer_sizes[name]}" for name in differing)
        raise UserError(
            f"{url}: it serves {served} ({server_text}), but the run trains {ours.name_or_path} ({trainer_text}); "
            f"start it with `lit-rlvr serve --model {ours.name_or_path} ...`, or train the model that it serves"
        )


def model_sizes(config: Any) -> dict[str, Any]:
    """Return the kind of a model and its parts, their sizes, and the rotary embedding, by the config's names."""
    parts = {"": config.get_text_config(), "vision_config.": getattr(config, "vision_config", None)}
    sizes: dict[str, Any] = {"model_type": config.model_type}
    for prefix, part in parts.items():
        values = {} if part is None else part.to_dict()
        for name, value in values.items():
            if name.endswith(SIZE_ENDINGS) and isinstance(value, int):
                sizes[prefix + name] = value
    return sizes | {"rope_parameters": getattr(config.get_text_config(), "rope_parameters", None)}


class _PendingTurns:
    """Waits for the answers to the turns of many completions at once."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self._awaited: dict[tuple[int, int], asyncio.Future[Continuation | Completion]] = {}
        self._poll: asyncio.Task[None] | None = None

    async def answer(self, p: int, g: int, turn: Completion) -> Continuation | Completion:
        """Return what follows a turn of completion g of prompt p."""
        self.turns.stopped(p, g, turn)
        self._awaited[p, g] = answer = asyncio.get_running_loop().create_future()
        self._hand_out()
        if not answer.done() and (self._poll is None or self._poll.done()):
            self._poll = asyncio.create_task(self._look())
        return await answer

    async def _look(self) -> None:
        """Hand out answers until nothing is awaited; one task does so for all completions."""
        try:
            while self._awaited:
                await asyncio.sleep(ENVIRONMENT_POLL)
                self._hand_out()
        except Exception as error:
            for future in self._awaited.values():
                future.set_exception(error)

    def _hand_out(self) -> None:
        for p, g, answer in self.turns.answers(0):
            future = self._awaited.pop((p, g))
            if not future.done():  # cancelled
                future.set_result(answer)


class _PNGs:
    """The images of a group as URLs; each is encoded once, in a thread, for all completions and turns that show it."""

    def __init__(self) -> None:
        self._encoded: dict[int, tuple[Any, asyncio.Task[str]]] = {}  # an id is the image's own while it lives

    async def encode(self, image: Any) -> str:
        """Return an image's URL, which holds it."""
        if id(image) not in self._encoded:
            self._encoded[id(image)] = image, asyncio.create_task(asyncio.to_thread(png_url, image))
        return await self._encoded[id(image)][1]
