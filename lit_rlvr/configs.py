"""Config files, found by name, checked and merged over their bases; and the parser of every command line."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Union, get_args, get_origin

import yaml
from jsonargparse import ArgumentError, ArgumentParser, _typehints
from jsonargparse._common import get_parsing_setting
from jsonargparse._loaders_dumpers import get_yaml_default_loader
from jsonargparse._parameter_resolvers import get_signature_parameters

import lit_rlvr
from lit_rlvr.common.did_you_mean import did_you_mean, nearest
from lit_rlvr.common.paths import shown, why_not_a_file
from lit_rlvr.errors import UserError, user_error_in

TOP_KEYS = (
    "base", "seed_everything", "model", "data", "rollout", "trainer", "run", "budget", "checkpoint", "collapse",
    "trackers", "warm_start", "overwrite", "ckpt_path", "weights_only", "verbose",
)  # fmt: skip
"""Top-level keys of a config of `fit` or `validate`."""


def config_folder() -> Path:
    """Return the folder of the shipped configs: inside the installed package, or next to it in a source checkout."""
    package = Path(lit_rlvr.__file__).parent
    inside = package / "_configs"
    if inside.is_dir():
        return inside
    return package.parent / "configs"


def find_configs(args: Sequence[str]) -> list[str]:
    """Replace every `--config NAME` by the path of an existing file, or else of a shipped config.

    `quickstart`, `quickstart.yaml` and `configs/quickstart.yaml` all find the shipped quickstart.yaml. A config with a
    `base:` is replaced by the YAML of the config merged over its base, which the parser takes, too.

    Raises:
        UserError: there is no such config, it is not YAML (its name and line), or it has an unknown key.
    """
    arguments = list(args)
    for i, name in _config_arguments(args):
        path = find_config(name)
        if "base" in read_config(path):
            value = yaml.safe_dump(load_config(path), sort_keys=False)
        else:
            value = str(path)
        if args[i].startswith("--config="):
            arguments[i] = f"--config={value}"
        else:
            arguments[i] = value
    return arguments


def load_config(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Load a config and merge it over its `base:` (a path relative to it, or a shipped config), mappings key by key.

    Raises:
        UserError: as `find_configs`, or the bases form a cycle.
    """
    if path in seen:
        raise UserError(f"--config: {path}: its `base:` leads back to itself")
    values = read_config(path)
    base = values.pop("base", None)
    if base is None:
        return values
    base_path = find_base(str(base), path)
    return _with_checked_classes(merge(load_config(base_path, (*seen, path)), values), f"--config: {path}")


def find_base(name: str, path: Path) -> Path:
    """Return the config that a `base:` in the file `path` names: relative to that file, or as `find_config` does."""
    relative = path.parent / name
    if relative.is_file():
        return relative
    return find_config(name, f"--config: {path}: base")


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `over` into `base`: merge mappings, replace everything else (also lists)."""
    merged = dict(base)
    for key, value in over.items():
        are_mappings = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        if are_mappings:
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _config_arguments(args: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield (index, config name) of every config on a command line."""
    for i, argument in enumerate(args):
        if argument.startswith("--config="):
            yield i, argument.removeprefix("--config=")
        elif i and args[i - 1] in ("--config", "-c"):
            yield i, argument


def find_config(name: str, option: str = "--config") -> Path:
    """Return the file that a user gives by path or, for a shipped one, by name.

    Raises:
        UserError: there is no such file; the message names the `option` and the nearest name.
    """
    path = Path(name)
    if path.is_file():
        return path
    relative = name.removeprefix("configs/")
    for candidate in (config_folder() / relative, config_folder() / f"{relative}.yaml"):
        if candidate.is_file():
            return candidate
    reason = why_not_a_file(path)
    if reason:
        if path.is_dir():
            inside = sorted(shown(file) for file in path.glob("*.y*ml"))[:3]
        else:
            inside = []
        raise UserError(f"{option}: {name!r} {reason}{'; give a file in it: ' + ', '.join(inside) if inside else ''}")
    known = {}
    for config in shipped_files():
        for spelling in (Path(config).name, config):
            known[spelling] = config
    near = nearest(relative.removesuffix(".yaml"), known)
    if near:
        hint = f"did you mean {known[near]}?"
    else:
        hint = f"the shipped ones are in {config_folder()}"
    raise UserError(f"{option}: there is no file {name!r}; {hint}")


def shipped_files(folder: str = "") -> dict[str, Path]:
    """Return the shipped YAML files of a folder of the configs by their names in it, such as `smoke/grpo`."""
    root = config_folder() / folder
    files = {}
    for path in sorted(root.rglob("*.yaml")):
        files[str(path.relative_to(root).with_suffix(""))] = path
    return files


def find_shipped(folder: str, name: str, where: str, noun: str, others: str = "") -> Path:
    """Return a shipped YAML file by its name in a folder of the configs, or any other by its path.

    Args:
        folder: the folder.
        name: the file's name or path.
        where: the beginning of the message.
        noun: what the file holds, for the message.
        others: what else the option takes, for the message.

    Raises:
        UserError: there is no such file; the message names the nearest name, or all of them.
    """
    known = shipped_files(folder)
    if name in known:
        return known[name]
    if name.endswith(".yaml"):
        return find_config(name, where)
    hint = did_you_mean(name, known, f"{noun}s: {', '.join(known)}{others}")
    raise UserError(f"{where}: there is no {noun} {name!r}; {hint}")


def read_config(path: Path, known: Sequence[str] = TOP_KEYS, option: str = "--config") -> dict[str, Any]:
    """Read a YAML file; check its form and its top-level keys.

    Raises:
        UserError: it is not a YAML mapping, or has a key not in `known`; the message names the `option` and the file.
    """
    try:
        value = load_yaml(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{option}: {path}{line}: not valid YAML ({getattr(error, 'problem', error)})") from error
    return _with_checked_classes(require_keys(value, known, f"{option}: {path}"), f"{option}: {path}")


CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
"""Keys of a class in a config."""


def _with_checked_classes(value: Any, where: str) -> Any:
    """Return a value of a config, after a check of the form of every class in it.

    Raises:
        UserError: a class has another key, or one with a wrong kind of value; the message begins with `where`.
    """
    if isinstance(value, dict) and {"class_path", "init_args"} & {*value}:
        for key in [key for key in value if key not in CLASS_KEYS]:
            hint = did_you_mean(key, CLASS_KEYS, "the options of a class are under init_args")
            if "class_path" not in value and hint.startswith("the"):
                raise UserError(
                    f"{where}: init_args is for a class, and there is no class_path; give one, or give "
                    f"the options as {key!r} is given"
                )
            raise UserError(f"{where}: unknown key {key!r}; {hint}")
        if not isinstance(value.get("class_path", ""), str):
            raise UserError(f"{where}: a class_path is the name of a class, not {value['class_path']!r}")
        if not isinstance(value.get("init_args") or {}, dict):
            raise UserError(f"{where}: init_args is a mapping of options, not {value['init_args']!r}")
    inners: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        inners = value.items()
    elif isinstance(value, list):
        inners = enumerate(value)
    for key, inner in inners:
        _with_checked_classes(inner, f"{where}: {key}" if where.endswith("ml") else f"{where}.{key}")
    return value


def load_yaml(text: str) -> Any:
    """Parse a YAML document.

    Raises:
        yaml.YAMLError: it is not valid, or a mapping has a key twice.
    """
    return _UniqueKeyLoader(text).get_single_data()


class _UniqueKeyLoader(yaml.SafeLoader):
    """A YAML loader that refuses duplicate keys, where YAML would silently drop the first one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _use_yaml12_numbers(loader: Any) -> None:
    """Let a YAML loader read 010 and 1:30 as YAML 1.2 does; YAML 1.1 takes them for octal and base 60, 8 and 90."""
    numbers = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
    resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for character, forms in loader.yaml_implicit_resolvers.items():
        resolvers[character] = []
        for tag, form in forms:
            if tag in numbers:
                form = re.compile(rf"(?![-+]?0[0-9_])(?!.*:)(?:{form.pattern})", form.flags)
            resolvers[character].append((tag, form))
    loader.yaml_implicit_resolvers = resolvers


def _int_before_float(typehint: Any) -> Any:
    """Let an option of type `int | float` try int first, so that 4 stays 4.

    jsonargparse keeps a union's order, and typing caches `Optional[Union[...]]` by equality, which ignores order:
    another package's `Optional[Union[float, int]]` would reverse all others of the process.
    """
    union = _sort_union(typehint)
    kinds = list(get_args(union)) if get_origin(union) is Union else []
    if int in kinds and float in kinds and kinds.index(float) < kinds.index(int):
        first = kinds.index(float)
        second = kinds.index(int)
        kinds[first] = int
        kinds[second] = float
        return Union[tuple(kinds)]  # noqa: UP007
    return union


def _adapt_whole_lists(val: Any, typehint: Any, *args: Any, **options: Any) -> Any:
    """Adapt a value to a type; let a list that is given replace the list before it whole.

    jsonargparse gives every item of a list the `init_args` of the item that stood in its place before, or of the class
    that stood in the place of the list. Options that change or extend the list before it (`--rewards.weight`,
    `--rewards+`) keep it.
    """
    if isinstance(val, list) and not options.get("append"):
        options["prev_val"] = get_parsing_setting("unset_sentinel")
    return _adapt(val, typehint, *args, **options)


_sort_union = _typehints.sort_unions_in_typehint
_typehints.sort_unions_in_typehint = _int_before_float
_adapt = _typehints.adapt_typehints
_typehints.adapt_typehints = _adapt_whole_lists
for _loader in (_UniqueKeyLoader, get_yaml_default_loader()):  # ours, and the one that reads every option's value
    _use_yaml12_numbers(_loader)


NEGATIVE = re.compile(r"-(\d+\.?\d*(e[-+]?\d+)?|\.\d+(e[-+]?\d+)?|\.?inf|\.?nan)$", re.IGNORECASE)
"""A negative number, which is the value of the option before it."""


class Parser(ArgumentParser):
    """A parser of options and configs that takes no abbreviations, and that requires what a class requires.

    Args:
        options: options of jsonargparse's parser; of a description that is a docstring, the help has what stands above
            the arguments.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        if options.get("description"):
            options["description"] = options["description"].partition("\n\n    Args:")[0]
        super().__init__(*args, **{"exit_on_error": False, "allow_abbrev": False} | options)
        self._negative_number_matcher = NEGATIVE  # argparse's does not know exponents

    def add_class_arguments(self, *args: Any, **options: Any) -> list[str]:
        """Add the arguments of a class; require those without a type and a default, too, which would be optional."""
        added = list(super().add_class_arguments(*args, **options))
        parameters = get_signature_parameters(args[0] if args else options["theclass"])
        required = set()
        for p in parameters:
            if p.default is p.annotation is inspect.Parameter.empty:
                required.add(p.name)
        for action in self._actions:
            if action.dest in added and action.dest.rpartition(".")[2] in required:
                action.required = True
        return added

    def parse_args(self, *args: Any, **options: Any) -> Any:
        with self._parser_in_errors():
            return super().parse_args(*args, **options)

    def parse_object(self, *args: Any, **options: Any) -> Any:
        with self._parser_in_errors():
            return super().parse_object(*args, **options)

    def parse_line(self, args: Sequence[str]) -> Any:
        """Parse a command line.

        For an option that takes a name or a class, jsonargparse takes the text of a class with a wrong option for a
        name. This method parses such a text again as a class, which gives the right error.
        """
        config = self.parse_args(args)
        classes = {}
        for key, value in config.items():
            parsed = _parse_classes(value)
            if parsed is not None:
                classes[key] = parsed
        for key, value in classes.items():
            config[key] = value
        if classes:
            return self.parse_object(config)
        return config

    def instantiate_classes(self, config: Any, **options: Any) -> Any:
        """Build the objects of a config.

        Raises:
            UserError: a class refuses its options; the parser may have wrapped the error.
        """
        try:
            return super().instantiate_classes(config, **options)
        except Exception as error:
            refused = user_error_in(error)
            if refused is None:
                raise
            raise UserError(*refused.messages) from error

    @contextmanager
    def _parser_in_errors(self) -> Iterator[None]:
        """Store the parser in parse errors, whose message suggests its nearest option."""
        try:
            yield
        except ArgumentError as error:
            error.parser = self  # type: ignore[attr-defined]
            raise


def _parse_classes(value: Any) -> Any:
    """Parse every text with a `class_path` in a value as YAML; return None if there is no such text."""
    if isinstance(value, list):
        items = [_parse_classes(item) for item in value]
        whole = next((item for item in items if isinstance(item, list)), None)  # one text may hold the whole list
        merged = []
        for item, given in zip(items, value, strict=True):
            merged.append(given if item is None else item)
        if whole is not None:
            return whole
        if merged != value:
            return merged
        return None
    if not isinstance(value, str) or "class_path" not in value:
        return None
    try:
        parsed = load_yaml(value)
    except yaml.YAMLError:
        return None
    if isinstance(parsed, list):
        classes = parsed
    else:
        classes = [parsed]
    if any(isinstance(item, dict) and "class_path" in item for item in classes):
        return parsed
    return None


def import_classes(*packages: ModuleType) -> None:
    """Import all that some packages export: jsonargparse knows the short names of imported classes only."""
    for package in packages:
        for name in package.__all__:
            getattr(package, name)


def require_keys(value: Any, known: Sequence[str], where: str) -> dict[str, Any]:
    """Return `value` if it is a mapping with no other keys than `known`.

    Raises:
        UserError: it is anything else; the message begins with `where`.
    """
    if value is None:
        raise UserError(f"{where}: is empty; its keys are {', '.join(known)}")
    if not isinstance(value, dict):
        raise UserError(f"{where}: a config is a mapping of keys to values, not {type(value).__name__}")
    for key in value:
        if key not in known:
            hint = did_you_mean(key, known, f"keys: {', '.join(known)}")
            raise UserError(f"{where}: unknown key {key!r}; {hint}")
    return value


def changed_classes(args: Sequence[str], config: Any) -> Iterator[str]:
    """Yield a line for each model or data class of a config file that the command line replaces.

    The line names the options kept and dropped: jsonargparse keeps those that the new class also accepts, and silently
    drops the others.
    """
    for _, name in _config_arguments(args):
        path = find_config(name)
        values = load_config(path)
        for part in ("model", "data"):
            section = values.get(part)
            chosen = config.get(part)
            given = [*_dotted((section.get("init_args") or {}) if isinstance(section, dict) else {})]
            init_args = None
            if chosen is not None:
                init_args = chosen.get("init_args")
            options = {*_dotted(init_args.as_dict() if init_args else {})}
            dropped = [key for key in given if not _is_among(key, options)]
            if chosen is not None:
                new = chosen.class_path.rpartition(".")[2]
            else:
                new = "none"
            named = None
            if isinstance(section, dict):
                named = section.get("class_path")
            old = new if named is None else str(named).rpartition(".")[2]  # a config may change options alone
            if dropped or (old != new and given):
                kept = ", ".join(key for key in given if key not in dropped) or "nothing"
                lost = ", ".join(dropped) or "nothing"
                yield f"{part}: {new} instead of {old} of {path.name}: kept {kept}; dropped {lost}"


def _is_among(key: str, options: Collection[str]) -> bool:
    """Return whether an option is among others: itself, or the part of it that has a value here or there."""
    parts = key.split(".")
    outer = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
    return bool(outer & {*options}) or any(option.startswith(f"{key}.") for option in options)


def _dotted(options: Mapping[str, Any], key: str = "") -> Iterator[str]:
    """Yield the dotted names of options; those of a class stay one option."""
    for name, value in options.items():
        if isinstance(value, Mapping) and value and "class_path" not in value:
            yield from _dotted(value, f"{key}{name}.")
        else:
            yield f"{key}{name}"


def changes(before: Any, after: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the differences between two configs: (key, before, after), None for a missing value."""
    lists = isinstance(before, list) and isinstance(after, list) and len(before) == len(after)
    if lists and all(isinstance(item, dict) for item in [*before, *after]):
        before = dict(enumerate(before))
        after = dict(enumerate(after))
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted({*before, *after}, key=str):
            yield from changes(before.get(name), after.get(name), f"{key}.{name}" if key else str(name))
    elif before != after:
        yield key, before, after
