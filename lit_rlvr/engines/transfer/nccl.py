"""The transfer of weights from GPU to GPU over NCCL."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from ipaddress import ip_address
from itertools import accumulate
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from lit_rlvr.common.resuming import how_to_resume
from lit_rlvr.distributed.collectives import gather_objects, raise_on_all_ranks, rank, world_size
from lit_rlvr.distributed.sharding import shapes_alone
from lit_rlvr.engines.client import ServerError, VLLMServer, on_each
from lit_rlvr.engines.transfer.base import Settings, Weights, WeightTransfer
from lit_rlvr.engines.transfer.network import free_port, own_address
from lit_rlvr.errors import UserError

POLL = 0.1
"""Seconds between two looks at a transfer."""
ABORT_SECONDS = 20.0
"""Seconds that a transfer has to end once the server failed, and once it is aborted."""


class NCCLTransfer(WeightTransfer):
    """Transfer of all weights from GPU to GPU over NCCL, with vLLM's own weight transfer.

    Servers need `--weight-transfer-config '{"backend": "nccl"}'` (`lit-rlvr serve --nccl`). One broadcast reaches all
    servers, which form one group with the first rank; it is formed again when a server goes, comes or is restarted.

    Args:
        address: address of the first rank's machine, reachable from the servers; by default the one from which it
            reaches them.
    """

    restores_current = True

    @property
    def restores_alone(self) -> bool:  # type: ignore[override]
        return world_size() == 1

    def __init__(self, address: str | None = None) -> None:
        self.address = address
        self._device: int | None = None  # this rank's GPU, from the first `send` on
        self._source = RepeatedWeights()
        self._sender: Any = None
        self._holders: list[VLLMServer] = []  # the sender's group, if all of it took the last version
        self._version = ""

    def send(
        self,
        servers: Sequence[VLLMServer],
        weights: Weights,
        dtype: torch.dtype,
        version: str,
        frozen: bool = False,
        adapter: Settings | None = None,
    ) -> None:
        self._device = current_gpu()
        self._source.set(weights, dtype)
        self._source.metadata()  # here, because it takes part in the iteration of all ranks on the first call
        if not gather_objects(rank() == 0 and self._is_connected(servers))[0]:
            self.close()
            self._connect(servers)
        self._holders = []
        on_first(servers, VLLMServer.pause)  # before the first collective
        raise_on_all_ranks(self._send, ServerError)
        on_first(servers, partial(VLLMServer.resume, version=version))
        self._holders = [*servers]
        self._version = version

    def _is_connected(self, servers: Sequence[VLLMServer]) -> bool:
        """Return whether the group consists of these servers, and none was restarted since it took the last version."""
        try:
            return self._holders == [*servers] and all(server.version() == self._version for server in servers)
        except ServerError:
            return False

    def restore(self, server: VLLMServer, version: str) -> None:
        if world_size() > 1:
            raise UserError(
                f"{server.url} was restarted and lost its weights, which no process can send over NCCL alone: it gets "
                f"them with the next update; if no other server is left, {how_to_resume()}"
            )
        with on_gpu(self._device):  # the thread that restores a server begins on the first one
            self.close()
            self._connect([server])
            server.pause()
            self._send()
            server.resume(version)
            self.close()  # the next version goes to all servers again

    def close(self) -> None:
        if self._sender is not None:
            self._sender.shutdown()
        self._sender = None
        self._holders = []

    def _connect(self, servers: Sequence[VLLMServer]) -> None:
        """Connect the first rank to all servers, or no rank to any.

        Collective: call it on every rank.
        """
        self._sender = raise_on_all_ranks(lambda: self._make_sender(servers), ServerError)

    def _make_sender(self, servers: Sequence[VLLMServer]) -> Any:
        """Return the first rank's connection to all servers; on the others, a part in gathering."""
        if not torch.cuda.is_available():  # not earlier: `plan` has no GPU on a login node
            raise UserError("NCCLTransfer: there is no GPU here; use FileTransfer")
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine

        targets = servers if rank() == 0 else ()
        addresses = []
        for server in targets:
            addresses.append(own_address(server.url, self.address))
        # A server on this machine reaches an address that another machine can reach, too.
        address = self.address or min(addresses, key=lambda a: ip_address(a).is_loopback, default="")
        workers = [server.workers() for server in targets]
        info = NCCLTrainerInitInfo(address, free_port(), 1 + sum(workers), rank=rank())
        source: Any = self._source  # it has the methods of a WeightSource that are used here
        client: Any = UpdateClient(servers, workers)  # and this one those of a client
        connect = partial(NCCLTrainerWeightTransferEngine.trainer_init, info, client=client, source=source)
        if rank() == 0:
            return call_within(client, connect)
        return connect()

    def _send(self) -> None:
        """Send the weights to the servers. If that fails, the first rank still gathers all weights with the others.

        Raises:
            ServerError: a server failed, or did not take the weights within its timeout.
            UserError: the transfer could not be aborted.
        """
        self._source.begin()
        if rank() > 0:
            self._sender.send_weights()
            return
        try:
            call_within(self._sender.client, self._sender.send_weights, self._sender.shutdown)
        except Exception:
            self._source.finish()
            raise


class RepeatedWeights:
    """The weights in the form that vLLM's transfer takes: metadata in advance, and any number of passes."""

    def __init__(self) -> None:
        self._weights: Weights = lambda everything: ()
        self._dtype = torch.float32
        self._metadata: list[Any] | None = None
        self._pass: Iterator[tuple[str, Tensor]] | None = None  # the last one; None = none since `begin`

    def begin(self) -> None:
        """Mark the start of a transfer: no pass over the weights has begun."""
        self._pass = None

    def finish(self) -> None:
        """Finish the pass over the weights, or make one if none has begun: the other ranks gather every weight."""
        for _ in iter(self) if self._pass is None else self._pass:
            pass

    def set(self, weights: Weights, dtype: torch.dtype) -> None:
        """Set the weights of the next passes; names and shapes must stay the same."""
        self._weights = weights
        self._dtype = dtype

    def metadata(self) -> list[Any]:
        from vllm.distributed.weight_transfer.base import ParamMeta

        if self._metadata is None:
            with shapes_alone():
                self._metadata = [ParamMeta(name, weight.dtype, tuple(weight.shape)) for name, weight in self]
        return self._metadata

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self._pass = ((name, weight.detach().to(self._dtype)) for name, weight in self._weights(True))
        return self._pass


class UpdateClient:
    """The requests of vLLM's weight transfer to all servers at once, which form one group with the first rank.

    Args:
        servers: all servers.
        workers: of each server; they follow the first rank in the group, in this order.

    Attributes:
        failure: why a server did not connect or take the weights; None = all have, or are doing so.
    """

    def __init__(self, servers: Sequence[VLLMServer], workers: Sequence[int]) -> None:
        self.servers = servers
        self.failure: Exception | None = None
        self._offsets = dict(zip(servers, accumulate([1, *workers]), strict=False))

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        def connect(server: VLLMServer) -> None:
            _leave_group(server)
            info = init_info | {"rank_offset": self._offsets[server]}
            server.post("/init_weight_transfer_engine", {"init_info": info})

        self._on_each(connect)

    def start_weight_update(self) -> None:
        """Start an update, after ending one that a trainer left unfinished."""
        self.failure = None
        self._on_each(_start_update)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._on_each(lambda server: server.post("/update_weights", {"update_info": update_info}))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._on_each(_finish_update)

    def _on_each(self, request: Callable[[VLLMServer], object]) -> None:
        """Make a request to all servers at once.

        If one fails, keep its error as `failure`, and do not wait for the others: they may wait for it.
        """
        answers: SimpleQueue[Exception | None] = SimpleQueue()

        def ask(server: VLLMServer) -> None:
            try:
                request(server)
            except Exception as error:
                answers.put(error)
            else:
                answers.put(None)

        for server in self.servers:
            threading.Thread(target=ask, args=[server], name="lit-rlvr-update", daemon=True).start()
        for _ in self.servers:
            error = answers.get()
            if error is not None:
                self.failure = error
                raise error


def _start_update(server: VLLMServer) -> None:
    try:
        server.post("/start_weight_update")
    except ServerError:
        with suppress(ServerError):
            _finish_update(server)
        server.post("/start_weight_update")


def _leave_group(server: VLLMServer) -> None:
    """End the connection that a server still has with this trainer or an earlier one, and the update in it.

    Else every new connection would leave another NCCL communicator, with its memory, on the server's GPUs.
    """
    try:
        server.post("/shutdown_weight_transfer_engine")
    except ServerError:
        with suppress(ServerError):
            _finish_update(server)
        with suppress(ServerError):  # it does not know the request
            server.post("/shutdown_weight_transfer_engine")


def _finish_update(server: VLLMServer) -> None:
    server.post("/finish_weight_update")


def call_within(client: UpdateClient, action: Callable[[], Any], abort: Callable[[], object] | None = None) -> Any:
    """Return what an action with the servers returns, or end it when a server fails or its timeout is over.

    It runs in a thread, because NCCL waits without end for a server that has died.

    Args:
        client: of the update.
        action: waits for the servers.
        abort: ends the action; None = nothing can.

    Raises:
        ServerError: a server failed, or did not take part in time.
        UserError: the action did not end, even when it was aborted.
    """
    result: Future[Any] = Future()
    device = current_gpu()

    def work() -> None:
        try:
            with torch.no_grad(), on_gpu(device):
                result.set_result(action())
        except Exception as error:
            result.set_exception(error)

    thread = threading.Thread(target=work, name="lit-rlvr-weights", daemon=True)
    thread.start()
    seconds = min(server.timeout for server in client.servers)
    deadline = time.monotonic() + seconds
    while thread.is_alive() and client.failure is None and time.monotonic() < deadline:
        thread.join(POLL)
    thread.join(0 if client.failure is None else ABORT_SECONDS)  # it may end by itself
    urls = ", ".join(server.url for server in client.servers)
    late = thread.is_alive()
    if late:
        if abort is not None:
            abort()
            thread.join(ABORT_SECONDS)
        if thread.is_alive():
            if client.failure is None:
                why = f"{urls}: a weight transfer hangs"
            else:
                why = str(client.failure)
            if abort is None:
                end = "a connection that begins cannot be aborted"
            else:
                end = "it was aborted and has not ended"
            raise UserError(f"{why}; {end}, so the run ends: {how_to_resume()}") from client.failure
    if client.failure is not None:
        raise client.failure
    if late:
        raise ServerError(f"{urls} did not take the weights within {seconds:g} s")
    return result.result(0)


def on_first(servers: Sequence[VLLMServer], action: Callable[[VLLMServer], None]) -> None:
    """Let the first rank call `action` on all servers at once, as `raise_on_all_ranks` does."""

    raise_on_all_ranks(lambda: on_each(servers, action) if rank() == 0 else None, ServerError)


def current_gpu() -> int | None:
    """Return the GPU of this thread: each thread has its own, and begins with the first; None = CUDA is not used."""
    if torch.cuda.is_initialized():
        return torch.cuda.current_device()
    return None


def on_gpu(device: int | None) -> AbstractContextManager[Any]:
    """Return a context in which a thread uses a GPU; None = none."""
    if device is None:
        return nullcontext()
    return torch.cuda.device(device)
