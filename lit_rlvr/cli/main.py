"""The console script: runs a command, and prints every expected error as one line."""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib import import_module
from typing import TYPE_CHECKING

from lit_rlvr import __version__
from lit_rlvr.cli.user_modules import add_user_modules
from lit_rlvr.commands.registry import COMMANDS, WITHOUT_RESULT
from lit_rlvr.common.did_you_mean import did_you_mean
from lit_rlvr.common.log import log
from lit_rlvr.common.resuming import how_to_resume, running
from lit_rlvr.common.terminal import discard_output, one_line
from lit_rlvr.common.user_code import user_line
from lit_rlvr.errors import RunStopped, UserError, shorten_line, was_caused_by

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


def main() -> None:
    """Run `lit-rlvr` with the process's arguments and exit with its status."""
    # Threads that spin while waiting would take cores from vLLM and the reward workers.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    stdout = sys.stdout  # a reward may set another; None if the shell has closed it
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Until `run` has imported the command: some packages swallow the exception and stay half imported.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        try:
            status = run(sys.argv[1:])
        except SystemExit as error:  # --help and the like
            status = error.code  # type: ignore[assignment]
        if stdout is not None:
            stdout.flush()
    except Exception as error:
        if _reader_has_gone(error):
            for output in _closed_outputs():  # Python flushes them when it exits
                discard_output(output)
            status = 128 + signal.SIGPIPE
        elif isinstance(error, OSError):
            discard_output(1)
            status = _print_error(f"the output cannot be written: {error.strerror}")
        else:
            raise
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status.

    0 done, 1 a check failed, 2 bad input, 75 (`START_AGAIN`) a failure that a new process gets over, 128 + n stopped by
    signal n (SIGPIPE: the reader of its output has gone).
    """
    as_json = "--json" in arguments
    arguments = [argument for argument in arguments if argument != "--json"]
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    command = arguments[0] if arguments else "--help"
    try:
        others = _commands_of_others(command)
        status = _answer_at_once(command, arguments[1:], others, as_json)
        if status is not None:
            return status
        add_user_modules()
        _check_early(command, arguments[1:])
    except UserError as error:
        return _print_error(str(error))
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    _set_up_output()
    from lit_rlvr.common.terminal import results_as_json

    with running(command):
        try:
            with results_as_json() if as_json else nullcontext():
                return _call(command, arguments[1:], others)
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            return _status_of(error)


def _commands_of_others(command: str) -> Mapping[str, EntryPoint]:
    """Return the commands that other packages register; {} for one of ours, which does not need them."""
    if command in COMMANDS:
        return {}
    from lit_rlvr.common.packages import registered_parts

    return registered_parts("commands", COMMANDS)


def _answer_at_once(
    command: str, arguments: Sequence[str], others: Mapping[str, EntryPoint], as_json: bool
) -> int | None:
    """Answer what needs no import of a command: versions, help, unknown names; return the status, None = go on."""
    if command == "--version":
        print(f"lit-rlvr {__version__}")
        return 0
    if command in ("-h", "--help"):
        print(usage(others))
        return 0
    known = [*COMMANDS, *others]
    if command not in known:
        hint = did_you_mean(command, known, f"commands: {', '.join(known)}")
        return _print_error(f"there is no command {command!r}; {hint}")
    if as_json and command in WITHOUT_RESULT:
        return _print_error(f"--json: {command} has no result to print; leave it out")
    if command in COMMANDS and arguments in (["-h"], ["--help"]):
        from lit_rlvr.cli.early_check import stored_help

        text = stored_help(command)
        if text is not None:
            print(text)
            return 0
    return None


def _check_early(command: str, arguments: Sequence[str]) -> None:
    """Refuse what can be refused before the long imports of a command that takes a config.

    Raises:
        UserError: says what.
    """
    if command in COMMANDS and COMMANDS[command][0] == COMMANDS["fit"][0]:
        from lit_rlvr.cli.early_check import check_early

        check_early(command, arguments)


def _call(command: str, arguments: Sequence[str], others: Mapping[str, EntryPoint]) -> int:
    """Import a command and call it; return its status."""
    from lit_rlvr.common.packages import load_part
    from lit_rlvr.run.rank_zero import silence_other_packages

    if command in COMMANDS:
        action = import_module(COMMANDS[command][0]).run_command
    else:
        action = load_part(others[command])
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    silence_other_packages()
    return action(command, list(arguments)) or 0


def _status_of(error: BaseException) -> int:
    """Print the line of an error that ended a command; return the exit status. Call it while the error is handled.

    Raises:
        BaseException: the error itself, if it is ours and not the user's.
    """
    from lit_rlvr.cli.error_lines import TRACEBACK, failure_line, failure_status, is_lost
    from lit_rlvr.common.launch import is_first_process
    from lit_rlvr.run.rank_zero import leave

    if isinstance(error, RunStopped):
        if is_first_process():
            print(f"lit-rlvr: {error}{f'; {how_to_resume()}' if error.saved else ''}", file=sys.stderr)
        return 128 + error.signal_number
    if isinstance(error, KeyboardInterrupt):
        return _interrupted(error)
    if isinstance(error, SystemExit):
        return _status_of_exit(error)
    assert isinstance(error, Exception)
    line = None if _reader_has_gone(error) else failure_line(error)
    if line is None:
        leave(1)
        raise error
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    return _fail(line, failure_status(error), is_lost(error))


def _status_of_exit(error: SystemExit) -> int:
    """Return the status of a command that called `sys.exit`, as Lightning does on Ctrl-C."""
    if isinstance(error.__context__, KeyboardInterrupt):
        return _interrupted(error.__context__)
    if isinstance(error.__context__, BrokenPipeError):  # rich raises it when a reader such as `head` has gone
        return 128 + signal.SIGPIPE
    frames = traceback.extract_tb(error.__traceback__)
    # --help and the like; not always the last frame: W&B, for one, puts a function of its own around sys.exit
    if any(frame.filename == argparse.__file__ and frame.name == "exit" for frame in frames):
        raise error
    last = frames[-1]
    return _fail(f"{user_line(error) or f'{last.filename}:{last.lineno}'}: sys.exit({error.code!r}) ended the run")


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
    lines = []
    for name, (_, text) in COMMANDS.items():
        lines.append(f"  {name:10} {text}")
    for name, point in others.items():
        lines.append(f"  {name:10} of the package {point.dist.name if point.dist else ''}")
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


def _fail(message: str, status: int = 2, has_lost: bool = False) -> int:
    from lit_rlvr.run.rank_zero import leave, printed_by_another, status_of_failed

    if has_lost:
        return status_of_failed() or _print_error(message, status)
    if not printed_by_another(message):
        _print_error(message)
    leave(status)
    return status


def _print_error(message: str, status: int = 2) -> int:
    for line in message.splitlines():
        print(f"lit-rlvr: error: {shorten_line(one_line(line))}", file=sys.stderr)
    return status


def _set_up_output() -> None:
    """Print our messages plainly on stderr."""
    import rich

    from lit_rlvr.run.rank_zero import show_messages

    rich.reconfigure(markup=False, emoji=False)  # Lightning prints metric names with it, which can contain user text
    log.handlers.clear()
    log.propagate = False
    show_messages()
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
