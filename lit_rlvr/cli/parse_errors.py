"""Shortens the parser's long messages about options to one line."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator

from lit_rlvr.configs import TOP_KEYS

PARSE_ERRORS = (
    (r"class_path '(?P<name>[^']+)': Option '(?P<key>[^']+)' is not accepted", "{where}: {name} has no option {key!r}"),
    (r"class_path '[^']+': '(?P<kind>\w+)' object has no attribute 'keys'",
     "{where}.init_args: give a mapping of options, not {kind}"),
    (r"class_path '(?P<name>[^']+)': Parser key \"(?P<inner>[^\"]+)\": (?P<mismatch>.*)", "{where}.{inner}: {why}"),
    (r"class_path '(?P<name>[^']+)': (?P<why>.*?)(?= - |$)", "{where}: class_path {name!r} cannot be used: {why}"),
    (r"(argument of type '\w+' is not iterable|unhashable type).*Given value: (?P<given>.*)",
     "{where}: a class_path is the name of a class, not {given}"),
    (r"does not correspond to a subclass of (?P<base>\w+).*Given value: (?P<given>.*)",
     "{where}: {given} is not a subclass of {base}"),
    (r"Expected an instantiatable class.*Given value: (?P<given>.*)",
     "{where}: {given} is abstract, it lacks a required method"),
    (r"Expected a dot import path string: (?P<key>\S+)", "{where}: there is no class {key!r}"),
    (r"Unable to load config ['\"](?P<given>[^'\"]*)",
     "{where}: {given!r} is not a group of options; give them by their names"),
    (r"does not accept option '(?P<key>[^']+)'", "unknown key {key!r}"),
    (r"[Uu]nrecognized arguments: -+(?P<key>[^ =]+)", "unknown option {key!r}"),
    (r"arguments are required: (?P<given>(\w+\.(data|model)(, )?)+)",
     "{given}: missing; give a config that sets them, such as --config quickstart"),
    (r"[Uu]nrecognized arguments: (?P<given>.+)", "what is {given!r} for? An option begins with --"),
)  # fmt: skip
"""jsonargparse's message -> our message. `where` is the key that it names, `mismatch` becomes `why`."""

KINDS = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "list": "a list",
    "dict": "a mapping", "Iterable": "a list",
}  # fmt: skip
"""Python's types in words."""


def explain_parse_error(error: Exception) -> str:
    """A parse error as one line, with the nearest valid name for an unknown one."""
    text = " ".join(str(error).split())
    key = re.search(r'Parser key "([^"]+)"', text)
    where = key[1] if key else "config"
    for pattern, message in PARSE_ERRORS:
        found = re.search(pattern, text)
        if not found:
            continue
        parts = {name: _short(part) for name, part in found.groupdict().items()}
        if "mismatch" in parts:
            parts["why"] = _mismatch(found["mismatch"])
        return message.format(where=where, **parts) + (_nearest(found["key"]) if "key" in parts else "")
    return f"{where}: {_mismatch(text)}" if key else text


def _mismatch(text: str) -> str:
    """The kind of value that the option accepts, instead of the given one."""
    wanted = list(dict.fromkeys(_wanted(text)))
    given = re.search(r"(?:Given value|Got value): ?(.*?)(?= - Expected| Given value type|$)", text)
    if not wanted or not given:
        return re.sub(r'^Parser key "[^"]+": ', "", text.split(" Given value")[0])
    return f"give {', or '.join(wanted)}, not {_short(given[1]) or repr('')}"


def _wanted(text: str) -> Iterator[str]:
    for base in re.findall(r"Not a valid subclass of (\w+)", text):
        yield f"a class of type {base} by its class_path"
    for kind, values, words in re.findall(
        r"Expected an? (?:<class '([^']+)'>|typing.Literal\[(.*?)\]|(.*?)(?=\. Got))", text
    ):
        name = kind.rpartition(".")[2]
        if name != "NoneType":
            yield KINDS.get(name, name) if kind else f"one of {values}" if values else f"a {words}"


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def _nearest(key: str) -> str:
    """A hint with the valid name most similar to a key."""
    group, _, name = key.rpartition(".")
    near = difflib.get_close_matches(name, [known for known in _known_names(group) if known != name], 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _known_names(group: str) -> list[str]:
    """The options of one of our groups, such as `rollout`; for other groups, all option and class names we ship."""
    from lightning.pytorch import Trainer

    from datamodules import PromptDataModule
    from lit_rlvr.advantages import Advantage
    from lit_rlvr.algorithms import RLVRModule
    from lit_rlvr.cli.groups import CALLBACKS
    from lit_rlvr.rewards import Reward
    from lit_rlvr.rollout import RolloutEngine
    from lit_rlvr.run.trackers.choose import NAMES
    from lit_rlvr.types import Sampling
    from lit_rlvr.warm_start import WarmStart

    groups: dict[str, type] = CALLBACKS | {"trainer": Trainer, "rollout.sampling": Sampling, "warm_start": WarmStart}
    if group in groups:
        return _options(groups[group])
    classes: list[type] = [RLVRModule, PromptDataModule, Reward, RolloutEngine, Advantage]
    for cls in classes:
        classes += cls.__subclasses__()
    names = {cls.__name__ for cls in classes} | {name for cls in (*classes, *groups.values()) for name in _options(cls)}
    return sorted({*TOP_KEYS, *NAMES, *(cls.__name__ for cls in NAMES.values()), *names})


def _options(cls: type) -> list[str]:
    return sorted(set(inspect.signature(cls).parameters) - {"self", "args", "kwargs"})
