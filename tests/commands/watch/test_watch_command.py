"""`lit-rlvr watch` as a user starts it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from made_runs import METRICS, make_run
from tiny_runs import CLI

from lit_rlvr.common.sockets import open_socket


@pytest.mark.slow
def test_it_prints_where_to_look(tmp_path: Path) -> None:
    """For other machines with a token, without which nothing is shown."""
    run = make_run(tmp_path / "run")
    command = [sys.executable, "-m", "lit_rlvr", "watch", str(run), "--port", "0", "--host", "0.0.0.0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=os.environ)
    try:
        assert process.stdout is not None
        address = next(word for word in process.stdout.readline().split() if word.startswith("http"))
        with httpx.Client(follow_redirects=True, timeout=60) as client:
            assert "GRPO on Arithmetic" in client.get(address).text
        assert "?token=" in address and httpx.get(address.partition("?")[0], timeout=60).status_code == 403
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) in (0, 130)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone"], "gone: there is no such folder"),
        (["."], ". holds no run"),
        (["run", "--port", "70000"], "--port 70000: cannot listen there: bind(): port must"),
        (["run", "--port", "{taken}"], "cannot listen there: Address already in use; choose another port"),
        (["run", "--host", "192.0.2.1"], "cannot listen there"),
        ([], "runs"),
    ],
)
def test_folders_without_runs_and_taken_ports_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lit_rlvr: CLI, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with open_socket("127.0.0.1", 0) as taken:
        if arguments[:1] == ["run"]:
            make_run(tmp_path / "run")
        result = lit_rlvr("watch", *(word.format(taken=taken.getsockname()[1]) for word in arguments))
    assert (result.status, message in result.err, result.err.count("\n")) == (2, True, 1)


def test_programs_get_the_same(tmp_path: Path, lit_rlvr: CLI) -> None:
    run = make_run(tmp_path / "run", metrics=METRICS | {6: {"train/skipped_steps": 1.0}})
    ((name, state),) = json.loads(lit_rlvr("watch", run, "--json").out).items()
    (finding,) = state.pop("findings")
    assert name == str(run) and finding["title"] == "Optimizer steps were skipped"
    assert state == {"state": "finished", "line": "finished after 6 steps", "step": 6, "steps": 6, "learnt": ""}
