"""`fit --servers N`: which GPUs serve and which train, what is refused, and a real run on the CPU."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any

import pytest
from tiny_runs import CLI, child_environment, launch

from lit_rlvr.cli import servers
from lit_rlvr.cli.lightning_cli import ConfigCheck
from lit_rlvr.cli.servers import URLS_VARIABLE, LocalServer, servers_beside
from lit_rlvr.engines.client import ENDED_VARIABLE, VLLMServer, wait_for, why_ended
from lit_rlvr.engines.vllm import GPU_SEQUENCES
from lit_rlvr.errors import UserError
from lit_rlvr.rollout.preflight.sizes import sequences_per_server

RUN = ["--config", "quickstart", "--model.init_args.model", "tiny-llama", "--trainer.precision", "bf16-mixed"]
Build = Callable[[Any], Any]


class RecordedServer:
    """A server that is never started."""

    started: list[tuple[list[str], str]] = []  # noqa: RUF012  # emptied by each test

    def __init__(self, url: str, command: list[str], environment: dict[str, str], output: Path) -> None:
        self.started.append((command, environment.get("CUDA_VISIBLE_DEVICES", "")))
        self.process = subprocess.Popen(["true"])
        self.is_wanted = True


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[list[str], str]]:
    """A machine with four GPUs; the servers that were started on it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr(servers, "LocalServer", RecordedServer)
    monkeypatch.setattr(RecordedServer, "started", [])
    for name in (
        URLS_VARIABLE,
        ENDED_VARIABLE,
        "CUDA_VISIBLE_DEVICES",
    ):  # set here, so that they are restored afterwards
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return RecordedServer.started


@pytest.fixture(scope="module")
def parser() -> ConfigCheck:
    return ConfigCheck()


@pytest.fixture(scope="module")
def build(parser: ConfigCheck) -> Build:
    """Returns the objects of the run, which are built once, whatever further options say."""
    built = parser.build(parser.parse(RUN))
    return lambda _: built


@pytest.fixture
def settings(parser: ConfigCheck) -> Callable[..., Any]:
    """Parses the settings of the run with further options."""
    return lambda *arguments: parser.parse([*RUN, *arguments])


def test_the_last_gpus_serve_and_the_others_train(
    four_gpus: list[tuple[list[str], str]], build: Build, settings: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with servers_beside("2", settings(), build) as options:
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
        assert [gpu for _, gpu in four_gpus] == ["2", "3"]
        urls = json.loads(os.environ[URLS_VARIABLE])
        for (command, _), url in zip(four_gpus, urls, strict=True):
            assert command[:6] == ["serve", "--model", "tiny-llama", "--dtype", "bfloat16", "--port"]
            assert command[7:] == ["--nccl", "--max-num-seqs", "64"] and url.endswith(f":{command[6]}")
        assert (
            options[1] == "VLLMServerEngine" and options[3] == f"[{', '.join(urls)}]" and options[5] == "NCCLTransfer"
        )
        with servers_beside("2", settings(), build) as options_of_second:
            assert options_of_second == options and len(four_gpus) == 2, "only the first process starts servers"
    assert not {URLS_VARIABLE, ENDED_VARIABLE, "CUDA_VISIBLE_DEVICES"} & {*os.environ}, "as they were before"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,4,5,6")
    with servers_beside("1", settings(), build):
        assert four_gpus[-1][1] == "6" and os.environ["CUDA_VISIBLE_DEVICES"] == "7,4,5"


def test_each_server_generates_its_share_at_once(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    built = build(None)

    def share(servers: int) -> int:
        return sequences_per_server(built.rollout, built.model, built.data, servers)

    assert (share(1), share(3)) == (128, 48), "of 16 prompts with 8 completions; a group stays together"
    monkeypatch.setattr(built.rollout, "staleness", 1)
    assert share(1) == 256, "groups of two iterations are in flight"
    monkeypatch.setattr(built.data, "prompts_per_rollout", 512)
    assert share(1) == GPU_SEQUENCES
    monkeypatch.setattr(built.data, "prompts_per_rollout", 2)
    assert share(1) == 2 * 128, "validation asks for more than a rollout"


def test_the_plan_says_what_each_server_generates_at_once(lit_rlvr: CLI) -> None:
    plan = ("plan", "--config", "quickstart", "--model.init_args.model", "tiny-llama", "--gpus", "1x80GB")
    line_of_fit = ("--ckpt_path", "last", "--overwrite=false")
    printed = lit_rlvr(*plan, *line_of_fit, "--servers", 2, status=0).out
    assert "Servers: lit-rlvr serve --max-num-seqs 64\n" in printed
    assert "Servers:" not in lit_rlvr(*plan, status=0).out


@pytest.mark.parametrize(
    ("count", "arguments", "message"),
    [
        ("0", (), "--servers: '0' is no number of servers"),
        ("two", (), "--servers: 'two' is no number of servers"),
        ("4", (), "--servers: 4 of 4 GPU(s) leave none to train on"),
        ("1", ("--trainer.num_nodes", "2"), "--servers: it is for one machine"),
        ("1", ("--rollout.engine", "hf"), "rollout.engine: --servers sets it"),
    ],
)
def test_what_cannot_be_is_refused(
    count: str,
    arguments: tuple[str, ...],
    message: str,
    build: Build,
    settings: Callable[..., Any],
    four_gpus: list[tuple[list[str], str]],
) -> None:
    with pytest.raises(UserError) as error, servers_beside(count, settings(*arguments), build):
        pass
    assert str(error.value).startswith(message) and not four_gpus


def test_under_a_launcher_it_is_refused(
    four_gpus: list[tuple[list[str], str]], build: Build, settings: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    with (
        pytest.raises(UserError, match="torchrun or Slurm has started this process"),
        servers_beside("1", settings(), build),
    ):
        pass


@pytest.mark.parametrize(
    ("statuses", "answered", "says", "ends"),
    [
        ([2], [None], "refuses its options", 1),
        ([1, 1, 1], [None] * 3, "status 1 3 times in a row, each time before it had answered for 10 minutes", 3),
        ([1, 1, 7, 7, 7], [None] * 5, "status 7 3 times", 5),
        ([1, 1, 1, 1, 1, 1], [None, 5.0, 601.0, 5.0, None, 590.0], "status 1 3 times", 6),
        ([9] * 3, [30.0] * 3, "status 9 3 times", 3),
    ],
)
def test_a_server_that_ends_is_said_with_its_last_lines(
    statuses: list[int],
    answered: list[float | None],
    says: str,
    ends: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without this, the run waits for the engine's timeout of half an hour. Each process of the run knows why."""
    started: list[int] = []

    def end_at_once(command: list[str], log: IO[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        started.append(statuses[len(started)])
        return subprocess.Popen(["bash", "-c", f"echo an old option; echo --bad; exit {started[-1]}"], stdout=log)

    def wait(self: LocalServer) -> int:
        seconds = answered[len(started) - 1]
        self.answered_at = None
        if seconds is not None:
            self.answered_at = time.monotonic() - seconds
        return self.process.wait()

    monkeypatch.setattr(servers, "start_command", end_at_once)
    monkeypatch.setattr(servers, "RESTART_SECONDS", 0)
    monkeypatch.setattr(LocalServer, "_wait", wait)
    monkeypatch.setenv(ENDED_VARIABLE, str(tmp_path))
    monkeypatch.setattr("lit_rlvr.common.log.log.propagate", True)
    output, url = tmp_path / "servers.log", "http://127.0.0.1:1"
    output.write_text("of another server\n")
    server = LocalServer(url, ["serve"], {}, output)
    deadline = time.monotonic() + 60
    while why_ended(url) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    server.is_wanted = False
    assert len(started) == ends and says in caplog.text
    assert caplog.text.count("and is started again: an old option | --bad") == ends - 1
    assert "of another server" not in caplog.text
    with pytest.raises(UserError, match=rf"{says}.*: an old option \| --bad"):
        wait_for([VLLMServer(url, None, 1800.0)], least=1)
    (note,) = tmp_path.glob("http*")
    assert says in note.read_text(), "other processes of the run read it"


def test_a_server_that_lives_is_asked_whether_it_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            process.kill()

        def log_message(self, *_: Any) -> None:
            pass

    process = subprocess.Popen(["sleep", "60"])
    monkeypatch.setattr(servers, "start_command", lambda *_: process)
    monkeypatch.setattr(servers, "RESTART_SECONDS", 0.1)
    monkeypatch.setattr(LocalServer, "_watch", lambda self: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), Health) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        server = LocalServer(f"http://127.0.0.1:{http.server_port}", ["serve"], {}, tmp_path / "servers.log")
        assert server._wait() == -9 and server.answered_at is not None
        http.shutdown()
    assert server._wait() == -9 and server.answered_at is None, "of each process anew"


def test_servers_without_a_number_are_refused(run_folder: Path) -> None:
    done = launch(["fit", "--config", "quickstart", "--servers"], run_folder)
    assert done.returncode == 2
    assert done.stderr == "lit-rlvr: error: --servers: '' is no number of servers; give 1 or more\n"


@pytest.mark.slow
def test_two_processes_train_on_a_server_that_ends_with_them(run_folder: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "lit_rlvr", "fit", "--servers", "1", "--config", "tiny.yaml", "--config",
         "strategy/ddp_cpu", "--trainer.limit_val_batches", "0", "--trainer.max_steps", "2",
         "--rollout.engine", "auto"],
        cwd=run_folder, env=child_environment(), capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    summary = json.loads((run_folder / "run/summary.json").read_text())
    assert summary["engine"] == "vllmserver" and summary["steps"] >= 2
    port = run.stderr.partition("http://127.0.0.1:")[2].partition(" ")[0]
    lines = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert port.isdecimal() and f"--port={port}" not in lines
    assert (run_folder / "run/servers.log").is_file()
