"""How new weights reach vLLM servers: by files that both sides see, or by NCCL."""

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
from lit_rlvr.rollout.vllm_client import ServerError, VLLMServer

Weights = Callable[[], Iterable[tuple[str, Tensor]]]
"""Makes a fresh pass over the weights; with sharded ones, all ranks go through it together."""

FILE_BYTES = 4 << 30


class WeightTransfer(ABC):
    """Brings weights to servers; each version has a label, by which a server can be asked what it holds."""

    @abstractmethod
    def send(self, servers: Sequence[VLLMServer], weights: Weights, dtype: torch.dtype, version: str) -> None:
        """To all servers; all ranks call it, and the first of them sends."""

    @abstractmethod
    def restore(self, server: VLLMServer, version: str) -> None:
        """The last weights once more, to a server that was started anew; one rank calls it alone."""

    @abstractmethod
    def close(self) -> None:
        """Leave nothing behind."""


class FileTransfer(WeightTransfer):
    """The first rank writes safetensors, the servers read them: works anywhere, at the speed of the disk.

    Args:
        folder: which the trainer and all servers see under this path; it holds one version of the weights at a time,
            in the type that the servers compute in.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._written: list[Path] = []

    def send(self, servers: Sequence[VLLMServer], weights: Weights, dtype: torch.dtype, version: str) -> None:
        target = self.folder / version
        if rank() > 0:
            for _ in weights():
                pass
            self._written = [target]
            return
        old, self._written = self._written, [target]
        try:
            target.mkdir(parents=True)
            _write(weights(), dtype, target)
        except OSError as error:
            shutil.rmtree(target, ignore_errors=True)
            raise UserError(f"FileTransfer.folder: {target} cannot be written: {error.strerror or error}") from error
        for path in old:
            shutil.rmtree(path, ignore_errors=True)
        with ThreadPoolExecutor(len(servers)) as pool:
            list(pool.map(lambda server: server.load(target, version), servers))

    def restore(self, server: VLLMServer, version: str) -> None:
        server.load(self.folder / version, version)

    def close(self) -> None:
        if rank() == 0:
            for path in self._written:
                shutil.rmtree(path, ignore_errors=True)
        self._written = []


def _write(weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype, target: Path) -> None:
    """Files of at most 4 GiB (or one tensor)."""
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
    """From GPU to GPUs over NCCL, by vLLM's own weight transfer; servers need `--weight-transfer-config
    '{"backend": "nccl"}'` (`lit-rlvr serve --nccl`).

    Args:
        address: of the first rank's machine, as the servers see it; by default the name that it has for itself.
    """

    def __init__(self, address: str | None = None) -> None:
        if not torch.cuda.is_available():
            raise UserError("NCCLTransfer: there is no GPU here; use FileTransfer")
        self.address = address or socket.gethostname()
        self._source = RepeatedWeights()
        self._senders: list[Any] = []

    def send(self, servers: Sequence[VLLMServer], weights: Weights, dtype: torch.dtype, version: str) -> None:
        self._source.set(weights, dtype)
        if not self._senders:
            self._senders = [self._connect(server) for server in servers]
        agree(servers, VLLMServer.pause)  # before the first collective, in which others would wait
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
        self._senders = [self._connect(server)]
        server.pause()
        with _server_errors():
            self._senders[0].send_weights()
        server.resume(version)

    def close(self) -> None:
        for sender in self._senders:
            sender.shutdown()
        self._senders = []

    def _connect(self, server: VLLMServer) -> Any:
        from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine

        info = NCCLTrainerInitInfo(self.address, free_port(), 1 + server.workers(), rank=rank())
        client = HTTPVLLMWeightSyncClient(server.url, server.timeout)
        source: Any = self._source  # it has what is asked of a WeightSource here
        with _server_errors():
            return NCCLTrainerWeightTransferEngine.trainer_init(info, client=client, source=source)


def agree(servers: Sequence[VLLMServer], action: Callable[[VLLMServer], None]) -> None:
    """Let the first rank do something with the servers, and all of them know whether it worked; collective.

    Raises:
        ServerError: it did not; the same on every rank.
    """
    said = None
    if rank() == 0:
        try:
            for server in servers:
                action(server)
        except ServerError as error:
            said = str(error)
    if failed := gather_objects(said)[0]:
        raise ServerError(failed)


@contextmanager
def _server_errors() -> Iterator[None]:
    """What vLLM's own client raises of a request, as ours."""
    from requests import RequestException

    try:
        yield
    except RequestException as error:
        raise ServerError(first_line(error)) from error


class RepeatedWeights:
    """The weights as vLLM's transfer takes them: what there is, told beforehand, and as many passes as it likes."""

    def __init__(self) -> None:
        self._weights: Weights = tuple
        self._dtype = torch.float32
        self._metadata: list[Any] | None = None

    def set(self, weights: Weights, dtype: torch.dtype) -> None:
        """What the next passes give; names and shapes are the same every time."""
        self._weights, self._dtype = weights, dtype

    def metadata(self) -> list[Any]:
        from vllm.distributed.weight_transfer.base import ParamMeta

        if self._metadata is None:
            self._metadata = [ParamMeta(name, weight.dtype, tuple(weight.shape)) for name, weight in self]
        return self._metadata

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, weight in self._weights():
            yield name, weight.detach().to(self._dtype)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])
