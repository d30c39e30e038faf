"""Transfers weights to vLLM servers: through files that both sides can access, or over NCCL."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from ipaddress import ip_address
from itertools import accumulate
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar
from urllib.parse import urlsplit

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lit_rlvr.common.files import available_memory, flush_to_disk
from lit_rlvr.common.log import log
from lit_rlvr.distributed.collectives import gather_objects, rank, world_size
from lit_rlvr.distributed.sharding import shapes_alone
from lit_rlvr.engines.client import ServerError, VLLMServer
from lit_rlvr.errors import UserError, first_line
from lit_rlvr.policy.sources import ADAPTER_CONFIG

Weights = Callable[[bool], Iterable[tuple[str, Tensor]]]
"""Starts a new pass over the (name, tensor) pairs: of all weights, or of those that training changes (False).

The latter may be adapters. Collective if the weights are sharded; call it on every rank."""
Settings = dict[str, Any]
"""The settings of adapters, as peft saves them."""

_T = TypeVar("_T")

FILE_BYTES = 4 << 30
MEMORY = Path("/dev/shm")
"""Linux's file system in memory."""
VERSIONS = 3
"""Versions of the weights that must fit: the first one, the last one, and one that is being written."""
OWN_PREFIX = "lit-rlvr-weights-"
POLL = 0.1
"""Seconds between two looks at a transfer."""
ABORT_SECONDS = 20.0
"""Seconds that a transfer has to end once the server failed, and once it is aborted."""


class WeightTransfer(ABC):
    """Sends weights to servers. Each version has a label, which a server can be asked for.

    Attributes:
        sends_adapters: it can send adapters in place of weights.
        restores_alone: one rank can send the last weights again, without the others.
        restores_current: what it sends again are the policy's current weights, which training may have changed.
    """

    sends_adapters = False
    restores_alone = True
    restores_current = False

    def check_urls(self, urls: Sequence[str]) -> None:  # noqa: B027  # most transfers reach any server
        """Refuse servers that cannot be reached; called before any model loads.

        Raises:
            UserError: the transfer does not reach one of them.
        """

    @abstractmethod
    def send(
        self,
        servers: Sequence[VLLMServer],
        weights: Weights,
        dtype: torch.dtype,
        version: str,
        frozen: bool = False,
        adapter: Settings | None = None,
    ) -> None:
        """Send weights to all servers from the first rank.

        Collective: call it on every rank.

        Args:
            servers: all servers.
            weights: yields full tensors by name.
            dtype: what they are cast to.
            version: the name of these weights.
            frozen: some of the weights never change, so that later versions can leave them out.
            adapter: the settings of the adapters that `weights(False)` yields; None = it yields weights.
        """

    @abstractmethod
    def restore(self, server: VLLMServer, version: str) -> None:
        """Send the last weights again, to a restarted server; called on one rank alone."""

    @abstractmethod
    def close(self) -> None:
        """Remove files and end connections."""


class FileTransfer(WeightTransfer):
    """The first rank writes safetensors files, which the servers read. Works anywhere, at the speed of the folder.

    The first version holds all weights. If training leaves some unchanged, later versions hold only the others or the
    adapters, and the first is kept for servers that are restarted.

    Args:
        folder: a folder that the trainer and all servers can access under this path. It holds the last version of the
            weights in the servers' compute type, the first one too if later ones are not complete, and one more while
            it is written. Without it, all servers must run on this machine, and the files are in memory (/dev/shm). If
            memory has no room for them, or a server cannot read them there, they are in the temporary folder.
    """

    sends_adapters = True

    def __init__(self, folder: Path | None = None) -> None:
        if folder is None:
            self.folder = None
        else:
            self.folder = folder.absolute()
        self._own: OwnFolder | None = None  # on the first rank, if the user gave none
        self._size: int | None = None  # of all weights in bytes, if the user gave no folder
        self._written: list[Path] = []  # the first version, if later ones do not hold all weights, and the last

    def check_urls(self, urls: Sequence[str]) -> None:
        if self.folder:
            elsewhere = []
        else:
            elsewhere = [url for url in urls if not is_this_machine(url)]
        if elsewhere:
            raise UserError(
                f"FileTransfer.folder: {elsewhere[0]} is not on this machine; give a folder that it and the trainer "
                "can access under the same path"
            )

    def send(
        self,
        servers: Sequence[VLLMServer],
        weights: Weights,
        dtype: torch.dtype,
        version: str,
        frozen: bool = False,
        adapter: Settings | None = None,
    ) -> None:
        if self.folder is None and self._size is None:  # it gathers the weights
            self._size = sum(weight.numel() for _, weight in weights(True)) * dtype.itemsize
        old = self._written
        complete = adapter is None and not (frozen and old)
        if adapter is not None and not old:
            self._write_version(weights(True), dtype, f"{version}-base")
        self._write_version(weights(complete), dtype, version, complete, adapter)
        try:
            raise_on_all_ranks(lambda: self._load(servers, old, version))
        except UserError:  # on this rank alone
            raise
        except Exception:
            self._written = gather_objects(self._written)[0]
            raise
        self._written = gather_objects(self._written)[0]

    def _write_version(
        self,
        weights: Iterable[tuple[str, Tensor]],
        dtype: torch.dtype,
        version: str,
        complete: bool = True,
        adapter: Settings | None = None,
    ) -> None:
        raise_on_all_ranks(lambda: self._write(weights, dtype, version, complete, adapter))
        self._written = gather_objects(self._written)[0]

    def _load(self, servers: Sequence[VLLMServer], old: list[Path], version: str) -> None:
        """Let the servers load what was written, on the first rank, and remove what is no longer needed."""
        if rank() > 0:
            return
        for path in old:
            if path not in self._written:
                shutil.rmtree(path, ignore_errors=True)

        def load(server: VLLMServer) -> None:
            if len(self._written) == 1 or (old and server.version() == old[-1].name):
                server.load(self._written[-1], version)
            else:  # it was restarted, or has no weights yet
                self.restore(server, version)

        try:
            on_each(servers, load)
        except ServerError as error:
            if old or self._own is None or self._own.path.parent != MEMORY:
                raise
            self._leave_memory(self._own, error)
            on_each(servers, load)

    def _leave_memory(self, folder: OwnFolder, error: ServerError) -> None:
        """Move the first version to the temporary folder: a server in another container has its own /dev/shm.

        Raises:
            ServerError: `error`, because the version cannot be moved.
        """
        self._own = OwnFolder(Path(tempfile.gettempdir()))
        try:
            self._written = [Path(shutil.move(path, self._own.path)) for path in self._written]
        except OSError as failure:
            self._own.remove()
            self._own = folder
            raise error from failure
        log.warning(
            "weights go through %s, because a server could not load them from memory (%s); if it cannot read that "
            "either, give FileTransfer.folder",
            *(self._own.path, error),
        )
        folder.remove()

    def restore(self, server: VLLMServer, version: str) -> None:
        for path in self._written:
            server.load(path, path.name)

    def close(self) -> None:
        if rank() == 0:
            for path in self._written:
                shutil.rmtree(path, ignore_errors=True)
        if self._own is not None:
            self._own.remove()
        self._own = None
        self._size = None
        self._written = []

    def _write(
        self,
        weights: Iterable[tuple[str, Tensor]],
        dtype: torch.dtype,
        version: str,
        complete: bool,
        adapter: Settings | None,
    ) -> None:
        """Write the files on the first rank; the others take part in gathering the weights.

        Args:
            weights: full tensors by name.
            dtype: what they are cast to.
            version: the name of these weights.
            complete: they are all weights, not only those that training changes.
            adapter: the settings of the adapters that `weights` are; None = they are weights.
        """
        if rank() > 0:
            for _ in weights:
                pass
            return
        left = iter(weights)
        target = (self.folder or MEMORY) / version
        try:
            if self._size is not None:
                self._own = self._own or OwnFolder.with_room(self._size)
                target = self._own.path / version
            target.mkdir(parents=True)
            write_weights(left, dtype, target, self._own is None, adapter)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(target, ignore_errors=True)
            where = getattr(error, "filename", None) or target
            reason = getattr(error, "strerror", None)
            raise UserError(f"FileTransfer.folder: {where} cannot be written: {reason or first_line(error)}") from error
        except Exception:
            shutil.rmtree(target, ignore_errors=True)
            for _ in left:  # the other ranks gather all weights
                pass
            raise
        if complete:
            self._written = [target]
        else:
            self._written = [self._written[0], target]


def write_weights(
    weights: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    target: Path,
    durable: bool,
    adapter: Settings | None = None,
) -> None:
    """Write files of at most 4 GiB each, or a single larger tensor; adapters are one file next to their settings.

    Args:
        weights: full tensors by name.
        dtype: what they are cast to.
        target: the folder.
        durable: wait until the disk has each file; programs on this machine can read it before.
        adapter: the settings of the adapters that `weights` are; None = they are weights.
    """
    buffer: dict[str, Tensor] = {}
    size = count = 0

    def flush() -> None:
        nonlocal buffer, size, count
        path = target / (f"model-{count:05}.safetensors" if adapter is None else "adapter_model.safetensors")
        save_file(buffer, path)
        buffer = {}
        size = 0
        count = count + 1
        if durable:
            flush_to_disk(path)

    for name, weight in weights:
        copy = weight.detach().to("cpu", dtype, copy=True).contiguous()
        if buffer and size + copy.nbytes > FILE_BYTES and adapter is None:
            flush()
        buffer[name] = copy
        size += copy.nbytes
    flush()
    if adapter is not None:
        (target / ADAPTER_CONFIG).write_text(json.dumps(adapter))
        if durable:
            flush_to_disk(target / ADAPTER_CONFIG)


class OwnFolder:
    """A folder of this process alone, locked while the process lives.

    Making one removes the folders of processes that have been killed: nobody holds their locks.

    Args:
        place: the folder to make it in.
    """

    def __init__(self, place: Path) -> None:
        remove_abandoned(place)
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=OWN_PREFIX, dir=place))
            with suppress(BlockingIOError, FileNotFoundError):  # another process is removing it, because it has no lock
                self._lock = _lock(self.path)
                return

    @classmethod
    def with_room(cls, size: int) -> OwnFolder:
        """Make one in memory if weights of `size` bytes fit there, else in the temporary folder."""
        remove_abandoned(MEMORY)
        if free_memory() >= VERSIONS * size:
            with suppress(OSError):  # it cannot be written
                return cls(MEMORY)
        folder = cls(Path(tempfile.gettempdir()))
        log.warning(
            "weights go through %s, because %s has no room for %.1f GB", folder.path, MEMORY, VERSIONS * size / 1e9
        )
        return folder

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def remove_abandoned(place: Path) -> None:
    """Remove the folders that killed processes have left in a place."""
    for old in place.glob(f"{OWN_PREFIX}*"):
        with suppress(OSError):  # it is in use, another user's, or gone
            lock = _lock(old)
            shutil.rmtree(old, ignore_errors=True)
            os.close(lock)


def _lock(folder: Path) -> int:
    """Lock a folder and return its descriptor, which holds the lock until it is closed.

    Raises:
        OSError: another process holds it, the folder is gone, or it cannot be read.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.stat(folder)
    except OSError:
        os.close(handle)
        raise
    return handle


def free_memory() -> int:
    """Return how many bytes of files fit into `MEMORY`: the limits are its own, the machine's and the container's."""
    try:
        return min(shutil.disk_usage(MEMORY).free, available_memory())
    except OSError:  # there is none
        return 0


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
        raise_on_all_ranks(self._send)
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
                "them with the next update; if no other server is left, resume with --ckpt_path last"
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
        self._sender = raise_on_all_ranks(lambda: self._make_sender(servers))

    def _make_sender(self, servers: Sequence[VLLMServer]) -> Any:
        """Return the first rank's connection to all servers; on the others, a part in gathering."""
        if not torch.cuda.is_available():  # not earlier: `plan` has no GPU on a login node
            raise UserError("NCCLTransfer: there is no GPU here; use FileTransfer")
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine

        targets = servers if rank() == 0 else ()
        addresses = [own_address(server.url, self.address) for server in targets]
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
            raise UserError(f"{why}; {end}, so the run ends: resume with --ckpt_path last") from client.failure
    if client.failure is not None:
        raise client.failure
    if late:
        raise ServerError(f"{urls} did not take the weights within {seconds:g} s")
    return result.result(0)


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


def raise_on_all_ranks(action: Callable[[], Any]) -> Any:
    """Return what `action` returns, and tell all ranks whether it worked on each.

    Collective: call it on every rank.

    Raises:
        ServerError: it failed on another rank; where it failed, the error is raised as it was.
    """
    failed: Exception | None = None
    try:
        result = action()
    except UserError:  # it ends the run
        raise
    except Exception as error:  # of any kind: the other ranks would wait for this one
        failed = error
    messages = [text for text in gather_objects(None if failed is None else str(failed)) if text is not None]
    if failed is not None:
        raise failed
    if messages:
        raise ServerError(messages[0])
    return result


def on_each(servers: Sequence[VLLMServer], action: Callable[[VLLMServer], _T]) -> list[_T]:
    """Return what `action` returns for each server; it is called for all at once."""
    with ThreadPoolExecutor(max(1, len(servers))) as threads:
        return list(threads.map(action, servers))


def on_first(servers: Sequence[VLLMServer], action: Callable[[VLLMServer], None]) -> None:
    """Let the first rank call `action` on all servers at once, as `raise_on_all_ranks` does."""

    raise_on_all_ranks(lambda: on_each(servers, action) if rank() == 0 else None)


def route_to(host: str, port: int) -> tuple[str, str]:
    """Return the addresses of this machine and of another one, as this machine's packets to it carry them."""
    family, address = _look_up(host, port)
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(address)  # sends nothing
        return str(probe.getsockname()[0]), str(probe.getpeername()[0])


def _look_up(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """Return the family and address of a host: IPv4 if it has both."""
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    family, _, _, _, address = min(infos, key=lambda info: info[0] != socket.AF_INET)
    return family, address


def is_this_machine(url: str) -> bool:
    """Return whether a server's URL names this machine: a loopback address, or one of its own.

    A port that is forwarded to another machine looks like that too.
    """
    parts = urlsplit(url)
    try:
        local, remote = route_to(parts.hostname or "", parts.port or 80)
    except OSError:
        return False
    return remote == local or ip_address(remote).is_loopback


def own_address(url: str, chosen: str | None = None) -> str:
    """Return the address at which a server can reach this machine.

    Args:
        url: the server's.
        chosen: the address that the user chose; None = the one from which this machine reaches the server.

    Raises:
        UserError: an address cannot be resolved, or the server is on another machine and would look for this one on
            itself.
    """
    parts = urlsplit(url)
    try:
        local, remote = route_to(parts.hostname or "", parts.port or 80)
        address = ip_address(_look_up(chosen, 0)[1][0] if chosen else local)
    except OSError as error:
        raise UserError(
            f"NCCLTransfer.address: {chosen or 'none'}, for {url}: {error.strerror or error}; give the address at "
            "which the servers reach this machine"
        ) from error
    if address.is_loopback and remote != local and not ip_address(remote).is_loopback:
        raise UserError(
            f"NCCLTransfer.address: {chosen} is {address}, where {url} would find itself; leave it out, or use {local}"
        )
    return chosen or local


def weights_or_exit(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights, and end the run if one cannot be gathered: the other ranks wait for it, and for all after it.

    Raises:
        UserError: an error came out of `weights`, and there are other ranks.
    """
    try:
        yield from weights
    except Exception as error:
        if world_size() == 1 or isinstance(error, UserError):
            raise
        raise UserError(f"a weight cannot be gathered: {first_line(error)}; resume with --ckpt_path last") from error


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


def free_port() -> int:
    """Return a free TCP port on this machine."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])
