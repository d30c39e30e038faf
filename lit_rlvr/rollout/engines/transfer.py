"""Transfers weights to vLLM servers: through files that both sides can access, or over NCCL."""

from __future__ import annotations

import os
import shutil
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lit_rlvr.distributed.collectives import gather_objects, rank, world_size
from lit_rlvr.errors import UserError, first_line
from lit_rlvr.rollout.engines.client import ServerError, VLLMServer

Weights = Callable[[bool], Iterable[tuple[str, Tensor]]]
"""Starts a new pass over the (name, tensor) pairs: of all weights, or of those that training changes (False).
Collective if the weights are sharded."""

FILE_BYTES = 4 << 30


class WeightTransfer(ABC):
    """Sends weights to servers. Each version has a label, which a server can be asked for."""

    @abstractmethod
    def send(
        self, servers: Sequence[VLLMServer], weights: Weights, dtype: torch.dtype, version: str, frozen: bool = False
    ) -> None:  # fmt: skip
        """Send weights, cast to `dtype`, to all servers from the first rank. Collective: called on every rank.

        Args:
            frozen: some of the weights never change, so that later versions can leave them out.
        """

    @abstractmethod
    def restore(self, server: VLLMServer, version: str) -> None:
        """Send the last weights again, to a restarted server; called on one rank alone."""

    @abstractmethod
    def close(self) -> None:
        """Remove files and end connections."""


class FileTransfer(WeightTransfer):
    """The first rank writes safetensors files, which the servers read. Works anywhere, at the speed of the disk.

    The first version holds all weights. If training leaves some unchanged, as with adapters, later versions hold only
    the others, and the first is kept for servers that are restarted.

    Args:
        folder: a folder that the trainer and all servers can access under this path; it holds the last version of the
            weights in the servers' compute type, the first one too if later ones are not complete, and one more while
            it is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._written: list[Path] = []  # the first version, if later ones do not hold all weights, and the last

    def send(
        self, servers: Sequence[VLLMServer], weights: Weights, dtype: torch.dtype, version: str, frozen: bool = False
    ) -> None:  # fmt: skip
        target, old = self.folder / version, self._written
        complete = not (frozen and old)
        self._write(weights(complete), dtype, target)
        self._written = [target] if complete else [old[0], target]
        if rank() > 0:
            return
        for path in old:
            if path not in self._written:
                shutil.rmtree(path, ignore_errors=True)

        def bring(server: VLLMServer) -> None:
            if complete or server.version() == old[-1].name:
                server.load(target, version)
            else:  # it was restarted
                self.restore(server, version)

        with ThreadPoolExecutor(len(servers)) as pool:
            list(pool.map(bring, servers))

    def restore(self, server: VLLMServer, version: str) -> None:
        for path in self._written:
            server.load(path, path.name)

    def close(self) -> None:
        if rank() == 0:
            for path in self._written:
                shutil.rmtree(path, ignore_errors=True)
        self._written = []

    def _write(self, weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype, target: Path) -> None:
        """Write the files on the first rank; the others take part in gathering the weights."""
        if rank() > 0:
            for _ in weights:
                pass
            return
        try:
            target.mkdir(parents=True)
            _write(weights, dtype, target)
        except OSError as error:
            shutil.rmtree(target, ignore_errors=True)
            raise UserError(f"FileTransfer.folder: {target} cannot be written: {error.strerror or error}") from error


def _write(weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype, target: Path) -> None:
    """Write files of at most 4 GiB each, or a single larger tensor."""
    held: dict[str, Tensor] = {}
    size = count = 0

    def flush() -> None:
        nonlocal held, size, count
        path = target / f"model-{count:05}.safetensors"
        save_file(held, path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        held, size, count = {}, 0, count + 1

    for name, weight in weights:
        copy = weight.detach().to("cpu", dtype, copy=True).contiguous()
        if held and size + copy.nbytes > FILE_BYTES:
            flush()
        held[name] = copy
        size += copy.nbytes
    flush()


class NCCLTransfer(WeightTransfer):
    """Transfer of all weights from GPU to GPU over NCCL, with vLLM's own weight transfer; servers need
    `--weight-transfer-config '{"backend": "nccl"}'` (`lit-rlvr serve --nccl`).

    Args:
        address: address of the first rank's machine, reachable from the servers; by default its hostname.
    """

    def __init__(self, address: str | None = None) -> None:
        if not torch.cuda.is_available():
            raise UserError("NCCLTransfer: there is no GPU here; use FileTransfer")
        self.address = address or socket.gethostname()
        self._source = RepeatedWeights()
        self._senders: list[Any] = []

    def send(
        self, servers: Sequence[VLLMServer], weights: Weights, dtype: torch.dtype, version: str, frozen: bool = False
    ) -> None:  # fmt: skip
        self._source.set(weights, dtype)
        if not self._senders:
            self._connect(servers)
        agree(servers, VLLMServer.pause)  # before the first collective, where other ranks would hang
        for sender in self._senders:
            with _server_errors():
                sender.send_weights()
        agree(servers, partial(VLLMServer.resume, version=version))

    def restore(self, server: VLLMServer, version: str) -> None:
        if world_size() > 1:
            raise UserError(
                f"{server.url} was restarted and lost its weights, which no process can send over NCCL alone; "
                "resume with --ckpt_path last, or use FileTransfer"
            )
        self.close()
        self._connect([server])
        server.pause()
        with _server_errors():
            self._senders[0].send_weights()
        server.resume(version)

    def close(self) -> None:
        for sender in self._senders:
            sender.shutdown()
        self._senders = []

    def _connect(self, servers: Sequence[VLLMServer]) -> None:
        """Connect the first rank to all servers, or no rank to any. Collective."""
        made: list[Any] = []
        agree(servers, lambda server: made.append(self._sender(server, server.workers())))
        self._senders = made if rank() == 0 else [self._sender(server) for server in servers]

    def _sender(self, server: VLLMServer, workers: int = 0) -> Any:
        """Return the first rank's connection to a server with this many workers; on the others, a part in gathering."""
        from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine

        info = NCCLTrainerInitInfo(self.address, free_port(), 1 + workers, rank=rank())
        client = HTTPVLLMWeightSyncClient(server.url, server.timeout)
        source: Any = self._source  # it has the methods of a WeightSource that are used here
        with _server_errors():
            return NCCLTrainerWeightTransferEngine.trainer_init(info, client=client, source=source)


def agree(servers: Sequence[VLLMServer], action: Callable[[VLLMServer], None]) -> None:
    """Let the first rank call `action` on each server, and tell all ranks whether it worked. Collective.

    Raises:
        ServerError: it failed; raised on every rank, but on the first what it failed with.
    """
    failed: Exception | None = None
    if rank() == 0:
        try:
            for server in servers:
                action(server)
        except Exception as error:  # of any kind: the other ranks would wait for this one
            failed = error
    said = gather_objects(None if failed is None else str(failed))[0]
    if failed is not None:
        raise failed
    if said is not None:
        raise ServerError(said)


@contextmanager
def _server_errors() -> Iterator[None]:
    """Turn the request errors of vLLM's client into `ServerError`."""
    from requests import RequestException

    try:
        yield
    except RequestException as error:
        raise ServerError(first_line(error)) from error


class RepeatedWeights:
    """The weights in the form that vLLM's transfer takes: metadata in advance, and any number of passes."""

    def __init__(self) -> None:
        self._weights: Weights = lambda everything: ()
        self._dtype = torch.float32
        self._metadata: list[Any] | None = None

    def set(self, weights: Weights, dtype: torch.dtype) -> None:
        """Set the weights of the next passes; names and shapes must stay the same."""
        self._weights, self._dtype = weights, dtype

    def metadata(self) -> list[Any]:
        from vllm.distributed.weight_transfer.base import ParamMeta

        if self._metadata is None:
            self._metadata = [ParamMeta(name, weight.dtype, tuple(weight.shape)) for name, weight in self]
        return self._metadata

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, weight in self._weights(True):
            yield name, weight.detach().to(self._dtype)


def free_port() -> int:
    """Return a free TCP port on this machine."""
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])
