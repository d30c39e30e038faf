"""`lit-rlvr watch` as a user starts it, and its table in the terminal."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from made_runs import METRICS, make_run

from lit_rlvr.commands.watch.command import open_socket, runs_table, show_runs, sparkline
from lit_rlvr.commands.watch.follow import FollowedFolders
from lit_rlvr.common.terminal import Terminal

CLI = Callable[..., Any]


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


def test_a_browser_that_comes_before_the_server_waits() -> None:
    """The address is printed before the server runs."""
    with open_socket("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname(), timeout=60):
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone"], "gone: there is no such folder"),
        (["."], ". holds no run"),
        (["run", "--port", "70000"], "--port: 70000 is not a port"),
        (["run", "--port", "{taken}"], "cannot listen there: Address already in use; choose another port"),
        (["run", "--host", "192.0.2.1"], "cannot listen there"),
        ([], "runs"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lit_rlvr: CLI, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with open_socket("127.0.0.1", 0) as taken:
        if arguments[:1] == ["run"]:
            make_run(tmp_path / "run")
        result = lit_rlvr("watch", *(word.format(taken=taken.getsockname()[1]) for word in arguments))
    assert result.status == 2 and message in result.err and result.err.count("\n") == 1


def test_the_terminal_shows_runs_and_findings(tmp_path: Path, lit_rlvr: CLI) -> None:
    make_run(tmp_path / "run", metrics=METRICS | {6: {"train/no_signal": 0.99, "rollout/reward": 0.8}})
    result = lit_rlvr("watch", tmp_path, "--terminal")
    assert result.status == 0, result.err
    words = " ".join(result.out.split())
    for shown in ("finished after 6", "reward", "▁", "Most prompts give no signal", "harder prompts"):
        assert shown in words, result.out


def test_programs_get_the_same(tmp_path: Path, lit_rlvr: CLI) -> None:
    run = make_run(tmp_path / "run", metrics=METRICS | {6: {"train/no_signal": 0.99}})
    result = lit_rlvr("watch", run, "--json")
    ((name, state),) = json.loads(result.out).items()
    (finding,) = state.pop("findings")
    assert name == str(run) and finding["title"] == "Most prompts give no signal"
    assert state == {"state": "finished", "line": "finished after 6 steps", "step": 6, "steps": 6}


def test_the_terminal_renews_itself(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    folders, over, out = FollowedFolders([tmp_path]), threading.Event(), StringIO()
    console = Terminal(file=out, force_terminal=True, width=160)
    thread = threading.Thread(target=show_runs, args=(folders, over, 0.01, console))
    thread.start()
    make_run(tmp_path / "later")
    while "later" not in out.getvalue():
        assert thread.is_alive()
    over.set()
    thread.join()


def test_a_hostile_name_does_not_control_the_terminal(tmp_path: Path) -> None:
    make_run(tmp_path / "run\x1b[2J")
    out = StringIO()
    Terminal(file=out, force_terminal=False).print(runs_table(FollowedFolders([tmp_path])))
    assert "\x1b" not in out.getvalue()


@pytest.mark.parametrize(
    ("values", "width", "bars"),
    [([0, 1], 12, "▁█"), ([1, 1], 12, "▄▄"), ([0, 1, 2, 3, 4, 5, 6, 7], 12, "▁▂▃▄▅▆▇█"), ([9, 0, 9, 1], 2, "▁█")],
)
def test_bars_follow_the_values(values: list[float], width: int, bars: str) -> None:
    assert sparkline(values, width) == bars
