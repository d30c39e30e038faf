"""Turns errors of the parser, of configs and of libraries into one line for the user."""

from __future__ import annotations

import dataclasses
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, Namespace

from lit_rlvr.commands.registry import NOT_PARSED
from lit_rlvr.common.arguments import TYPE_NAMES, fits, init_parameters
from lit_rlvr.common.did_you_mean import nearest
from lit_rlvr.common.files import write_failure
from lit_rlvr.common.foreign_names import counted_hint, our_option_for
from lit_rlvr.common.resuming import how_to_resume
from lit_rlvr.common.user_code import OWN_FOLDERS, find_user_line
from lit_rlvr.configs import TOP_KEYS
from lit_rlvr.errors import START_AGAIN, ResumableError, UserError, cause_of, first_line, user_error_in

TRACEBACK = "LIT_RLVR_TRACEBACK"
"""Environment variable that shows the whole traceback above the line."""

_CALLERS_OF_LIBRARIES = {"main.py", "lightning_cli.py", "trainer.py", "configs.py"}
"""Our files that call Lightning and the parser before a run begins."""


def failure_line(error: Exception) -> str | None:
    """Return one line about an error; None for a bug in lit-rlvr, which keeps its traceback.

    Errors with a line are problems with the input, the user's code, a library's option or the disk.
    """
    cause = user_error_in(error)  # the parser wraps what an option's class raises
    if cause is not None and not isinstance(error, ArgumentError):
        return str(cause)
    if is_lost(error):
        return f"a process of the run is lost: {first_line(error).partition('. ')[0]}; {how_to_resume()}"
    line_error = find_user_line(error)
    if line_error:
        return f"{line_error[0]}: {first_line(line_error[1])} ({TRACEBACK}=1 shows the whole traceback)"
    if isinstance(error, ArgumentError):
        return ": ".join([*getattr(error, "__notes__", ()), explain_parse_error(error)])
    if isinstance(error, PermissionError):  # of a read or of a write
        return f"{error.filename or 'a file'}: permission denied; check who owns it, and its folders"
    reason = write_failure(error)
    if reason:
        return f"{getattr(error, 'filename', None) or 'a file'} cannot be written: {reason}"
    return _refused_by_library(error)


def is_lost(error: BaseException) -> bool:
    """Return whether another process of the run has died or does not answer, or this one can no longer use its GPU."""
    if "torch" not in sys.modules:  # not every command imports it
        return False
    from torch import AcceleratorError

    from lit_rlvr.distributed.collectives import lost_peer

    return lost_peer(error) or isinstance(error, AcceleratorError)


def failure_status(error: BaseException) -> int:
    """Return the exit status of a command that ends with an error."""
    if isinstance(user_error_in(error), ResumableError) or is_lost(error):
        return START_AGAIN
    return 2


def _refused_by_library(error: BaseException) -> str | None:
    """Return the message with which Lightning, the parser or a class that they built refuses an option.

    Such an option is a logger whose package is missing, or an interval that is too long. Return None if any of our code
    was involved, except the caller.
    """
    origin = _unwrapped(error)
    files = _files(error) + _files(origin)
    own_files = set()
    for file in files:
        if any(file.is_relative_to(folder) for folder in OWN_FOLDERS):
            own_files.add(file.name)
    is_own = files[-1].name in own_files or own_files - _CALLERS_OF_LIBRARIES
    if type(origin).__name__ != "MisconfigurationException" and is_own:
        return None
    return f"trainer: {' '.join(str(origin).split()) or type(origin).__name__}"


def _unwrapped(error: BaseException) -> BaseException:
    """Return the exception that the parser wrapped, because the parser's own message repeats every given value."""
    earlier = cause_of(error)
    if earlier is None or "jsonargparse" not in _files(error)[-1].parts:
        return error
    return _unwrapped(earlier)


def _files(error: BaseException) -> list[Path]:
    """Return the files of the frames that an exception passed through; the last one raised it."""
    files = []
    for frame in traceback.extract_tb(error.__traceback__):
        files.append(Path(frame.filename))
    return files


def refuse_nulls(value: Any, kinds: Mapping[str, Any], key: str = "") -> None:
    """Refuse null for options of our classes and of a user's classes that need a value, and other values for groups.

    Args:
        value: a parsed config, or a part of it.
        kinds: option of the part -> its type.
        key: what precedes these options.

    Raises:
        UserError: a value is not allowed; the message names the option.
    """
    if isinstance(value, Namespace) and "class_path" in value:
        module, _, name = value.class_path.rpartition(".")
        kinds, _ = init_parameters(getattr(import_module(module), name))
        value = value.get("init_args")
        key = f"{key}init_args."
    options: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, list):
        options = enumerate(value)
    elif isinstance(value, Namespace):
        options = vars(value).items()
    for option, inner in options:
        kind = kinds.get(option)
        if inner is None and not fits(None, kind):
            raise UserError(f"{key}{option}: null is not allowed; leave it out for its default")
        is_group = dataclasses.is_dataclass(kind) or (not key and option in kinds)
        if is_group and not isinstance(inner, Namespace):
            raise UserError(f"{key}{option}: {inner!r} is not a group of options; give them by their names")
        refuse_nulls(inner, init_parameters(kind)[0] if is_group else {}, f"{key}{option}.")


PARSE_ERRORS = (
    (r"class_path '(?P<name>[^']+)': .*?Group '(?P<group>[^']+)' does not accept option '(?P<field>[^']+)'",
     "{where}.{group}: unknown key {field!r}"),
    (r"class_path '(?P<name>[^']+)': [Uu]nrecognized arguments: --(?P<group>[\w.]+)\.(?P<field>\w+)",
     "{where}.{group}: unknown key {field!r}"),
    (r"class_path '(?P<name>[^']+)': Option '(?P<own>[^']+)' is not accepted", "{where}: {name} has no option {own!r}"),
    (r"class_path '(?P<name>[^']+)': the following arguments are required: (?P<given>\w+(, \w+)*)",
     "{where}: {name} needs a value for {given}; give it under init_args"),
    (r"class_path '(?P<name>[^']+)': Parser key \"(?P<inner>[^\"]+)\": (?P<mismatch>.*)", "{where}.{inner}: {why}"),
    (r"class_path '(?P<name>[^']+)': '(?P<given>\w+)' object has no attribute 'keys'",
     "{where}: the init_args of {name} are a mapping of its options, not a {given}"),
    (r"class_path '[^']+': (?P<why>module '(?P<module>[^']+)' has no attribute '(?P<member>\w+)')", "{where}: {why}"),
    (r"class_path '(?P<name>[^']+)': (?P<why>.*?)(?= - |$)", "{where}: class_path {name!r} cannot be used: {why}"),
    (r"does not correspond to a subclass of (?P<base>\w+).*Given value: (?P<given>.*)",
     "{where}: {given} is not a subclass of {base}"),
    (r"Expected an instantiatable class.*Given value: (?P<abstract>.*)", "{where}: "),
    (r"Expected a dot import path string: (?P<cls>\S+)", "{where}: there is no class {cls!r}"),
    (r"Unable to load config ['\"](?P<given>[^'\"]*)",
     "{where}: {given!r} is not a group of options; give them by their names"),
    (r"does not accept option '(?P<key>[^']+)'", "unknown key {key!r}"),
    (r"[Uu]nrecognized arguments: (?P<option>-+[^ =]+)", "unknown option {option!r}"),
    (r"arguments are required: (?P<given>(\w+\.(data|model)(, )?)+)",
     "{given}: missing; give a config that sets them, such as --config quickstart"),
    (r"arguments are required: (?:\w+\.)*(?P<given>\w+)", "--{given}: missing; give a value"),
    (r"[Uu]nrecognized arguments: (?P<given>\S+\.ya?ml)\b", "what is {given!r} for? Give a config as --config {given}"),
    (r"[Uu]nrecognized arguments: (?P<given>.+)", "what is {given!r} for? An option begins with --"),
)  # fmt: skip
"""Pattern of jsonargparse's message -> our message; `where` is the key in the message, and `why` explains
`mismatch`."""


_NOISE = re.compile(
    r" - Expected a path but (?:(?! - ).)*? either not accessible or invalid"
    r"| Subclass types expect one of:(?: - a (?:class path|dict with)(?:(?! - | Given value).)*)*"
)
"""Parts of jsonargparse's messages that say how a file or a class could be given, whatever the value is."""


def explain_parse_error(error: Exception) -> str:
    """Return a parse error as one line, with the nearest valid name for an unknown one."""
    return explain(" ".join(str(error).split()), KnownNames(getattr(error, "parser", None)))


class KnownNames:
    """The names that a parser knows, for hints.

    Args:
        parser: the parser; None for one without options.
    """

    def __init__(self, parser: Any) -> None:
        self.parser = parser

    def options(self) -> set[str]:
        """Return the options that the parser takes, with those of the classes that it can build."""
        if self.parser is not None:
            return options_of(self.parser)
        return set()

    def classes(self) -> set[str]:
        """Return the names of classes that an option accepts."""
        from lit_rlvr.run.trackers.feed import TRACKER_NAMES

        return {*TRACKER_NAMES} | {cls.__name__ for classes in known_classes().values() for cls in classes}

    def arguments(self, path: str) -> set[str]:
        """Return the arguments of the class at an import path."""
        module, _, name = path.rpartition(".")
        return class_arguments(getattr(import_module(module), name))


def explain(text: str, names: KnownNames) -> str:
    """Return our line for the text of a parse error."""
    text = _NOISE.sub("", text)
    keys = [(match.start(), match[1]) for match in re.finditer(r'Parser key "([^"]+)"', text)]
    for pattern, message in PARSE_ERRORS:
        match = re.search(pattern, text)
        if not match:
            continue
        where = ".".join(key for place, key in keys if place < match.start()) or (keys[0][1] if keys else "config")
        parts = {}
        for name, part in match.groupdict().items():
            if name == "given":
                parts[name] = _shorten(part)
            else:
                parts[name] = part
        if "mismatch" in parts:
            inner = match["mismatch"]
            if "class_path '" in inner or ("dot import path" in inner and not [*_expected_kinds(inner)]):  # of a class
                return explain(f'Parser key "{where}.{match["inner"]}": {match["mismatch"]}', names)
            parts["why"] = _mismatch(match["mismatch"])
        return message.format(where=where, **parts) + _hint(match.groupdict() | {"where": where}, names)
    if keys:
        return f"{keys[0][1]}: {_mismatch(text)}"
    return text


def _hint(groups: Mapping[str, str], names: KnownNames) -> str:
    """Return the nearest name for an unknown class, option of a class, or option of the parser."""
    if "cls" in groups:
        similar = _nearest(groups["cls"], sorted(names.classes()))
        return similar or f"; give the dotted path of a class or function of yours, such as my_task.{groups['cls']}"
    if "member" in groups:
        return _nearest(groups["member"], vars(import_module(groups["module"])))
    if "abstract" in groups:
        return _lacking(groups["abstract"], groups["where"])
    if "field" in groups:
        return _nearest(f"{groups['group']}.{groups['field']}", names.arguments(groups["name"]))
    if "own" in groups:
        replacement = our_option_for(groups["own"], TOP_KEYS)  # if neither the class has it nor a similar one
        known = names.arguments(groups["name"])
        fields = {name.rpartition(".")[2]: name for name in known}  # also of groups
        near = replacement or fields.get(nearest(groups["own"], fields) or "")
        return _nearest(groups["own"], known) or (f"; did you mean {near!r}?" if near else "")
    if "key" in groups:
        return counted_hint(groups["key"]) or _nearest(
            groups["key"], {option.removeprefix("--") for option in names.options()}
        )
    if "option" in groups:
        return counted_hint(groups["option"].lstrip("-")) or _nearest(groups["option"], names.options())
    return ""


def _lacking(class_text: str, option: str) -> str:
    """Say what an abstract class lacks, or that no class is given at all.

    Args:
        class_text: its path or short name, alone or in the text of a mapping; else an option of an unknown class.
        option: the option that takes the class.
    """
    if class_text.startswith("NestedArg("):
        return f"its options come before its class; give --{option} CLASS first"
    match = re.search(r"'class_path': '([^']+)'", class_text)
    if match is None and class_text.startswith("{"):
        return f"{class_text} has no class; give {{class_path: CLASS, init_args: ...}}"
    path = match[1] if match else class_text
    module, _, name = path.rpartition(".")
    known = {cls.__name__: cls for classes in known_classes().values() for cls in classes}
    if module:
        cls = getattr(import_module(module), name)
    else:
        cls = known.get(name)
    methods = ", ".join(sorted(getattr(cls, "__abstractmethods__", ()))) or "a method"
    return f"{path} is abstract, it lacks {methods}; define it in the class, or give another"


NO_FUNCTION = re.compile(
    r"(?:Does not validate against any of the Union subtypes Subtypes: \[\S*Callable.*? Errors: - )?"
    r"(?:Type \S*Callable.*? expects a function or a callable class: |(?<=Errors: - )(?=Expected a dot import path))"
    r"(?P<why>.*?)(?=\. Got value| - Expected| Given value|$)"
)
"""The beginning of a mismatch of an option that takes a function first, and why its value is none."""
_NOT_IMPORTED = re.compile(
    r"^(?:Expected an import path or a subclass spec, but got|Unexpected import object|"
    r"Expected a dot import path string:)"
)


_GROUP = re.compile(
    r"(?:^Unable to load config ['\"]"
    r"|Subtypes: \[<class 'lit_rlvr\.options\.\w+'>[^\]]*\] Errors: - Expected a dot import path string: )"
    r"(?P<given>[^'\" ]*)"
)
"""A mismatch of a group of options, and the value that is none."""


def _mismatch(text: str) -> str:
    """Return the kind of value that the option accepts, and the given one."""
    if text.startswith("Expected a"):  # of an option of one kind; what else the object around it could be stands behind
        text = text.partition(" - ")[0]
    group = _GROUP.search(text)
    if group:
        return f"{group['given']!r} is not a group of options; give them by their names"
    no_function = NO_FUNCTION.match(text)
    if no_function:
        why = _NOT_IMPORTED.sub(", not", f"{no_function['why']}")
        separator = "" if why.startswith(", not") else ": "
        return f"give the dotted path of a function, such as my_task.my_function{separator}{why}"
    expected = list(dict.fromkeys(_expected_kinds(text)))
    given = re.search(r"(?:Given value|Got value): ?(.*?)(?= - Expected| - Not a valid| Given value type|$)", text)
    if not expected or not given:
        return re.sub(r'^Parser key "[^"]+": ', "", text.split(" Given value")[0])
    return f"give {', or '.join(expected)}, not {_shorten(given[1]) or repr('')}"


def _expected_kinds(text: str) -> Iterator[str]:
    for base in re.findall(r"Not a valid subclass of (\w+)", text):
        yield f"a class of type {base} by its class_path"
    for kind, values, words in re.findall(
        r"Expected an? (?:<class '([^']+)'>|typing.Literal\[(.*?)\]|(.*?)(?=\. Got))", text
    ):
        name = kind.rpartition(".")[2]
        if name != "NoneType":
            if "," in values:
                choices = f"one of {values}"
            else:
                choices = values
            yield TYPE_NAMES.get(name, name) if kind else choices or f"a {words}"


def _shorten(text: str) -> str:
    """Return a given value in at most 80 characters; a name or a path stays whole."""
    if len(text) <= 80 or not re.search(r"[\s{\[]", text):
        return text
    return f"{text[:77]}..."


def _nearest(key: str, known: Iterable[str]) -> str:
    """Return a hint with the known name that ends like the key, or else the most similar: from the key's own group, or
    else from all dotted names."""
    group, dot, name = key.rpartition(".")
    names = [other for other in known if other != key]
    replacement = our_option_for(key, names)
    if replacement:
        return f"; did you mean {replacement!r}?"
    for end in (key, group):  # `lora.rank` has no option of its own where `lora` can be null
        same = []
        for other in names:
            if end and other.endswith("." + end.lstrip("-")):
                same.append(other)
        if same:
            of_the_model = [other for other in same if "model.init_args." in other]
            outermost = min(of_the_model or same, key=lambda other: (other.count("."), other))
            return f"; did you mean {outermost!r}?"
    siblings = []
    for other in names:
        if dot and other.rpartition(".")[0] == group:
            siblings.append(other.rpartition(".")[2])
    if siblings:
        near = nearest(name, siblings)
    else:
        near = nearest(key, names)
    if near:
        return f"; did you mean {(f'{group}.' if siblings else '') + near!r}?"
    return ""


def options_of(parser: Any, command: str = "") -> set[str]:
    """Return the options that a parser takes on the command line, with those of the classes that it can build."""
    options = set()
    for option in parser._option_string_actions:
        if option.startswith("--") and option[-1] != "+":
            options.add(option)
    options |= NOT_PARSED.get(command, set()) | {"--json"}
    for key, classes in known_classes().items():
        if f"--{key}.help" in options:
            options |= {f"--{key}.init_args.{option}" for cls in classes for option in class_arguments(cls)}
    if parser._subcommands_action is not None:
        for name, sub in parser._subcommands_action._name_parser_map.items():
            options |= options_of(sub, name)
    return options


def known_classes() -> dict[str, list[type]]:
    """Return the known classes by the option that takes them."""
    from lit_rlvr.advantages import Advantage
    from lit_rlvr.algorithms import RLVRModule
    from lit_rlvr.datamodules import PromptDataModule
    from lit_rlvr.environments import Environment
    from lit_rlvr.rewards import Reward
    from lit_rlvr.rollout import RolloutEngine
    from lit_rlvr.run.trackers.feed import TRACKER_NAMES

    bases: dict[str, list[type]] = {
        "model": [RLVRModule],
        "data": [PromptDataModule],
        "rollout.rewards": [Reward],
        "rollout.environment": [Environment],
        "rollout.engine": [RolloutEngine],
        "model.advantage": [Advantage],
        "trackers": [*TRACKER_NAMES.values()],
    }
    for classes in bases.values():
        for cls in classes:
            classes += cls.__subclasses__()
    return bases


def class_arguments(cls: type) -> set[str]:
    """Return the arguments of a class and of its bases, and the fields of those that are groups, such as `kl.coef`."""
    kinds, _ = init_parameters(cls)
    names = {*kinds}
    for name, kind in kinds.items():
        if dataclasses.is_dataclass(kind):
            names |= {f"{name}.{option.name}" for option in dataclasses.fields(kind) if option.init}
    return names
