"""Config files: found by name, and errors about them told in one line."""

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
    "warm_start", "overwrite", "ckpt_path", "weights_only", "verbose",
)  # fmt: skip
"""What a config of `fit` or `validate` may hold."""


def config_folder() -> Path:
    """Where the shipped configs are: inside the installed package, or beside it in a source checkout."""
    package = Path(lit_rlvr.__file__).parent
    inside = package / "_configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_configs(args: Sequence[str]) -> list[str]:
    """The arguments with every `--config NAME` made a path: a file as it is, else a shipped config.

    `quickstart`, `quickstart.yaml` and `configs/quickstart.yaml` all find the shipped quickstart.yaml. A config with a
    `base:` is replaced by a file that holds it merged over its base.

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
    """A config merged over its `base:` (a path beside it, or a shipped config), mappings key by key.

    Raises:
        UserError: as `find_configs`, or the bases run in a circle.
    """
    if path in seen:
        raise UserError(f"--config: {path}: its `base:` leads back to itself")
    values = read_config(path)
    base = values.pop("base", None)
    return values if base is None else merge(load_config(find_base(str(base), path), (*seen, path)), values)


def find_base(name: str, path: Path) -> Path:
    """The config that a `base:` in the file `path` names: beside that file, or as `find_config`."""
    beside = path.parent / name
    return beside if beside.is_file() else find_config(name)


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`: mappings are merged, everything else (lists too) is replaced."""
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
    """The file that a user names by its path or, if it is a shipped one, by its name.

    Raises:
        UserError: there is none; it names the nearest, and the `option`.
    """
    path = Path(name)
    if path.is_file():
        return path
    relative = name.removeprefix("configs/")
    for candidate in (config_folder() / relative, config_folder() / f"{relative}.yaml"):
        if candidate.is_file():
            return candidate
    shipped = [str(p.relative_to(config_folder()).with_suffix("")) for p in config_folder().rglob("*.yaml")]
    near = difflib.get_close_matches(relative.removesuffix(".yaml"), shipped, 1)
    hint = f"; did you mean {near[0]}?" if near else f"; shipped configs: {', '.join(sorted(shipped))}"
    raise UserError(f"{option}: there is no file {name}{hint}")


def read_config(path: Path, known: Sequence[str] = TOP_KEYS, option: str = "--config") -> dict[str, Any]:
    """A YAML file as it stands, its form and top-level keys checked.

    Raises:
        UserError: it is not a mapping in YAML, or has a key that is not `known`; names the `option` and the file.
    """
    try:
        value = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{option}: {path}{line}: not valid YAML ({getattr(error, 'problem', error)})") from error
    return check_keys(value, known, f"{option}: {path}")


def check_keys(value: Any, known: Sequence[str], where: str) -> dict[str, Any]:
    """`value`, a mapping whose keys are all `known`.

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
    """What became of a config file's options of model or data where the finally chosen class is another one.

    jsonargparse keeps those that the new class accepts too, and drops the others without a word.

    Yields:
        One line per class that was replaced.
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


PARSE_ERRORS = (
    (r"class_path '(?P<name>[^']+)': Option '(?P<key>[^']+)' is not accepted", "{where}: {name} has no option {key!r}"),
    (r"class_path '(?P<name>[^']+)': Parser key \"(?P<key>[^\"]+)\": (?P<why>.*?)(?= - |$)", "{where}.{key}: {why}"),
    (r"class_path '(?P<name>[^']+)': (?P<why>.*?)(?= - |$)", "{where}: class_path {name!r} cannot be used: {why}"),
    (r"Expected a dot import path string: (?P<key>\S+)", "{where}: there is no class {key!r}"),
    (r"does not accept option '(?P<key>[^']+)'", "unknown key {key!r}"),
    (r"[Uu]nrecognized arguments: -*(?P<key>[^ =]+)", "unknown option {key!r}"),
)
"""jsonargparse's long messages -> what is wrong; `where` is the key that the message names."""


def explain_parse_error(error: Exception) -> str:
    """A parse error as one line, with the nearest valid name where one is unknown."""
    text = " ".join(str(error).split())
    where = re.search(r'Parser key "([^"]+)"', text)
    for pattern, message in PARSE_ERRORS:
        found = re.search(pattern, text)
        if not found:
            continue
        said = message.format(where=where.group(1) if where else "config", **found.groupdict())
        if "why" in found.groupdict():
            return said
        key = found["key"].split(".")[-1]
        near = difflib.get_close_matches(key, [name for name in _known_names() if name != key], 1)
        return said + (f"; did you mean {near[0]!r}?" if near else "")
    return text.split(" Given value")[0]


def _known_names() -> list[str]:
    """Every option of the shipped classes, and their short names."""
    import inspect

    from lightning.pytorch import Trainer

    from datamodules import PromptDataModule
    from lit_rlvr.advantages import Advantage
    from lit_rlvr.algorithms import RLVRModule
    from lit_rlvr.rewards import Reward
    from lit_rlvr.rollout import RolloutCallback, RolloutEngine
    from lit_rlvr.run.budget import Budget
    from lit_rlvr.run.checkpoint import RunCheckpoint
    from lit_rlvr.run.folder import RunFolder
    from lit_rlvr.types import Sampling

    names = set(TOP_KEYS)
    open_roots: list[type] = [RLVRModule, PromptDataModule, Reward, RolloutEngine, Advantage]
    leaves: list[type] = [Budget, RolloutCallback, RunCheckpoint, RunFolder, Sampling, Trainer]
    while open_roots:
        leaves.append(open_roots.pop())
        open_roots += leaves[-1].__subclasses__()
        names.add(leaves[-1].__name__)
    for leaf in leaves:
        names |= set(inspect.signature(leaf).parameters) - {"self", "args", "kwargs"}
    return sorted(names)
