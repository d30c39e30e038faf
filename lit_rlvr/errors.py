"""`UserError`, which users see as one line, and functions that find the user's code in an exception."""

from __future__ import annotations

import difflib
import inspect
import os
import re
import signal
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parents[1]
OWN_FOLDERS = (_HERE / "lit_rlvr", _HERE / "datamodules")
PYTHON_FOLDERS = (sysconfig.get_path("stdlib"), sysconfig.get_path("scripts"))
PACKAGE_FOLDERS = {"site-packages", "dist-packages"}

MAX_SIZE = 1_000_000
"""Largest value of options that set the size of a list or an array."""

MAX_LINE = 2000
"""Longest line of an error, in characters."""

_MODEL, _SAMPLING = "model.init_args", "rollout.sampling"
OURS = {
    "learning_rate": f"{_MODEL}.lr", "weight_decay": f"{_MODEL}.weight_decay",
    "max_grad_norm": f"{_MODEL}.max_grad_norm",
    "beta": f"{_MODEL}.kl_coef", "kl_loss_coef": f"{_MODEL}.kl_coef",
    "epsilon": f"{_MODEL}.clip_low", "clip_ratio_low": f"{_MODEL}.clip_low", "epsilon_high": f"{_MODEL}.clip_high",
    "clip_ratio_high": f"{_MODEL}.clip_high", "delta": f"{_MODEL}.dual_clip", "clip_ratio_c": f"{_MODEL}.dual_clip",
    "num_iterations": f"{_MODEL}.epochs_per_rollout", "ppo_epochs": f"{_MODEL}.epochs_per_rollout",
    "steps_per_generation": f"{_MODEL}.updates_per_rollout", "ppo_mini_batch_size": f"{_MODEL}.updates_per_rollout",
    "per_device_train_batch_size": f"{_MODEL}.tokens_per_microbatch",
    "gradient_accumulation_steps": f"{_MODEL}.tokens_per_microbatch",
    "ppo_micro_batch_size_per_gpu": f"{_MODEL}.tokens_per_microbatch", "entropy_coeff": f"{_MODEL}.entropy_coef",
    "use_bias_correction_kl": f"{_MODEL}.kl_bias_correction", "peft_config": f"{_MODEL}.lora",
    "lora_rank": f"{_MODEL}.lora", "use_liger_kernel": f"{_MODEL}.liger",
    "vllm_importance_sampling_mode": f"{_MODEL}.importance_correction",
    "vllm_importance_sampling_clip_max": f"{_MODEL}.importance_cap",
    "rollout_token_veto_threshold": f"{_MODEL}.importance_veto",
    "off_policy_mask_threshold": f"{_MODEL}.off_policy_threshold",
    "num_generations": "rollout.group_size", "num_generations_eval": "rollout.eval_samples",
    "max_staleness": "rollout.staleness",
    "mask_truncated_completions": "rollout.mask_truncated", "use_vllm": "rollout.engine",
    "temperature": f"{_SAMPLING}.temperature", "max_completion_length": f"{_SAMPLING}.max_tokens",
    "max_response_length": f"{_SAMPLING}.max_tokens", "max_tool_calling_iterations": f"{_SAMPLING}.max_turns",
    "max_assistant_turns": f"{_SAMPLING}.max_turns", "bf16": "trainer.precision",
}  # fmt: skip
"""Option of TRL or verl -> ours, as docs/coming_from_trl.md explains them."""


class UserError(Exception):
    """Bad input. The message says what is wrong, where (file, row, field, config key) and what to do.

    The command line prints each message as one line and exits with status 2, without a traceback. The constructor
    escapes line breaks and terminal commands in quoted data.

    Args:
        messages: one message or several, each for a line of its own.
    """

    def __init__(self, *messages: str) -> None:
        self.messages = tuple(dict.fromkeys(map(_escaped, messages)))
        super().__init__("\n".join(self.messages))


def check_all(*checks: Callable[[], object]) -> None:
    """Run all checks, then raise one `UserError` with the messages of those that failed.

    Raises:
        UserError: a check failed.
    """
    problems: list[str] = []
    for check in checks:
        try:
            check()
        except UserError as error:
            problems += error.messages
    refuse_all(problems)


def refuse_all(problems: Iterable[str]) -> None:
    """Raise one `UserError` with every problem, if there is any.

    Raises:
        UserError: there is a problem.
    """
    if messages := [*problems]:
        raise UserError(*messages)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return our name for an option of TRL or verl, or else the known name most similar to a name, or else one that
    begins with it; ignore case and dashes."""
    known = list(known)
    if ours := option_instead(name, known):
        return ours
    plain: dict[str, str] = {}
    for other in sorted(known, key=lambda other: (other[:1].isupper() != name[:1].isupper(), other)):
        plain.setdefault(_plain(other), other)
    start = _plain(name)
    longer = [other for other in plain if start and other.startswith(start)]
    found = difflib.get_close_matches(start, plain, 1) or longer
    return plain[found[0]] if found else None


def option_instead(name: str, known: Iterable[str]) -> str | None:
    """Return our option for one of TRL or verl, as it is called among the known ones, or if they have its group."""
    ours = OURS.get(name.rpartition(".")[2].lstrip("-"), "")
    parts, named = ours.split("."), {other.lstrip("-"): other for other in known}
    ends = (named.get(".".join(parts[i:])) for i in range(len(parts)))
    return next(filter(None, ends), ours if parts[0] in named else None)


class RunStopped(Exception):
    """The clean end of a run that received a signal.

    Args:
        signal_number: the signal.
        saved: True if there is a checkpoint to resume from.
    """

    def __init__(self, signal_number: int, saved: bool) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number, self.saved = signal_number, saved


def user_error_in(error: BaseException) -> UserError | None:
    """Return the `UserError` among an exception and its causes; None if there is none (parsers wrap exceptions)."""
    return next((cause for cause in _chain(error, lambda e: e.__cause__) if isinstance(cause, UserError)), None)


def first_line(error: BaseException) -> str:
    """Return an exception's type and the first line of its message, with the next one if the first ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].endswith(":"):
        lines[0] = " ".join(lines[:2])
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def find_user_line(error: BaseException) -> tuple[str, BaseException] | None:
    """Return the user's line that an exception came from, as `my_task.py:12`, and the exception raised there.

    It is the deepest line outside lit-rlvr, the standard library and installed packages, in the exception's traceback
    or else in its cause's.
    """
    for raised in _chain(error, cause_of):
        lines = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(raised.__traceback__)]
        if isinstance(raised, SyntaxError) and raised.filename:
            lines.append((raised.filename, raised.lineno or 0))
        for file, line in reversed(lines):
            if is_user_code(file):
                return f"{shown(file)}:{line}", raised
    return None


def was_caused_by(error: BaseException, kind: type[BaseException]) -> bool:
    """Return whether an exception, or one of its causes and contexts, is of this kind."""
    return any(isinstance(cause, kind) for cause in _chain(error, cause_of))


def _chain(error: BaseException, earlier: Callable[[BaseException], BaseException | None]) -> Iterator[BaseException]:
    """Yield an exception and its causes, each once: threads that raise one exception can close a circle."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = earlier(following)


def user_line(error: BaseException) -> str:
    """Return the line of `find_user_line`; "" if there is none."""
    found = find_user_line(error)
    return found[0] if found else ""


def cause_of(error: BaseException) -> BaseException | None:
    """Return the cause or context of an exception."""
    return error.__cause__ or error.__context__


def defined_at(function: Callable[..., Any]) -> str:
    """Return the name of a function or callable object with its place of definition, as `advantage (my_task.py:12)`."""
    function = inspect.unwrap(function)
    called = function if inspect.isroutine(function) else type(function).__call__
    code = getattr(called, "__code__", None)
    return called.__qualname__ + (f" ({shown(code.co_filename)}:{code.co_firstlineno})" if code else "")


def with_user_line(error: BaseException) -> str:
    """Return `first_line`, after the line of the user's code that it came from, if there is one."""
    return ": ".join(filter(None, (user_line(error), first_line(error))))


def first_line_of(function: object) -> str:
    """Return the first line of a user's function, as `my_task.py:3`; "" if it is not the user's, or not Python."""
    code = getattr(inspect.unwrap(function) if callable(function) else None, "__code__", None)
    if code is None or not is_user_code(code.co_filename):
        return ""
    return f"{shown(code.co_filename)}:{code.co_firstlineno}"


def check_takes(function: Callable[..., Any], *names: str, **others: Any) -> None:
    """Refuse a user's function that does not take these arguments, in order, with others by name.

    Raises:
        UserError: it does not take them; the message names the function, its file and line.
    """
    try:
        inspect.signature(function).bind(*names, **others)
    except ValueError:  # a C function without a signature
        return
    except TypeError as error:
        raise UserError(f"{defined_at(function)} must take ({', '.join(names)}): {error}") from error


def check_calls_super(part: object, where: str) -> None:
    """Refuse an object of a user's class whose `__init__` does not call that of our class, which sets `init_args`.

    Raises:
        UserError: names the `__init__`, its file and line.
    """
    if not hasattr(part, "init_args"):
        raise UserError(f"{where}: {defined_at(type(part).__init__)} must call super().__init__(**kwargs)")


def check_within(interval: str, where: str, **options: float | None) -> None:
    """Refuse numbers outside an interval; None is "not given", and NaN is always outside.

    Args:
        interval: in mathematical notation: "[0, 1)" contains 0 but not 1, "(0, inf)" every finite positive number.
        where: the group of the options, such as `model`.

    Raises:
        UserError: a number is outside; a message names each option, its value and the interval.
    """
    low, high = (float(bound) for bound in interval[1:-1].split(","))

    def within(value: float) -> bool:
        above = low <= value if interval[0] == "[" else low < value
        below = value <= high if interval[-1] == "]" else value < high
        return above and below

    wrong = {name: value for name, value in options.items() if value is not None and not within(value)}
    refuse_all(f"{where}.{name}: {value} must lie in {interval}" for name, value in wrong.items())


def type_text(value: Any) -> str:
    """Return the type of a value for a message: None, "an int", "a list"."""
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0].lower() in 'aeio' else 'a'} {name}"


def bounded(line: str) -> str:
    """Return a line of at most `MAX_LINE` characters, which keeps its beginning and its end."""
    left_out = len(line) - MAX_LINE
    return line if left_out <= 0 else f"{line[:1500]} [{left_out + 100} characters left out] {line[-400:]}"


def _escaped(message: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in bounded(message))


def _plain(name: str) -> str:
    return re.sub("[-_]", "", name).lower()


def shown(path: str | Path) -> str:
    """Return a path for a message: relative to the current directory if it is below it."""
    try:
        below = Path(path).is_relative_to(Path.cwd())
    except FileNotFoundError:  # the current directory was removed
        below = False
    return os.path.relpath(path) if below else str(path)


def is_user_code(file: str) -> bool:
    """Return True for a code file that is neither ours nor installed; code without a file has a name in <>."""
    path = Path(file)
    return not (
        file.startswith("<")
        or PACKAGE_FOLDERS & {*path.parts}
        or any(path.is_relative_to(folder) for folder in (*OWN_FOLDERS, *PYTHON_FOLDERS))
    )
