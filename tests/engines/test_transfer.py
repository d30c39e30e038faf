"""Weights that do not arrive: every rank learns of it, none is left behind in a collective, and servers take others."""

import errno
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from two_ranks import in_two_ranks

from lit_rlvr.common.files import available_memory
from lit_rlvr.distributed.collectives import gather_objects
from lit_rlvr.engines import client
from lit_rlvr.engines.client import ServerError, VLLMServer
from lit_rlvr.engines.server import VLLMServerEngine
from lit_rlvr.engines.transfer import FileTransfer, NCCLTransfer, nccl, network, own_folder
from lit_rlvr.engines.transfer.nccl import RepeatedWeights, UpdateClient, call_within
from lit_rlvr.engines.transfer.network import own_address
from lit_rlvr.engines.transfer.own_folder import OwnFolder
from lit_rlvr.errors import UserError

CALLS = ("/pause", "/start_weight_update", "broadcast", "/update_weights", "hang", "/finish_weight_update", "/resume")


class Server(VLLMServer):
    """Answers as vLLM does, but for the call that fails.

    Attributes:
        fails: the call. receives: it takes what is broadcast. is_active: it is in an update.
        group: the servers that take a broadcast together, or not at all.
    """

    def __init__(self, fails: str = "") -> None:
        super().__init__("http://here", None, 1.0)
        self.fails, self.is_active, self.receives, self.version_held = fails, False, threading.Event(), ""
        self.group = [self]

    def version(self) -> str:
        return self.version_held

    def post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        path = path.partition("?")[0]
        if path == self.fails:
            if path == "/update_weights":
                self.is_active = False
            raise ServerError(f"http://here{path}: status 500")
        if path == "/start_weight_update":
            if self.is_active:
                raise ServerError("a weight update is already active")
            self.is_active = True
            self.receives.clear()
        elif path == "/update_weights":
            if self.fails == "hang":
                time.sleep(3)
                raise ServerError("it has died")
            self.receives.set()
            for other in self.group:
                if not other.receives.wait(60):
                    raise ServerError("timed out")
        elif path == "/finish_weight_update":
            self.is_active = False
        elif path == "/update_weight_version":
            assert body is not None
            self.version_held = body["new_version"]
        return {}


def make_sender(servers: list[Server], source: RepeatedWeights, rank: int) -> Any:
    """vLLM's own sender, whose broadcast waits, as NCCL does, until all servers receive or the sender is aborted."""
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine

    class Sender(NCCLTrainerWeightTransferEngine):
        aborted = False

        def _broadcast(self, source: Any, meta: Any) -> None:
            if rank > 0:
                return super()._broadcast(source, meta)
            for k, _ in enumerate(self._checked_iter(source, meta)):
                if k == 1 and any(server.fails == "broadcast" for server in servers):
                    raise RuntimeError("NCCL error: unhandled system error")
                while not (all(server.receives.is_set() for server in servers) or self.aborted):
                    time.sleep(0.01)
            return None

        def shutdown(self) -> None:
            self.aborted = True

    updates: Any = UpdateClient(servers, [1] * len(servers))
    engine: Any = Sender(client=updates, source=source, is_sender=rank == 0)  # type: ignore[arg-type]
    return engine


def weights(everything: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Three weights that all ranks have to gather together."""
    for k in range(3):
        tensor = torch.full((2,), float(k))
        dist.all_reduce(tensor)
        yield f"w{k}", tensor


def _rank_sends_with_failures(rank: int, count: int) -> None:
    nccl.ABORT_SECONDS = 5.0
    groups: list[int] = []
    make_sender([], RepeatedWeights(), rank)  # imports vLLM before any time is taken

    class Sending(NCCLTransfer):
        def _make_sender(self, servers: Any) -> Any:
            groups.append(len(servers))
            return make_sender([*servers], self._source, rank)

    for fails in (*CALLS, ""):
        sending = Sending()
        servers = [Server() for _ in range(count - 1)] + [Server(fails)]
        for server in servers:
            server.group = servers
        groups.clear()
        failure = None
        began = time.monotonic()
        try:
            sending.send(servers, weights, torch.float32, "v1")
        except (ServerError, RuntimeError) as error:
            failure = str(error)
        assert (failure is None) == (fails == ""), (fails, failure)
        assert time.monotonic() - began < 15, fails
        together = torch.ones(5)
        dist.all_reduce(together)  # another collective does not meet one that was left over
        assert together.tolist() == [2.0] * 5, fails
        assert gather_objects(rank) == [0, 1]
        assert rank or servers[-1].version_held == ("v1" if fails in ("", "/resume") else ""), fails
        servers[-1].fails = ""
        if fails == "hang":  # that server is lost
            servers.pop()
        if servers:
            sending.send(servers, weights, torch.float32, "v2")
            assert rank or [server.version_held for server in servers] == ["v2"] * len(servers)
            servers[0].version_held = "restarted"
            sending.send(servers, weights, torch.float32, "v3")
            sending.send(servers, weights, torch.float32, "v4")
            assert groups[1:] == [len(servers)] * (1 if fails == "" else 2), (fails, "a group that is whole is kept")


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
def test_a_server_that_fails_at_any_call_leaves_no_rank_behind(tmp_path: Path, count: int) -> None:
    """Also not if others wait for it in the same broadcast."""
    in_two_ranks(tmp_path, _rank_sends_with_failures, count, seconds=180)


def _rank_writes_without_memory(rank: int, folder: Path) -> None:
    def too_many(everything: bool) -> Iterator[tuple[str, torch.Tensor]]:
        for k, (name, tensor) in enumerate(weights(everything)):
            yield name, tensor.expand(1 << 50, 2) if k == 1 and rank == 0 else tensor  # its copy does not fit

    sending = FileTransfer(folder)
    with pytest.raises(RuntimeError if rank == 0 else ServerError):
        sending.send([], too_many, torch.float32, "v1")
    assert gather_objects(rank) == [0, 1]
    assert not (folder / "v1").exists()


@pytest.mark.slow
def test_a_write_that_fails_leaves_no_rank_behind(tmp_path: Path) -> None:
    in_two_ranks(tmp_path, _rank_writes_without_memory, tmp_path)


def _rank_loads_nowhere(rank: int, memory: Path, disk: Path) -> None:
    class Dead(Reader):
        def load(self, folder: Path, version: str) -> None:
            raise ServerError("it has died")

    own_folder.MEMORY, tempfile.tempdir = memory, str(disk)
    sending = FileTransfer()
    with pytest.raises(ServerError, match="it has died"):
        sending.send([Dead()], weights, torch.float32, "v1")
    (version,) = sending._written
    assert (version.is_relative_to(disk), version.is_dir(), gather_objects(rank)) == (True, True, [0, 1])


@pytest.mark.slow
def test_all_ranks_know_where_weights_are_that_no_server_loaded(tmp_path: Path, places: tuple[Path, Path]) -> None:
    in_two_ranks(tmp_path, _rank_loads_nowhere, *places)


class Reader(VLLMServer):
    """Reads what it is to load, unless that is in memory and it has another one."""

    def __init__(self, reads_memory: bool = True) -> None:
        super().__init__("http://127.0.0.1:8000", None, 1.0)
        self.reads_memory, self.held = reads_memory, ""

    def load(self, folder: Path, version: str) -> None:
        if not self.reads_memory and folder.is_relative_to(own_folder.MEMORY):
            raise ServerError(f"{self.url}: there is no {folder}")
        assert set(load_file(next(folder.iterdir()))) == {"w"}
        self.held = version


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Folders in place of the memory's and the temporary one."""
    memory, disk = tmp_path / "memory", tmp_path / "disk"
    memory.mkdir()
    disk.mkdir()
    monkeypatch.setattr(own_folder, "MEMORY", memory)
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    return memory, disk


@pytest.mark.parametrize(
    ("free", "readers", "in_memory"),
    [(3 * 4096, [True], True), (3 * 4096, [True, False], False), (3 * 4096 - 1, [True], False), (0, [False], False)],
)
def test_without_a_folder_weights_go_through_memory_if_they_can(
    free: int,
    readers: list[bool],
    in_memory: bool,
    places: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """They can if memory has room for three versions and every server reads the first one from there."""
    monkeypatch.setattr(own_folder, "free_memory", lambda: free)
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("a wait for the disk"))
    servers, sending = [Reader(reads) for reads in readers], FileTransfer()
    for version in ("v1", "v2"):
        sending.send(servers, lambda _: [("w", torch.zeros(1024))], torch.float32, version)
        assert [server.held for server in servers] == [version] * len(servers)
        found = [[path.name for path in place.glob("lit-rlvr-weights-*/*")] for place in places]
        assert found == ([[version], []] if in_memory else [[], [version]])
    assert caplog.text.count("weights go through") == (0 if in_memory else 1)
    sending.restore(servers[0], "v2")
    sending.close()
    assert not [*places[0].iterdir(), *places[1].iterdir()]


def test_weights_that_cannot_leave_memory_stay_there(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(own_folder, "free_memory", lambda: 1 << 20)
    monkeypatch.setattr(shutil, "move", fail)
    sending = FileTransfer()
    with pytest.raises(ServerError, match="there is no"):
        sending.send([Reader(False)], lambda _: [("w", torch.zeros(1024))], torch.float32, "v1")
    assert len(list(places[0].glob("*/v1"))) == 1 and not list(places[1].iterdir())
    sending.close()
    assert not list(places[0].iterdir())


def test_a_place_that_cannot_be_written_is_named(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_folder, "free_memory", lambda: 0)
    monkeypatch.setattr(tempfile, "tempdir", str(places[1] / "none"))
    with pytest.raises(UserError, match=rf"FileTransfer\.folder: {places[1]}/none/.* cannot be written: No such file"):
        FileTransfer().send([Reader()], lambda _: [("w", torch.zeros(1))], torch.float32, "v1")


def test_room_in_memory_is_measured_without_what_killed_runs_left(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = OwnFolder(places[0])
    os.close(left._lock)  # as the kernel does
    monkeypatch.setattr(own_folder, "free_memory", lambda: 0 if left.path.exists() else 1 << 20)
    own = OwnFolder.with_room(1)
    assert own.path.parent == places[0]
    own.remove()


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    killed, alive = OwnFolder(tmp_path), OwnFolder(tmp_path)
    assert killed.path != alive.path
    (killed.path / "v1").mkdir()
    os.close(killed._lock)  # as the kernel does
    (tmp_path / "lit-rlvr-weights-link").symlink_to(tmp_path / "lit-rlvr")
    (tmp_path / "lit-rlvr").mkdir()
    new = OwnFolder(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("lit-rlvr", "lit-rlvr-weights-link"),
        alive.path.name,
        new.path.name,
    }
    for own in (alive, new):
        own.remove()


@pytest.mark.parametrize(
    ("url", "is_here"),
    [
        ("http://localhost:8000", True),
        ("http://127.0.0.1", True),
        ("http://192.0.2.1:1", True),
        ("http://192.0.2.7:1", False),
        ("http://no.such.invalid:1", False),
    ],
)
def test_a_server_elsewhere_needs_a_folder(
    url: str, is_here: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "192" in url:  # this machine may have no network
        monkeypatch.setattr(network, "route_to", lambda host, _: ("192.0.2.1", host.replace("localhost", "127.0.0.1")))
    FileTransfer(tmp_path).check_urls([url])
    with nullcontext() if is_here else pytest.raises(UserError, match=f"FileTransfer.folder: {url} is not on this"):
        VLLMServerEngine(["http://localhost", url], FileTransfer())


def test_memory_is_limited_by_the_container(tmp_path: Path) -> None:
    """Its use counts a cache of files, which the kernel drops when it must."""
    for name, text in (("max", "5000\n"), ("current", "4000\n"), ("stat", "anon 100\ninactive_file 3000\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert available_memory(tmp_path) == 4000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) > 1 << 20


@pytest.mark.parametrize(("health", "said"), [(503, "its engine has died"), (200, "/pause: no answer within 0.5 s")])
def test_a_request_ends_when_the_engine_has_died(health: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's server does not answer then, and waits for its last request before it ends."""
    is_over = threading.Event()

    class Dead(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(health)
            self.end_headers()

        def do_POST(self) -> None:
            is_over.wait(20)

        def log_message(self, *_: Any) -> None:
            pass

    monkeypatch.setattr(client, "HEALTH_SECONDS", 0.05)
    with ThreadingHTTPServer(("127.0.0.1", 0), Dead) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        began = time.monotonic()
        with pytest.raises(ServerError, match=said):
            VLLMServer(f"http://127.0.0.1:{server.server_port}", None, 10.0 if health == 503 else 0.5).pause()
        assert time.monotonic() - began < 8
        is_over.set()
        server.shutdown()


@pytest.mark.parametrize(("status", "transient"), [(500, True), (400, False)])
def test_a_request_that_vllm_fails_internally_may_be_made_again(status: int, transient: bool) -> None:
    class Failing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ServerError, match=f"status {status}") as failed:
            VLLMServer(f"http://127.0.0.1:{server.server_port}", None, 10.0).pause()
        assert failed.value.transient == transient
        server.shutdown()


@pytest.mark.parametrize("state", ["idle", "in an update", "old"])
def test_a_new_connection_ends_the_one_before(state: str) -> None:
    """vLLM refuses that during an update; older servers do not know the request."""
    posted: list[str] = []

    class Connected(Server):
        is_updating = state == "in an update"

        def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
            posted.append(path)
            if path == "/finish_weight_update":
                self.is_updating = False
            if path == "/shutdown_weight_transfer_engine" and (self.is_updating or state == "old"):
                raise ServerError("status 500")
            return {}

    UpdateClient([Connected()], [1]).init_weight_transfer_engine({})  # type: ignore[list-item]
    wanted = ["/shutdown_weight_transfer_engine", "/init_weight_transfer_engine"]
    if state != "idle":
        wanted[1:1] = ["/finish_weight_update", "/shutdown_weight_transfer_engine"]
    assert posted == wanted


def test_a_transfer_that_cannot_be_aborted_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_rlvr.engines.transfer.nccl.ABORT_SECONDS", 0.05)
    client = UpdateClient([Server()], [1])
    client.servers[0].timeout = 0.05
    with pytest.raises(
        UserError, match="hangs; it was aborted and has not ended, so the run ends: resume with ckpt_path"
    ):
        call_within(client, partial(time.sleep, 2), abort=list)
    client.failure = ServerError("status 500: weight transfer is not configured")
    with pytest.raises(
        UserError, match="500: weight transfer is not configured; a connection that begins cannot be aborted"
    ):
        call_within(client, partial(time.sleep, 2))


def test_each_thread_sends_from_the_gpu_of_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is back is restored from a thread of its own."""
    thread = threading.local()  # its `gpu` is CUDA's current device there

    @contextmanager
    def on(device: int) -> Iterator[None]:
        before = getattr(thread, "gpu", 0)
        thread.gpu = device
        yield
        thread.gpu = before

    class Sending(NCCLTransfer):
        def _is_connected(self, servers: Any) -> bool:
            return False

        def _make_sender(self, servers: Any) -> Any:
            return call_within(UpdateClient(servers, [1]), lambda: used.append(torch.cuda.current_device()))

        def _send(self) -> None:
            call_within(UpdateClient([Server()], [1]), lambda: used.append(torch.cuda.current_device()))

    used: list[int] = []
    monkeypatch.setattr(RepeatedWeights, "metadata", lambda self: [])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: getattr(thread, "gpu", 0))
    monkeypatch.setattr(torch.cuda, "device", on)
    thread.gpu = 1
    sending = Sending()
    sending.send([Server()], lambda everything: (), torch.float32, "1")
    with ThreadPoolExecutor(1) as other:
        other.submit(sending.restore, Server(), "1").result()
    assert used == [1] * 4


def test_hosts_may_have_addresses_of_either_kind() -> None:
    kinds = [network._look_up(host, 80)[0] for host in ("127.0.0.1", "::1", "localhost")]
    assert kinds == [socket.AF_INET, socket.AF_INET6, socket.AF_INET]


@pytest.mark.parametrize(
    ("theirs", "given", "found"),
    [
        ("127.0.0.1", None, "127.0.0.1"),
        ("127.0.0.1", "127.0.1.1", "127.0.1.1"),
        ("192.0.2.7", None, "192.0.2.1"),
        ("192.0.2.7", "203.0.113.5", "203.0.113.5"),
        ("192.0.2.1", "127.0.0.1", "127.0.0.1"),
        (
            "192.0.2.7",
            "127.0.1.1",
            "127.0.1.1 is 127.0.1.1, where .* would find itself; leave it out, or use 192.0.2.1",
        ),
        ("192.0.2.7", "no.such.invalid", "give the address at which the servers reach this machine"),
    ],
)
def test_servers_look_for_the_trainer_where_it_reaches_them(
    theirs: str, given: str | None, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine's own name is often 127.0.1.1 in /etc/hosts."""
    if not theirs.startswith("127."):  # this machine may have no network
        monkeypatch.setattr("lit_rlvr.engines.transfer.network.route_to", lambda *_: ("192.0.2.1", theirs))
    if " " not in found:
        assert own_address(f"http://{theirs}:8000", given) == found
    else:
        with pytest.raises(UserError, match=rf"NCCLTransfer\.address: .*{found}"):
            own_address(f"http://{theirs}:8000", given)
