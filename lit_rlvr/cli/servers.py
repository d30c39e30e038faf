"""`lit-rlvr fit --servers N`: N vLLM servers on this machine generate for the run, each on a GPU of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from lit_rlvr.common.launch import launched_rank
from lit_rlvr.common.log import log
from lit_rlvr.common.paths import expanded
from lit_rlvr.engines.client import ENDED_VARIABLE, VLLMServer, note_end, wait_for
from lit_rlvr.engines.server import ROUTES_OPTION
from lit_rlvr.errors import UserError
from lit_rlvr.evaluation.processes import start_command, stop_commands
from lit_rlvr.policy.precision import auto_precision, compute_dtype
from lit_rlvr.rollout.preflight.sizes import sequences_per_server
from lit_rlvr.run.run import DEFAULT_FOLDER

LOOPBACK = "127.0.0.1"
"""The servers are reached from this machine alone: who reaches one can replace its weights."""
SERVERS = "--servers"
"""Option of `fit`; the saved config has the engine that it stands for."""
URLS_VARIABLE = "LIT_RLVR_SERVERS"
"""Environment variable with the servers' URLs, for the run's other processes."""
OUTPUT = "servers.log"
"""File in the run folder with what the servers print."""
RESTART_SECONDS = 10
MAX_FAILED_STARTS = 3
"""A server that has ended so often in a row with the same status, each time early, is not started again."""
STEADY_SECONDS = 600
"""A server that ends sooner than this after its first answer, or has none, ends early."""
LAST_LINES = 3
"""How many of a server's last lines are repeated when it ends."""
MOST_CHARACTERS = 300
"""How much of each line is repeated: its end."""
REFUSED = 2
"""Status of a server that refuses its options, which a new start would not cure."""


@contextmanager
def servers_beside(count: str, config: Any, build: Callable[[Any], Any], dry: bool = False) -> Iterator[list[str]]:
    """Start servers that end with this process; yield the options of `fit` that use them.

    Args:
        count: how many, as the user wrote it.
        config: the parsed settings of the run.
        build: builds the objects of settings.
        dry: check and start nothing, for a dry run.

    Raises:
        UserError: the settings or the machine's GPUs do not allow it.
    """
    if URLS_VARIABLE in os.environ:  # Lightning starts the other processes by the same command
        yield _engine_options(json.loads(os.environ[URLS_VARIABLE]))
        return
    number = _checked(count, config)
    gpus = _visible_gpus()
    serving = gpus[len(gpus) - number :]
    ports = _free_ports(number)
    urls = []
    for port in ports:
        urls.append(f"http://{LOOPBACK}:{port}")
    if dry:
        yield _engine_options(urls)
        return
    folder = expanded(config.trainer.default_root_dir or DEFAULT_FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    output = folder.absolute() / OUTPUT
    built = build(config.clone())
    sequences = sequences_per_server(built.rollout, built.model, built.data, number)
    before = dict(os.environ)
    notes = TemporaryDirectory(prefix="lit-rlvr-servers-")
    os.environ[ENDED_VARIABLE] = notes.name
    servers = []
    for k, port in enumerate(ports):
        environment = dict(os.environ)  # before this process gives up GPUs below
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = serving[k]
        command = _serve_command(config, port, sequences, on_gpu=bool(gpus))
        servers.append(LocalServer(urls[k], command, environment, output))
    os.environ[URLS_VARIABLE] = json.dumps(urls)
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[: len(gpus) - number])
    where = ", ".join(f"GPU {name}" for name in serving) or "the CPU"
    log.info("servers: %s on %s; the run waits until they have loaded the model (%s)", ", ".join(urls), where, output)
    try:
        yield _engine_options(urls)
    finally:
        for server in servers:
            server.is_wanted = False
        stop_commands([server.process for server in servers])
        notes.cleanup()
        for name in (URLS_VARIABLE, ENDED_VARIABLE, "CUDA_VISIBLE_DEVICES"):
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]


def _checked(count: str, config: Any) -> int:
    """Return the number of servers, if settings and machine allow for it."""
    if not count.isdecimal() or int(count) < 1:
        raise UserError(f"{SERVERS}: {count!r} is no number of servers; give 1 or more")
    if launched_rank() is not None:
        raise UserError(
            f"{SERVERS}: torchrun or Slurm has started this process; start `lit-rlvr fit` by itself, or servers by "
            "`lit-rlvr serve` (docs/scale.md)"
        )
    if config.trainer.num_nodes > 1:
        raise UserError(f"{SERVERS}: it is for one machine; for several use configs/slurm/servers.sbatch")
    engine = str(getattr(config.rollout.engine, "class_path", config.rollout.engine))
    if engine != "auto" and not engine.endswith("VLLMServerEngine"):
        raise UserError(f"rollout.engine: {SERVERS} sets it; leave one of them out")
    gpus = len(_visible_gpus())
    if 0 < gpus <= int(count):
        raise UserError(f"{SERVERS}: {count} of {gpus} GPU(s) leave none to train on")
    return int(count)


def _visible_gpus() -> list[str]:
    """Return the names by which CUDA_VISIBLE_DEVICES calls the GPUs of this process."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    if given is None:
        gpus = []
        for k in range(count):
            gpus.append(str(k))
        return gpus
    return given.split(",")[:count]


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now."""
    sockets = []
    for _ in range(count):
        sockets.append(socket.create_server((LOOPBACK, 0)))
    ports = []
    for listener in sockets:
        ports.append(listener.getsockname()[1])
    for listener in sockets:
        listener.close()
    return ports


def _serve_command(config: Any, port: int, sequences: int, on_gpu: bool) -> list[str]:
    """Return the command of a server that generates what the run asks for."""
    model = config.model.init_args
    precision = config.trainer.precision
    if precision == "auto":
        precision = auto_precision(config.trainer.accelerator)
    dtype = str(compute_dtype(str(precision))).removeprefix("torch.")
    command = ["serve", "--model", str(model.model), "--dtype", dtype, "--port", str(port)]
    if model.config_overrides:
        command += ["--config-overrides", json.dumps(model.config_overrides)]
    if on_gpu:
        command += ["--nccl", "--max-num-seqs", str(sequences)]
    if config.rollout.deterministic and on_gpu:
        command.append("--deterministic")
    if config.rollout.replay_routes:
        command.append(ROUTES_OPTION)
    return command


def _engine_options(urls: Sequence[str]) -> list[str]:
    transfer = "FileTransfer"
    if torch.cuda.device_count():
        transfer = "NCCLTransfer"
    options = {"urls": f"[{', '.join(urls)}]", "transfer": transfer}
    arguments = ["--rollout.engine", "VLLMServerEngine"]
    for name, value in options.items():
        arguments += [f"--rollout.engine.init_args.{name}", value]
    return arguments


class LocalServer:
    """A server that is started again if it crashes, as long as it is wanted; it ends with this process.

    Args:
        url: the server's URL.
        command: the arguments of `lit-rlvr`.
        environment: the environment variables of the server.
        output: file that gets its messages.

    Attributes:
        process: the server's process.
        answered_at: when this process was first seen to answer, in seconds of the monotonic clock; None = never.
        is_wanted: whether to start it again.
    """

    def __init__(self, url: str, command: list[str], environment: dict[str, str], output: Path) -> None:
        self.url = url
        self.command = command
        self.environment = environment
        self.output = output
        self.is_wanted = True
        self.answered_at: float | None = None
        self.process = self._start()
        threading.Thread(target=self._watch, name="server", daemon=True).start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.output.open("a") as file:
            self._begin = file.tell()
            return start_command(self.command, file, self.environment)

    def _last_lines(self) -> str:
        """Return the last lines that servers have printed since this one began, as one line."""
        with self.output.open(errors="replace") as file:
            file.seek(self._begin)
            lines = []
            for line in file:
                if line.strip():
                    lines.append(line.strip())
        return " | ".join(line[-MOST_CHARACTERS:] for line in lines[-LAST_LINES:])

    def _wait(self) -> int:
        """Return the status with which the process ends; note when it has answered first."""
        self.answered_at = None
        asked = [VLLMServer(self.url, None, RESTART_SECONDS)]
        while True:
            try:
                return self.process.wait(RESTART_SECONDS)
            except subprocess.TimeoutExpired:
                if self.answered_at is None and wait_for(asked, least=0):
                    self.answered_at = time.monotonic()

    def _ended_early(self) -> bool:
        """Return whether the process that has just ended was of little use."""
        return self.answered_at is None or time.monotonic() - self.answered_at < STEADY_SECONDS

    def _end(self, reason: str) -> None:
        """Leave the server ended."""
        message = f"{reason}: {self._last_lines()}"
        log.warning("%s: %s", self.url, message)
        note_end(self.url, message)

    def _watch(self) -> None:
        """Start the server again when it has crashed; the engine does without it meanwhile."""
        wakes = threading.Event()
        failed: list[int] = []  # statuses of the last processes, which have all ended early
        while True:
            status = self._wait()
            if not self.is_wanted:
                return
            if status == REFUSED:
                self._end("the server refuses its options")
                return
            if self._ended_early():
                failed.append(status)
            else:
                failed.clear()
            if failed[-MAX_FAILED_STARTS:] == [status] * MAX_FAILED_STARTS:
                self._end(
                    f"the server has ended with status {status} {MAX_FAILED_STARTS} times in a row, each time before "
                    f"it had answered for {STEADY_SECONDS / 60:g} minutes"
                )
                return
            log.warning(
                "%s: the server has ended with status %d and is started again: %s (%s)",
                self.url,
                status,
                self._last_lines(),
                self.output,
            )
            wakes.wait(RESTART_SECONDS)
            if self.is_wanted:
                self.process = self._start()
