"""The transfer of weights through files that the trainer and the servers can access."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lit_rlvr.common.files import flush_to_disk
from lit_rlvr.common.log import log
from lit_rlvr.distributed.collectives import gather_objects, raise_on_all_ranks, rank
from lit_rlvr.engines.client import ServerError, VLLMServer, on_each
from lit_rlvr.engines.transfer import own_folder
from lit_rlvr.engines.transfer.base import Settings, Weights, WeightTransfer
from lit_rlvr.engines.transfer.network import is_this_machine
from lit_rlvr.engines.transfer.own_folder import OwnFolder
from lit_rlvr.errors import UserError, first_line
from lit_rlvr.policy.sources import ADAPTER_CONFIG

FILE_BYTES = 4 << 30


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
        elsewhere = []
        for url in urls:
            if not self.folder and not is_this_machine(url):
                elsewhere.append(url)
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
            raise_on_all_ranks(lambda: self._load(servers, old, version), ServerError)
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
        raise_on_all_ranks(lambda: self._write(weights, dtype, version, complete, adapter), ServerError)
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
            if old or self._own is None or self._own.path.parent != own_folder.MEMORY:
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
        target = (self.folder or own_folder.MEMORY) / version
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
