"""Transfers weights to vLLM servers: through files that both sides can access, or over NCCL."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lit_rlvr.distributed.collectives import gather_objects, rank, world_size
from lit_rlvr.errors import UserError, first_line
from lit_rlvr.rollout.engines.client import ServerError, VLLMServer

Weights = Callable[[bool], Iterable[tuple[str, Tensor]]]
"""Starts a new pass over the (name, tensor) pairs: of all weights, or of those that training changes (False).
Collective if the weights are sharded."""

FILE_BYTES = 4 << 30
POLL = 0.1
"""Seconds between two looks at a transfer."""
ABORT_SECONDS = 20.0
"""Seconds that a transfer has to end once the server failed, and once it is aborted."""


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
        left = iter(weights)
        try:
            target.mkdir(parents=True)
            _write(left, dtype, target)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(target, ignore_errors=True)
            reason = getattr(error, "strerror", None) or first_line(error)
            raise UserError(f"FileTransfer.folder: {target} cannot be written: {reason}") from error
        except Exception:
            for _ in left:  # the other ranks gather all weights
                pass
            raise


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
        address: address of the first rank's machine, reachable from the servers; by default the one from which it
            reaches each server.
    """

    def __init__(self, address: str | None = None) -> None:
        if not torch.cuda.is_available():
            raise UserError("NCCLTransfer: there is no GPU here; use FileTransfer")
        self.address = address
        self._source = RepeatedWeights()
        self._senders: list[Any] = []

    def send(
        self, servers: Sequence[VLLMServer], weights: Weights, dtype: torch.dtype, version: str, frozen: bool = False
    ) -> None:  # fmt: skip
        self._source.set(weights, dtype)
        self._source.metadata()  # it gathers the weights, on the first call
        if not self._senders:
            self._connect(servers)
        on_first(servers, VLLMServer.pause)  # before the first collective
        for server, sender in zip(servers, self._senders, strict=True):
            agree(partial(self._send, server, sender))
        on_first(servers, partial(VLLMServer.resume, version=version))

    def restore(self, server: VLLMServer, version: str) -> None:
        if world_size() > 1:
            raise UserError(
                f"{server.url} was restarted and lost its weights, which no process can send over NCCL alone; "
                "resume with --ckpt_path last, or use FileTransfer"
            )
        self.close()
        self._connect([server])
        server.pause()
        self._send(server, self._senders[0])
        server.resume(version)
        self.close()  # the next version goes to all servers again

    def close(self) -> None:
        for sender in self._senders:
            sender.shutdown()
        self._senders = []

    def _connect(self, servers: Sequence[VLLMServer]) -> None:
        """Connect the first rank to all servers, or no rank to any. Collective."""
        made: list[Any] = []
        agree(lambda: made.extend(map(self._sender, servers)))
        self._senders = made

    def _sender(self, server: VLLMServer) -> Any:
        """Return the first rank's connection to a server; on the others, a part in gathering."""
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine

        first = rank() == 0
        address = own_address(server.url, self.address) if first else ""
        info = NCCLTrainerInitInfo(address, free_port(), 1 + (server.workers() if first else 0), rank=rank())
        source: Any = self._source  # it has the methods of a WeightSource that are used here
        client: Any = UpdateClient(server)  # and this one those of a client
        return NCCLTrainerWeightTransferEngine.trainer_init(info, client=client, source=source)

    def _send(self, server: VLLMServer, sender: Any) -> None:
        """Send the weights to one server. If that fails, the first rank still gathers all weights with the others.

        Raises:
            ServerError: the server failed, or did not take the weights within its timeout.
            UserError: the transfer could not be aborted.
        """
        self._source.begin()
        if rank() > 0:
            sender.send_weights()
            return
        try:
            send_within(server.timeout, sender)
        except Exception:
            self._source.finish()
            raise


class UpdateClient:
    """The requests of vLLM's weight transfer to one server.

    Attributes:
        failure: why the server did not take the weights; None = it has, or is doing so.
    """

    def __init__(self, server: VLLMServer) -> None:
        self.server = server
        self.failure: Exception | None = None

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.server.post("/init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        """Start an update, after ending one that a trainer left unfinished."""
        self.failure = None
        try:
            self.server.post("/start_weight_update")
        except ServerError:
            with suppress(ServerError):
                self.finish_weight_update()
            self.server.post("/start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        try:
            self.server.post("/update_weights", {"update_info": update_info})
        except Exception as error:
            self.failure = error
            raise

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.server.post("/finish_weight_update")


def send_within(seconds: float, sender: Any) -> None:
    """Let vLLM's sender send the weights, and abort it when the server fails or the time is over.

    It runs in a thread, because NCCL waits without end for a server that has died.

    Raises:
        ServerError: the server failed, or did not take the weights in time.
        UserError: the sender did not end when it was aborted.
    """
    client: UpdateClient = sender.client
    errors: list[Exception] = []
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def work() -> None:
        try:
            with torch.no_grad(), nullcontext() if device is None else torch.cuda.device(device):
                sender.send_weights()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="lit-rlvr-weights", daemon=True)
    thread.start()
    deadline = time.monotonic() + seconds
    while thread.is_alive() and client.failure is None and time.monotonic() < deadline:
        thread.join(POLL)
    thread.join(0 if client.failure is None else ABORT_SECONDS)  # it may end by itself
    url, late = client.server.url, thread.is_alive()
    if late:
        sender.shutdown()
        thread.join(ABORT_SECONDS)
        if thread.is_alive():
            raise UserError(f"{url}: a weight transfer hangs and cannot be aborted; resume with --ckpt_path last")
    if client.failure is not None:
        raise client.failure
    if late:
        raise ServerError(f"{url} did not take the weights within {seconds:g} s")
    if errors:
        raise errors[0]


def agree(action: Callable[[], object]) -> None:
    """Call `action`, and tell all ranks whether it worked on each. Collective: call it on every rank.

    Raises:
        ServerError: it failed on another rank; where it failed, the error is raised as it was.
    """
    failed: Exception | None = None
    try:
        action()
    except UserError:  # it ends the run
        raise
    except Exception as error:  # of any kind: the other ranks would wait for this one
        failed = error
    said = [text for text in gather_objects(None if failed is None else str(failed)) if text is not None]
    if failed is not None:
        raise failed
    if said:
        raise ServerError(said[0])


def on_first(servers: Sequence[VLLMServer], action: Callable[[VLLMServer], None]) -> None:
    """Let the first rank call `action` on each server, as `agree` does."""

    def call() -> None:
        for server in servers if rank() == 0 else ():
            action(server)

    agree(call)


def route_to(host: str, port: int) -> tuple[str, str]:
    """Return the addresses of this machine and of another one, as this machine's packets to it carry them."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))  # sends nothing
        return str(probe.getsockname()[0]), str(probe.getpeername()[0])


def own_address(url: str, given: str | None = None) -> str:
    """Return the address at which a server can reach this machine.

    Args:
        given: the address that the user chose; None = the one from which this machine reaches the server.

    Raises:
        UserError: an address cannot be resolved, or the server is on another machine and would look for this one on
            itself.
    """
    where = urlsplit(url)
    try:
        mine, theirs = route_to(where.hostname or "", where.port or 80)
        found = ip_address(socket.gethostbyname(given) if given else mine)
    except OSError as error:
        raise UserError(
            f"NCCLTransfer.address: {given or 'none'}, for {url}: {error.strerror or error}; give the address at which "
            "the servers reach this machine"
        ) from error
    if found.is_loopback and theirs != mine and not ip_address(theirs).is_loopback:
        raise UserError(
            f"NCCLTransfer.address: {given} is {found}, where {url} would find itself; leave it out, or use {mine}"
        )
    return given or mine


class RepeatedWeights:
    """The weights in the form that vLLM's transfer takes: metadata in advance, and any number of passes."""

    def __init__(self) -> None:
        self._weights: Weights = lambda everything: ()
        self._dtype = torch.float32
        self._metadata: list[Any] | None = None
        self._pass: Iterator[tuple[str, Tensor]] | None = None  # the last one; None = none since `begin`

    def begin(self) -> None:
        """Take note that the weights are sent now, in one pass."""
        self._pass = None

    def finish(self) -> None:
        """Gather the weights that were not, because the other ranks gather all."""
        for _ in iter(self) if self._pass is None else self._pass:
            pass

    def set(self, weights: Weights, dtype: torch.dtype) -> None:
        """Set the weights of the next passes; names and shapes must stay the same."""
        self._weights, self._dtype = weights, dtype

    def metadata(self) -> list[Any]:
        from vllm.distributed.weight_transfer.base import ParamMeta

        if self._metadata is None:
            self._metadata = [ParamMeta(name, weight.dtype, tuple(weight.shape)) for name, weight in self]
        return self._metadata

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self._pass = ((name, weight.detach().to(self._dtype)) for name, weight in self._weights(True))
        return self._pass


def free_port() -> int:
    """Return a free TCP port on this machine."""
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])
