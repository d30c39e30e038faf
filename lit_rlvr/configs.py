"""Finds config files by name, checks them, and merges them over their bases."""

from __future__ import annotations

import difflib
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

import lit_rlvr
from lit_rlvr.errors import UserError

_SCRATCH = tempfile.TemporaryDirectory(prefix="lit-rlvr-")  # removed when the process ends
_MERGED = Path(_SCRATCH.name)

TOP_KEYS = (
    "base", "seed_everything", "model", "data", "rollout", "trainer", "run", "budget", "checkpoint", "collapse",
    "trackers", "warm_start", "overwrite", "ckpt_path", "weights_only", "verbose",
)  # fmt: skip
"""Top-level keys of a config of `fit` or `validate`."""


def config_folder() -> Path:
    """The folder of the shipped configs: inside the installed package, or next to it in a source checkout."""
    package = Path(lit_rlvr.__file__).parent
    inside = package / "_configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_configs(args: Sequence[str]) -> list[str]:
    """The arguments with every `--config NAME` replaced by a path: an existing file, or else a shipped config.

    `quickstart`, `quickstart.yaml` and `configs/quickstart.yaml` all find the shipped quickstart.yaml. A config with a
    `base:` is replaced by a file with the config merged over its base.

    Raises:
        UserError: there is no such config, it is not YAML (its name and line), or it has an unknown key.
    """
    found = list(args)
    for i, name in _config_arguments(args):
        path = find_config(name)
        if "base" in read_config(path):
            values, path = load_config(path), _MERGED / str(i) / path.name
            path.parent.mkdir(exist_ok=True)
            path.write_text(yaml.safe_dump(values, sort_keys=False))
        found[i] = f"--config={path}" if args[i].startswith("--config=") else str(path)
    return found


def load_config(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A config merged over its `base:` (a path relative to it, or a shipped config), mappings key by key.

    Raises:
        UserError: as `find_configs`, or the bases form a cycle.
    """
    if path in seen:
        raise UserError(f"--config: {path}: its `base:` leads back to itself")
    values = read_config(path)
    base = values.pop("base", None)
    return values if base is None else merge(load_config(find_base(str(base), path), (*seen, path)), values)


def find_base(name: str, path: Path) -> Path:
    """The config that a `base:` in the file `path` names: relative to that file, or as `find_config`."""
    beside = path.parent / name
    return beside if beside.is_file() else find_config(name)


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`: mappings are merged, everything else (including lists) is replaced."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _config_arguments(args: Sequence[str]) -> Iterator[tuple[int, str]]:
    """(index, config name) of every config on a command line."""
    for i, argument in enumerate(args):
        if argument.startswith("--config="):
            yield i, argument.removeprefix("--config=")
        elif i and args[i - 1] in ("--config", "-c"):
            yield i, argument


def find_config(name: str, option: str = "--config") -> Path:
    """The file that a user names by path or, for a shipped one, by name.

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
    near = nearest_configs(relative.removesuffix(".yaml"))
    hint = f"did you mean {' or '.join(near)}?" if near else f"the shipped ones are in {config_folder()}"
    raise UserError(f"{option}: there is no file {name!r}; {hint}")


def shipped_configs() -> list[str]:
    """The names of the shipped configs, such as `smoke/grpo`."""
    return sorted(str(path.relative_to(config_folder()).with_suffix("")) for path in config_folder().rglob("*.yaml"))


def nearest_configs(name: str, count: int = 3) -> list[str]:
    """Shipped configs whose name contains all words of a name, or else whose path or last part is similar."""
    words = [word for word in re.split(r"[/_\W]+", name) if word]

    def likeness(config: str) -> float:
        spelled = max(difflib.SequenceMatcher(None, name, known).ratio() for known in (config, Path(config).name))
        return spelled + bool(words and all(word in config for word in words))

    likely = [config for config in shipped_configs() if likeness(config) > 0.7]
    return sorted(likely, key=likeness, reverse=True)[:count]


def read_config(path: Path, known: Sequence[str] = TOP_KEYS, option: str = "--config") -> dict[str, Any]:
    """The content of a YAML file, with its form and top-level keys checked.

    Raises:
        UserError: it is not a YAML mapping, or has a key that is not `known`; names the `option` and the file.
    """
    try:
        value = _OnceLoader(path.read_text()).get_single_data()
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{option}: {path}{line}: not valid YAML ({getattr(error, 'problem', error)})") from error
    return check_keys(value, known, f"{option}: {path}")


class _OnceLoader(yaml.SafeLoader):
    """Refuses a duplicate key in a mapping; YAML would silently drop the first one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def check_keys(value: Any, known: Sequence[str], where: str) -> dict[str, Any]:
    """Check that `value` is a mapping whose keys are all `known`, and return it.

    Raises:
        UserError: it is not; the message begins with `where`.
    """
    if not isinstance(value, dict):
        raise UserError(f"{where}: a config is a mapping of keys to values, not {type(value).__name__}")
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"keys: {', '.join(known)}"
            raise UserError(f"{where}: unknown key {key!r}; {hint}")
    return value


def changed_classes(args: Sequence[str], config: Any) -> Iterator[str]:
    """Reports which model or data options of a config file are kept when another class is chosen later.

    jsonargparse keeps the options that the new class also accepts, and silently drops the others.

    Yields:
        One line per replaced class.
    """
    for _, name in _config_arguments(args):
        path = find_config(name)
        values = load_config(path)
        for part in ("model", "data"):
            section, chosen = values.get(part), config.get(part)
            given = (section.get("init_args") or {}) if isinstance(section, dict) else {}
            options = (chosen.get("init_args") if chosen is not None else None) or {}
            dropped = [key for key in given if key not in options]
            new = chosen.class_path.rpartition(".")[2] if chosen is not None else "none"
            old = str(section.get("class_path")).rpartition(".")[2] if isinstance(section, dict) else new
            if dropped or (old != new and given):
                kept = ", ".join(key for key in given if key in options) or "nothing"
                lost = ", ".join(dropped) or "nothing"
                yield f"{part}: {new} instead of {old} of {path.name}: kept {kept}; dropped {lost}"


def changes(before: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The differences between two configs: (key, before, now); None for a missing value."""
    lists = isinstance(before, list) and isinstance(now, list) and len(before) == len(now)
    if lists and all(isinstance(item, dict) for item in [*before, *now]):
        before, now = dict(enumerate(before)), dict(enumerate(now))
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted({*before, *now}, key=str):
            yield from changes(before.get(name), now.get(name), f"{key}.{name}" if key else str(name))
    elif before != now:
        yield key, before, now
