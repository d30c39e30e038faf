"""Weights that do not arrive: every rank learns of it, none is left behind in a collective, and servers take others."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from two_ranks import in_two_ranks

from lit_rlvr.distributed.collectives import gather_objects
from lit_rlvr.errors import UserError
from lit_rlvr.rollout.engines.client import ServerError, VLLMServer
from lit_rlvr.rollout.engines.transfer import (
    FileTransfer,
    NCCLTransfer,
    RepeatedWeights,
    UpdateClient,
    own_address,
    send_within,
)

CALLS = ("/pause", "/start_weight_update", "broadcast", "/update_weights", "hang", "/finish_weight_update", "/resume")


class Server(VLLMServer):
    """Answers as vLLM does, but for the call that fails.

    Attributes:
        fails: the call. receives: it takes what is broadcast. is_active: it is in an update.
    """

    def __init__(self, fails: str = "") -> None:
        super().__init__("http://here", None, 1.0)
        self.fails, self.is_active, self.receives, self.version_held = fails, False, threading.Event(), ""

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
        elif path == "/update_weights":
            if self.fails == "hang":
                time.sleep(3)
                raise ServerError("it has died")
            self.receives.set()
        elif path == "/finish_weight_update":
            self.is_active = False
        elif path == "/update_weight_version":
            assert body is not None
            self.version_held = body["new_version"]
        return {}


def make_sender(server: Server, source: RepeatedWeights, rank: int) -> Any:
    """vLLM's own sender, whose broadcast waits, as NCCL does, until the server receives or the sender is aborted."""
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine

    class Sender(NCCLTrainerWeightTransferEngine):
        aborted = False

        def _broadcast(self, source: Any, meta: Any) -> None:
            if rank > 0:
                return super()._broadcast(source, meta)
            for k, _ in enumerate(self._checked_iter(source, meta)):
                if k == 1 and server.fails == "broadcast":
                    raise RuntimeError("NCCL error: unhandled system error")
                while not (server.receives.is_set() or self.aborted):
                    time.sleep(0.01)
            return None

        def shutdown(self) -> None:
            self.aborted = True

    engine: Any = Sender(client=UpdateClient(server), source=source, is_sender=rank == 0)  # type: ignore[arg-type]
    return engine


def weights(everything: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Three weights that all ranks have to gather together."""
    for k in range(3):
        tensor = torch.full((2,), float(k))
        dist.all_reduce(tensor)
        yield f"w{k}", tensor


def send_with_failures(rank: int) -> None:
    for fails in (*CALLS, ""):
        transfer = NCCLTransfer.__new__(NCCLTransfer)  # without a GPU
        transfer._source, server = RepeatedWeights(), Server(fails)
        transfer._senders = [make_sender(server, transfer._source, rank)]
        failure = None
        try:
            transfer.send([server], weights, torch.float32, "v1")
        except (ServerError, RuntimeError) as error:
            failure = str(error)
        assert (failure is None) == (fails == ""), (fails, failure)
        together = torch.ones(5)
        dist.all_reduce(together)  # another collective does not meet one that was left over
        assert together.tolist() == [2.0] * 5, fails
        assert gather_objects(rank) == [0, 1]
        assert rank or server.version_held == ("v1" if fails in ("", "/resume") else ""), fails
        server.fails, transfer._senders = "", [make_sender(server, transfer._source, rank)]
        if fails != "hang":  # that server is lost, and the next one is new
            transfer.send([server], weights, torch.float32, "v2")
            assert rank or server.version_held == "v2"


@pytest.mark.slow
def test_a_sender_that_fails_at_any_call_leaves_no_rank_behind(tmp_path: Path) -> None:
    in_two_ranks(tmp_path, send_with_failures)


def write_without_memory(rank: int, folder: Path) -> None:
    def too_many(everything: bool) -> Iterator[tuple[str, torch.Tensor]]:
        for k, (name, tensor) in enumerate(weights(everything)):
            yield name, tensor.expand(1 << 50, 2) if k == 1 and rank == 0 else tensor  # its copy does not fit

    transfer = FileTransfer(folder)
    with pytest.raises(RuntimeError) if rank == 0 else pytest.MonkeyPatch.context():
        transfer.send([], too_many, torch.float32, "v1")
    assert gather_objects(rank) == [0, 1]


@pytest.mark.slow
def test_a_write_that_fails_leaves_no_rank_behind(tmp_path: Path) -> None:
    in_two_ranks(tmp_path, write_without_memory, tmp_path)


def test_a_transfer_that_cannot_be_aborted_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_rlvr.rollout.engines.transfer.ABORT_SECONDS", 0.05)

    class Stuck:
        client = UpdateClient(Server())

        def send_weights(self) -> None:
            time.sleep(2)

        def shutdown(self) -> None:
            pass

    with pytest.raises(UserError, match="hangs and cannot be aborted; resume with --ckpt_path last"):
        send_within(0.05, Stuck())


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
        monkeypatch.setattr("lit_rlvr.rollout.engines.transfer.route_to", lambda *_: ("192.0.2.1", theirs))
    if " " not in found:
        assert own_address(f"http://{theirs}:8000", given) == found
    else:
        with pytest.raises(UserError, match=rf"NCCLTransfer\.address: .*{found}"):
            own_address(f"http://{theirs}:8000", given)
