"""`UserError`, which users see as one line, checks of arguments, the user's code in an exception, and the log."""

from __future__ import annotations

import difflib
import errno
import inspect
import logging
import os
import re
import signal
import stat
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import cache, wraps
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

log = logging.getLogger("lit_rlvr")
"""The logger of our messages; `show_messages` of `run/rank_zero.py` prints them."""

_HERE = Path(__file__).parents[1]
OWN_FOLDERS = (_HERE / "lit_rlvr", _HERE / "datamodules")
PYTHON_FOLDERS = (sysconfig.get_path("stdlib"), sysconfig.get_path("scripts"))
PACKAGE_FOLDERS = {"site-packages", "dist-packages"}

MAX_SIZE = 1_000_000
"""Largest value of options that set the size of a list or an array."""

MAX_LINE = 2000
"""Longest line of an error, in characters."""

_MODEL = "model.init_args"
_SAMPLING = "rollout.sampling"
OPTIONS_OF_OTHERS = {
    "learning_rate": f"{_MODEL}.lr", "weight_decay": f"{_MODEL}.optim.weight_decay",
    "max_grad_norm": f"{_MODEL}.optim.max_grad_norm",
    "beta": f"{_MODEL}.kl.coef", "kl_loss_coef": f"{_MODEL}.kl.coef",
    "epsilon": f"{_MODEL}.clip_low", "clip_ratio_low": f"{_MODEL}.clip_low", "epsilon_high": f"{_MODEL}.clip_high",
    "clip_ratio_high": f"{_MODEL}.clip_high", "delta": f"{_MODEL}.dual_clip", "clip_ratio_c": f"{_MODEL}.dual_clip",
    "num_iterations": f"{_MODEL}.epochs_per_rollout", "ppo_epochs": f"{_MODEL}.epochs_per_rollout",
    "steps_per_generation": f"{_MODEL}.updates_per_rollout", "ppo_mini_batch_size": f"{_MODEL}.updates_per_rollout",
    "per_device_train_batch_size": f"{_MODEL}.compute.tokens_per_microbatch",
    "gradient_accumulation_steps": f"{_MODEL}.compute.tokens_per_microbatch",
    "ppo_micro_batch_size_per_gpu": f"{_MODEL}.compute.tokens_per_microbatch",
    "entropy_coeff": f"{_MODEL}.loss.entropy_coef",
    "use_bias_correction_kl": f"{_MODEL}.kl.bias_correction", "peft_config": f"{_MODEL}.lora",
    "lora_rank": f"{_MODEL}.lora", "use_liger_kernel": f"{_MODEL}.compute.liger",
    "vllm_importance_sampling_mode": f"{_MODEL}.importance.correction",
    "vllm_importance_sampling_clip_max": f"{_MODEL}.importance.cap",
    "rollout_token_veto_threshold": f"{_MODEL}.importance.veto",
    "off_policy_mask_threshold": f"{_MODEL}.importance.off_policy_threshold",
    "num_generations": "rollout.group_size", "num_generations_eval": "rollout.evaluation.samples",
    "max_staleness": "rollout.staleness",
    "mask_truncated_completions": "rollout.mask_truncated", "use_vllm": "rollout.engine",
    "temperature": f"{_SAMPLING}.temperature", "max_completion_length": f"{_SAMPLING}.max_tokens",
    "max_response_length": f"{_SAMPLING}.max_tokens", "max_tool_calling_iterations": f"{_SAMPLING}.max_turns",
    "max_assistant_turns": f"{_SAMPLING}.max_turns", "bf16": "trainer.precision",
}  # fmt: skip
"""Option of TRL or verl -> ours, as docs/coming_from_trl.md explains them."""


COUNTED = {"trainer.val_check_interval": "rollouts", "trainer.check_val_every_n_epoch": "epochs"}
"""Options of Lightning's Trainer for when to validate -> what they would count."""


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
    messages = [*problems]
    if messages:
        raise UserError(*messages)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return our name for an option of TRL or verl, or else the known name most similar to a name, or else one that
    begins with it; ignore case and dashes."""
    known = list(known)
    replacement = our_option_for(name, known)
    if replacement:
        return replacement
    plain: dict[str, str] = {}
    for other in sorted(known, key=lambda other: (other[:1].isupper() != name[:1].isupper(), other)):
        plain.setdefault(_plain(other), other)
    start = _plain(name)
    longer = [other for other in plain if start and other.startswith(start)]
    matches = difflib.get_close_matches(start, plain, 1) or longer
    if matches:
        return plain[matches[0]]
    return None


def did_you_mean(name: object, known: Iterable[str], otherwise: str = "") -> str:
    """Return a hint with the nearest of the known names, or else another hint."""
    near = nearest(str(name), known)
    if near:
        return f"did you mean {near!r}?"
    return otherwise


def counted_hint(option: str) -> str:
    """Return a hint about an option of Lightning's for when to validate, by its dotted key; "" for others."""
    if option not in COUNTED:
        return ""
    return (
        f"; it would count {COUNTED[option]}, but trainer.max_steps counts optimizer steps: set "
        "rollout.validate_every_rollouts instead"
    )


def our_option_for(name: str, known: Iterable[str]) -> str | None:
    """Return our option for one of TRL or verl, as it is called among the known ones, or if they have its group."""
    option = OPTIONS_OF_OTHERS.get(name.rpartition(".")[2].lstrip("-"), "")
    parts = option.split(".")
    named = {other.lstrip("-"): other for other in known}
    for start in range(len(parts)):
        end = ".".join(parts[start:])
        if end in named:
            return named[end]
    if parts[0] in named:
        return option
    return None


TYPE_NAMES = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "list": "a list",
    "tuple": "a list", "dict": "a mapping", "Iterable": "a list", "Sequence": "a list", "Mapping": "a mapping",
    "Callable": "a function",
}  # fmt: skip
"""Python type -> its name in messages."""
NUMBER_TYPES: dict[Any, type] = {int: Integral, float: Real}
"""Type of an option -> the numbers that it takes, those of numpy too."""


class ChecksArguments:
    """The base of classes that a config names: from Python, they refuse wrong arguments as the command line does.

    Attributes:
        config_key: the key of a config that the class's options stand under; `{}` in it is the class's name.
    """

    config_key = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        check_init(cls, args, kwargs, cls.config_key.format(cls.__name__))
        return super().__new__(cls)


_C = TypeVar("_C", bound=type)


def checks_arguments(config_key: str) -> Callable[[_C], _C]:
    """Make a dataclass check its arguments as `ChecksArguments` does, which the parser does not take as its base."""

    def decorate(cls: _C) -> _C:
        init = cls.__init__  # type: ignore[misc]

        @wraps(init)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            check_init(cls, args, kwargs, config_key)
            init(self, *args, **kwargs)

        cls.__init__ = __init__  # type: ignore[misc]
        return cls

    return decorate


def option_group(config_key: str) -> Callable[[_C], _C]:
    """Make a frozen dataclass a group of options, which may be a dict in Python: it checks its arguments, and remembers
    which ones were given, so that a class's own defaults can stand in for the others (`with_class_defaults`)."""

    def decorate(cls: _C) -> _C:
        init = checks_arguments(config_key)(cls).__init__  # type: ignore[misc]

        @wraps(init)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            vars(self)["given"] = (*[*inspect.signature(init).parameters][1 : len(args) + 1], *kwargs)
            init(self, *args, **kwargs)

        cls.__init__ = __init__  # type: ignore[misc]
        cls.given = ()  # type: ignore[attr-defined]
        return cls

    return decorate


def check_init(cls: type, args: Sequence[Any], kwargs: Mapping[str, Any], key: str) -> None:
    """Refuse arguments of a class that it has no option for, or that are of another type than annotated.

    Raises:
        UserError: a line for each such argument, with the nearest name if there is no such option.
    """
    if not (args or kwargs):
        return
    known, parameters = init_parameters(cls)
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    given = {**dict(zip(positional, args, strict=False)), **kwargs}  # Python refuses too many without a name
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters) and known.keys() <= {p.name for p in parameters}
    if takes_any:
        problems = []
    else:
        problems = [_no_option(name, cls, known, key) for name in given if name not in known]
    problems += [
        _misfit(value, known[name], f"{key}.{name}")
        for name, value in given.items()
        if name in known and not fits(value, known[name])
    ]
    refuse_all(problems)


@cache
def init_parameters(cls: type) -> tuple[dict[str, Any], list[inspect.Parameter]]:
    """Return the types of the arguments that a class takes, as the parser sees them, and its own parameters."""
    from jsonargparse._parameter_resolvers import get_signature_parameters  # slow, and workers import this module

    def hint(parameter: Any) -> Any:
        if parameter.annotation is inspect.Parameter.empty:
            return Any
        return parameter.annotation if parameter.default is not None else Union[parameter.annotation, None]  # noqa: UP007

    parameters = [*inspect.signature(cls.__init__).parameters.values()][1:]  # type: ignore[misc]
    return {p.name: hint(p) for p in get_signature_parameters(cls)}, parameters


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value is of an annotated type; True for types that cannot be told at run time."""
    kind = get_origin(hint)
    inner = get_args(hint)
    if kind in (Union, UnionType):
        return any(fits(value, item) for item in inner)
    if kind is Literal:
        return value in inner
    if hint in (None, NoneType):
        return value is None
    if hint in NUMBER_TYPES:
        return isinstance(value, NUMBER_TYPES[hint]) and not isinstance(value, bool)
    if hint is bool:
        return type(value).__name__ in ("bool", "bool_")  # numpy's too
    if hint is str:
        return isinstance(value, str | os.PathLike)
    cls = kind or hint
    if hasattr(cls, "given") and isinstance(value, Mapping):  # a group of options, which checks its fields
        return True
    if cls in (list, tuple, set, frozenset):
        return isinstance(value, Sequence | Set) and not isinstance(value, str) and _all_fit(value, inner)
    if isinstance(cls, type) and issubclass(cls, Mapping):
        return isinstance(value, Mapping) and (
            len(inner) < 2 or _all_fit([item for item in value.values() if not isinstance(item, bool)], inner[1:])
        )
    if callable(value) and isinstance(cls, type) and any("__call__" in vars(base) for base in cls.__mro__):
        return True  # a function in the place of an advantage or a reward
    try:
        return not isinstance(cls, type) or isinstance(value, cls)
    except TypeError:  # a protocol
        return True


def _all_fit(values: Iterable[Any], inner: Sequence[Any]) -> bool:
    if inner:
        return all(fits(value, inner[0]) for value in values)
    return True


def _no_option(name: str, cls: type, known: Iterable[str], key: str) -> str:
    """Return a message with the nearest option of the class, or else of a config."""
    groups = {path.partition(".")[0] for path in OPTIONS_OF_OTHERS.values()}
    near = our_option_for(name, known) or our_option_for(name, groups) or nearest(name, known)
    hint = counted_hint(f"{key}.{name}") or (f"; did you mean {near.replace('.init_args', '')!r}?" if near else "")
    return f"{key}: {cls.__name__} has no option {name!r}{hint}"


def _misfit(value: Any, hint: Any, where: str) -> str:
    """Return a message with the types that an option accepts, and the given value, or the wrong one within it."""
    if value is None:
        return f"{where}: None is not allowed; leave it out for its default"
    if get_origin(hint) in (Union, UnionType):
        kinds = get_args(hint)
    else:
        kinds = (hint,)
    if isinstance(value, list | tuple):
        for inner in (get_args(kind)[0] for kind in kinds if get_origin(kind) in (list, tuple) and get_args(kind)):
            place, item = next((place, item) for place, item in enumerate(value) if not fits(item, inner))
            return _misfit(item, inner, f"{where}.{place}")
    names = dict.fromkeys(name for kind in kinds for name in _names_of(kind))
    return f"{where}: give {', or '.join(names)}, not {given_text(value)}"


def _names_of(hint: Any) -> Iterator[str]:
    if get_origin(hint) is Literal:
        yield f"{'one of ' * (len(get_args(hint)) > 1)}{', '.join(map(repr, get_args(hint)))}"
    elif hint not in (None, NoneType):
        name = getattr(get_origin(hint) or hint, "__name__", str(hint))
        yield TYPE_NAMES.get(name, f"{'an' if name[0].lower() in 'aeio' else 'a'} {name}")


def given_text(value: Any) -> str:
    """Return a plain value as Python writes it, shortened, and the type of any other."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if not isinstance(value, str | int | float | list | tuple | Mapping):
        return type_text(value)
    text = repr(value)
    if len(text) <= 80:
        return text
    return f"{text[:77]}..."


START_AGAIN = os.EX_TEMPFAIL
"""Exit status (75) of a run that a new process can resume, with nothing to mend before."""


class ResumableError(UserError):
    """A failure that only a new process can get over: the run resumes with `--ckpt_path last`."""


class RunStopped(Exception):
    """The clean end of a run that received a signal.

    Args:
        signal_number: the signal.
        saved: True if there is a checkpoint to resume from.
    """

    def __init__(self, signal_number: int, saved: bool) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number
        self.saved = saved


def user_error_in(error: BaseException) -> UserError | None:
    """Return the `UserError` among an exception and its causes; None if there is none (parsers wrap exceptions)."""
    return next((cause for cause in _chain(error, lambda e: e.__cause__) if isinstance(cause, UserError)), None)


def first_line(error: BaseException) -> str:
    """Return an exception's type and the first line of its message, with the next one if the first ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].endswith(":"):
        lines[0] = " ".join(lines[:2])
    if lines:
        return f"{type(error).__name__}: {lines[0]}"
    return type(error).__name__


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
    line_error = find_user_line(error)
    if line_error:
        return line_error[0]
    return ""


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
    first, second = interval[1:-1].split(",")
    low = float(first)
    high = float(second)

    def within(value: float) -> bool:
        above = low <= value if interval[0] == "[" else low < value
        below = value <= high if interval[-1] == "]" else value < high
        return above and below

    violations = {name: value for name, value in options.items() if value is not None and not within(value)}
    refuse_all(f"{where}.{name}: {value} must lie in {interval}" for name, value in violations.items())


def type_text(value: Any) -> str:
    """Return the type of a value for a message: None, "an int", "a list"."""
    name = type(value).__name__
    if value is None:
        return "None"
    return f"{'an' if name[0].lower() in 'aeio' else 'a'} {name}"


def shorten_line(line: str) -> str:
    """Return a line of at most `MAX_LINE` characters, which keeps its beginning and its end."""
    left_out = len(line) - MAX_LINE
    if left_out <= 0:
        return line
    return f"{line[:1500]} [{left_out + 100} characters left out] {line[-400:]}"


def _escaped(message: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shorten_line(message))


def _plain(name: str) -> str:
    return re.sub("[-_]", "", name).lower()


def shown(path: str | Path) -> str:
    """Return a path for a message: relative to the current directory if it is below it."""
    try:
        below = Path(path).is_relative_to(Path.cwd())
    except FileNotFoundError:  # the current directory was removed
        below = False
    if below:
        return os.path.relpath(path)
    return str(path)


def why_not_a_file(path: Path) -> str | None:
    """Return what stands at a path instead of a file that can be read, such as "is a folder"; None for a file, and for
    nothing at all."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "is a link that leads back to itself"
        if path.is_symlink():
            return f"is a link to {os.readlink(path)}, which is not there"
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        return f"cannot be read: {error.strerror}"
    if stat.S_ISDIR(mode):
        return "is a folder"
    if stat.S_ISREG(mode):
        return None
    return "is a pipe or a device, not a file; write its content to a file"


@cache
def is_user_code(file: str) -> bool:
    """Return True for a code file that is neither ours nor installed; code without a file has a name in <>."""
    path = Path(file)
    return not (
        file.startswith("<")
        or PACKAGE_FOLDERS & {*path.parts}
        or any(path.is_relative_to(folder) for folder in (*OWN_FOLDERS, *PYTHON_FOLDERS))
    )


def comes_from_library(error: BaseException) -> bool:
    """Return whether an installed package raised an exception: neither our code nor the user's."""
    *_, last = traceback.extract_tb(error.__traceback__)
    is_own = any(Path(last.filename).is_relative_to(folder) for folder in OWN_FOLDERS)
    return not is_own and find_user_line(error) is None
