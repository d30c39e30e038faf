"""The console script: runs a command, and prints every expected error as one line."""

from __future__ import annotations

import argparse
import io
import logging
import os
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from lit_rlvr import __version__
from lit_rlvr.cli.user_modules import add_user_modules
from lit_rlvr.commands.registry import COMMANDS, WITHOUT_RESULT, registered_commands
from lit_rlvr.common.terminal import discard_output, one_line, progress
from lit_rlvr.errors import OWN_FOLDERS, RunStopped, UserError, bounded, did_you_mean, user_line, was_caused_by

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


def main() -> None:
    """Run `lit-rlvr` with the process's arguments and exit with its status."""
    # Threads that spin while waiting would take cores from vLLM and the reward workers.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    while (spare := os.open(os.devnull, os.O_RDWR)) < 3:  # the shell closed it, and the next file would get its number
        continue
    os.close(spare)
    sys.stdout, sys.stderr = (_Output(i).as_text(name) for i, name in ((1, "stdout"), (2, "stderr")))
    stdout = sys.stdout  # a reward may set another
    _watch_exits()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)  # until `run` has imported the command
    try:
        try:
            status = run(sys.argv[1:])
        except SystemExit as error:  # --help and the like
            status = error.code  # type: ignore[assignment]
        stdout.flush()
    except KeyboardInterrupt as error:  # while packages are imported
        status = _interrupted(error)
    except UserError as error:  # the output cannot be written
        status = _print_error(str(error))
    except Exception as error:
        if not _reader_has_gone(error):
            raise
        for output in _closed_outputs():  # Python flushes them when it exits
            discard_output(output)
        status = 128 + signal.SIGPIPE
    sys.exit(status)


class _Output(io.FileIO):
    """Standard output or error of this process; after a write that fails, further output goes nowhere.

    On standard output the failure is a `UserError`: argparse would swallow an `OSError`.

    Args:
        descriptor: 1 or 2.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)

    def as_text(self, name: str) -> io.TextIOWrapper:
        """Return the text stream that replaces `sys.stdout` or `sys.stderr`, with the same encoding and buffering."""
        given = getattr(sys, name)
        if given is None:
            return io.TextIOWrapper(io.BufferedWriter(self))
        at_once = given.line_buffering or given.write_through
        return io.TextIOWrapper(io.BufferedWriter(self), given.encoding, given.errors, line_buffering=at_once)

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            discard_output(self.fileno())
            if self.fileno() == 1:
                raise UserError(f"the output cannot be written: {error.strerror}") from error
            return super().write(data)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status.

    0 done, 1 a check failed, 2 bad input, 128 + n stopped by signal n (SIGPIPE: the reader of its output has gone).
    """
    as_json = "--json" in arguments
    arguments = [argument for argument in arguments if argument != "--json"]
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    command = arguments[0] if arguments else "--help"
    if command == "--version":
        print(f"lit-rlvr {__version__}")
        return 0
    try:
        others = {} if command in COMMANDS else registered_commands()
    except UserError as error:
        return _print_error(str(error))
    if command in ("-h", "--help"):
        print(usage(others))
        return 0
    if command not in {*COMMANDS, *others}:
        known = [*COMMANDS, *others]
        hint = did_you_mean(command, known, f"commands: {', '.join(known)}")
        return _print_error(f"there is no command {command!r}; {hint}")
    if as_json and command in WITHOUT_RESULT:
        return _print_error(f"--json: {command} has no result to print; leave it out")
    if command in COMMANDS and arguments[1:] in (["-h"], ["--help"]):
        from lit_rlvr.cli.early_check import stored_help

        if (text := stored_help(command)) is not None:
            print(text)
            return 0
    add_user_modules()
    if command in COMMANDS and COMMANDS[command][0] == COMMANDS["fit"][0]:
        from lit_rlvr.cli.early_check import check_early

        try:
            check_early(command, arguments[1:])
        except UserError as error:
            return _print_error(str(error))
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    _set_up_output()
    from lit_rlvr.cli.error_lines import TRACEBACK, failure_line
    from lit_rlvr.common.launch import is_first_process
    from lit_rlvr.common.packages import load_part
    from lit_rlvr.common.terminal import results_as_json
    from lit_rlvr.run.rank_zero import silence_other_packages

    try:
        with results_as_json(as_json):
            action = import_module(COMMANDS[command][0]).run if command in COMMANDS else load_part(others[command])
            if signal.getsignal(signal.SIGINT) is _leave:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            silence_other_packages()
            return action(command, list(arguments[1:])) or 0
    except RunStopped as error:
        if is_first_process():
            print(f"lit-rlvr: {error}{'; resume with --ckpt_path last' if error.saved else ''}", file=sys.stderr)
        return 128 + error.signal_number
    except KeyboardInterrupt as error:
        return _interrupted(error)
    except SystemExit as error:  # Lightning raises it on Ctrl-C
        if isinstance(error.__context__, KeyboardInterrupt):
            return _interrupted(error.__context__)
        if isinstance(error.__context__, BrokenPipeError):  # rich raises it when a reader such as `head` has gone
            return 128 + signal.SIGPIPE
        frames = traceback.extract_tb(error.__traceback__)
        # --help and the like; not always the last frame: W&B, for one, puts a function of its own around sys.exit
        if any(frame.filename == argparse.__file__ and frame.name == "exit" for frame in frames):
            raise
        last = frames[-1]
        return _fail(f"{user_line(error) or f'{last.filename}:{last.lineno}'}: sys.exit({error.code!r}) ended the run")
    except Exception as error:
        line = None if _reader_has_gone(error) else failure_line(error)
        if line is None:
            raise
        if os.environ.get(TRACEBACK):
            traceback.print_exception(error)
        return _fail(line)


def _watch_exits() -> None:
    """Make `os._exit` in code other than ours, which nobody can catch, end the process with status 2 and a message.

    Without this, status 0 would look like success: `os._exit` runs no exit handler and no `finally`, so that only a
    replaced function sees it. Forks of this process are not affected.
    """
    leave, ours = os._exit, os.getpid()

    def leave_watched(status: int) -> NoReturn:
        caller = sys._getframe(1)
        file = caller.f_code.co_filename
        if os.getpid() == ours and not any(Path(file).is_relative_to(folder) for folder in OWN_FOLDERS):
            where = f"{file}:{caller.f_lineno}"
            rewards = "".join(f"reward {name}: " for name in list(progress.waiting))
            print(f"lit-rlvr: error: {rewards}{where}: os._exit({status}) ended the run", file=sys.stderr, flush=True)
            leave(2)
        leave(status)

    os._exit = leave_watched


def _leave(*_: Any) -> NoReturn:
    """End the process on Ctrl-C during imports: some packages swallow the exception and stay half imported."""
    print("lit-rlvr: interrupted", file=sys.stderr, flush=True)
    os._exit(128 + signal.SIGINT)


def _interrupted(error: KeyboardInterrupt) -> int:
    """Print that Ctrl-C, or the signal of a `StoppedAtOnce`, stopped the run immediately; return the exit status."""
    print(f"lit-rlvr: {error if error.args else 'interrupted'}", file=sys.stderr)
    return 128 + getattr(error, "signal_number", signal.SIGINT)


def _reader_has_gone(error: Exception) -> bool:
    """Return whether an error came from a closed pipe, and stdout or stderr is one: its reader (`head`) has exited."""
    return was_caused_by(error, BrokenPipeError) and bool(_closed_outputs())


def _closed_outputs() -> list[int]:
    outputs = select.poll()
    for output in (1, 2):
        outputs.register(output, 0)
    return [output for output, events in outputs.poll(0) if events & (select.POLLERR | select.POLLHUP)]


def usage(others: Mapping[str, EntryPoint]) -> str:
    """Return the top-level help.

    Args:
        others: the commands of installed packages.
    """
    lines = [f"  {name:10} {text}" for name, (_, text) in COMMANDS.items()]
    lines += [f"  {name:10} of the package {point.dist.name if point.dist else ''}" for name, point in others.items()]
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
    from lit_rlvr.run.rank_zero import printed_by_rank_zero

    return 2 if printed_by_rank_zero(message) else _print_error(message)


def _print_error(message: str) -> int:
    for line in message.splitlines():
        print(f"lit-rlvr: error: {bounded(one_line(line))}", file=sys.stderr)
    return 2


def _set_up_output() -> None:
    """Print our messages plainly on stderr."""
    import rich

    from lit_rlvr.run.rank_zero import show_messages

    rich.reconfigure(markup=False, emoji=False)  # Lightning prints metric names with it, which can contain user text
    log = logging.getLogger("lit_rlvr")
    log.handlers.clear()
    log.propagate = False
    show_messages()
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
