"""The console script: runs a command, and prints every expected error as one line."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from lit_rlvr import __version__
from lit_rlvr.cli.commands import COMMANDS, WITHOUT_RESULT
from lit_rlvr.errors import user_line
from lit_rlvr.printable import one_line

EXPECTED_WARNINGS = (
    ".*does not have many workers.*",  # the loaders yield lists of tokens; there is nothing to parallelise
    ".*overridden `transfer_batch_to_device`.*",
    ".*args parameter is intended to run from within Python.*",
    ".*sync_dist=True.*",  # metrics are summed over ranks before they are logged
    ".*in eval mode at the start of training.*",  # the policy has no dropout on purpose
    ".*reduce_op.*",
    ".*LeafSpec.*",
    ".*Total length of .* across ranks is zero.*",  # no validation set, which we report once
    ".*assuming the intent is to load in a single process.*",  # a sharded checkpoint is read whole
    ".*dataloader is not resumable.*",  # its position is the data module's cursor
)
"""Warnings of Lightning and torch about things done here on purpose."""


def main() -> None:
    """Run `lit-rlvr` with the process's arguments and exit with its status."""
    # Threads that spin while waiting would take cores from vLLM and the reward workers.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _watch_exits()
    try:
        status = run(sys.argv[1:])
    except KeyboardInterrupt:  # while packages are imported
        status = _interrupted()
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status.

    0 done, 1 a check failed, 2 bad input, 128 + n stopped by signal n.
    """
    as_json = "--json" in arguments
    arguments = [argument for argument in arguments if argument != "--json"]
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(f"lit-rlvr {__version__}")
        return 0
    command = arguments[0]
    if command not in COMMANDS:
        return _print_error(f"there is no command {command!r}; commands: {', '.join(COMMANDS)}")
    if as_json and command in WITHOUT_RESULT:
        return _print_error(f"--json: {command} has no result to print; leave it out")
    sys.path.append(str(Path.cwd()))  # a user's own modules; appended, so that they cannot shadow ours
    _set_up_output()
    from lit_rlvr.cli.failure_line import TRACEBACK, failure_line
    from lit_rlvr.distributed.collectives import is_first_process
    from lit_rlvr.run.stop import RunStopped
    from lit_rlvr.terminal import results_as_json

    try:
        with results_as_json(as_json):
            return import_module(COMMANDS[command][0]).run(command, list(arguments[1:])) or 0
    except RunStopped as error:
        if is_first_process():
            print(f"lit-rlvr: {error}{'; resume with --ckpt_path last' if error.saved else ''}", file=sys.stderr)
        return 128 + error.signal_number
    except KeyboardInterrupt:
        return _interrupted()
    except SystemExit as error:  # Lightning raises it on Ctrl-C
        if isinstance(error.__context__, KeyboardInterrupt):
            return _interrupted()
        if isinstance(error.__context__, BrokenPipeError):  # rich raises it when a reader such as `head` has gone
            return 128 + signal.SIGPIPE
        frames = traceback.extract_tb(error.__traceback__)
        # --help and the like; not always the last frame: W&B, for one, puts a function of its own around sys.exit
        if any(frame.filename == argparse.__file__ and frame.name == "exit" for frame in frames):
            raise
        last = frames[-1]
        return _fail(f"{user_line(error) or f'{last.filename}:{last.lineno}'}: sys.exit({error.code!r}) ended the run")
    except Exception as error:
        line = failure_line(error)
        if line is None:
            raise
        if os.environ.get(TRACEBACK):
            traceback.print_exception(error)
        return _fail(line)


def _watch_exits() -> None:
    """Keep `os._exit(0)` in a user's code, which cannot be caught, from looking like success: the process then exits
    with status 2 and reports the line. Forks of this process are not affected."""
    leave, ours = os._exit, os.getpid()

    def leave_watched(status: int) -> NoReturn:
        if status == 0 and os.getpid() == ours:
            caller = sys._getframe(1)
            where = f"{caller.f_code.co_filename}:{caller.f_lineno}"
            print(f"lit-rlvr: error: {where}: os._exit(0) ended the run", file=sys.stderr, flush=True)
            leave(2)
        leave(status)

    os._exit = leave_watched


def _interrupted() -> int:
    print("lit-rlvr: interrupted", file=sys.stderr)
    return 130


def usage() -> str:
    """The top-level help."""
    lines = [f"  {name:10} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "lit-rlvr: reinforcement learning with verifiable rewards on Lightning",
            "",
            "usage: lit-rlvr COMMAND [options]      (lit-rlvr COMMAND --help lists them)",
            "",
            *lines,
            "",
            "first run: lit-rlvr fit --config quickstart",
            "options:   lit-rlvr help COMMAND; with --json a command prints its result as one JSON document",
        ]
    )


def _fail(message: str) -> int:
    from lit_rlvr.run.voice import said_by_first

    return 2 if said_by_first(message) else _print_error(message)


def _print_error(message: str) -> int:
    print(f"lit-rlvr: error: {one_line(message)}", file=sys.stderr)
    return 2


def _set_up_output() -> None:
    """Show our messages plainly on stderr, and silence those of other packages."""
    import lightning.pytorch  # noqa: F401  # sets its loggers' levels when first imported
    import rich

    from lit_rlvr.run.voice import FIRST_SPEAKS
    from lit_rlvr.terminal import PlainFormatter

    log = logging.getLogger("lit_rlvr")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter())
    FIRST_SPEAKS.set_up = True
    handler.addFilter(FIRST_SPEAKS)
    rich.reconfigure(markup=False, emoji=False)  # Lightning prints metric names with it, which can contain user text
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it complains about an optional package
    # Reports which process died before killing the others.
    logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
