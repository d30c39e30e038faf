"""Config files: found by name, and errors about them told in one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

import lit_rlvr
from lit_rlvr.errors import UserError


def config_folder() -> Path:
    """Where the shipped configs are: inside the installed package, or beside it in a source checkout."""
    package = Path(lit_rlvr.__file__).parent
    inside = package / "_configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_configs(args: Sequence[str]) -> list[str]:
    """The arguments with every `--config NAME` made a path: a file as it is, else a shipped config.

    `quickstart`, `quickstart.yaml` and `configs/quickstart.yaml` all find the shipped quickstart.yaml.

    Raises:
        UserError: there is no such config, or it is not YAML (its name and line).
    """
    found = list(args)
    for i, name in _config_arguments(args):
        path = _find(name)
        _check_yaml(path)
        found[i] = f"--config={path}" if args[i].startswith("--config=") else str(path)
    return found


def _config_arguments(args: Sequence[str]) -> Iterator[tuple[int, str]]:
    """(index, config name) of every config on a command line."""
    for i, argument in enumerate(args):
        if argument.startswith("--config="):
            yield i, argument.removeprefix("--config=")
        elif i and args[i - 1] in ("--config", "-c"):
            yield i, argument


def _find(name: str) -> Path:
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
    raise UserError(f"--config: there is no file {name}{hint}")


def _check_yaml(path: Path) -> None:
    try:
        value = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"--config: {path}{line}: not valid YAML ({getattr(error, 'problem', error)})") from error
    if not isinstance(value, dict):
        raise UserError(f"--config: {path}: a config is a mapping of keys to values, not {type(value).__name__}")


def dropped_options(args: Sequence[str], config: Any) -> Iterator[tuple[str, str]]:
    """Options of model or data that a config file gives and the finally chosen class does not have.

    jsonargparse drops them without a word when a later config or argument changes the class.

    Yields:
        (key, "value of file").
    """
    for _, name in _config_arguments(args):
        path = _find(name)
        values = yaml.safe_load(path.read_text())
        for part in ("model", "data"):
            section = values.get(part)
            given = section.get("init_args", {}) if isinstance(section, dict) else {}
            chosen = config.get(part)
            kept = chosen.get("init_args") if chosen is not None else None
            for key, value in (given or {}).items():
                if kept is None or key not in kept:
                    yield f"{part}.{key}", f"{value!r} of {path}"


def explain_parse_error(error: Exception, args: Sequence[str]) -> str:
    """A parse error as one line, with the nearest valid key where a key is unknown."""
    text = " ".join(str(error).split())
    unknown = re.search(r"[Kk]ey '([^']+)' is not expected|[Uu]nrecognized arguments: (\S+)", text)
    if unknown:
        key = (unknown.group(1) or unknown.group(2)).lstrip("-").split("=")[0]
        near = difflib.get_close_matches(key.split(".")[-1], _known_keys(), 1)
        text += f" (did you mean {near[0]!r}?)" if near else ""
    return text


def _known_keys() -> list[str]:
    """Every option name of the shipped classes."""
    import inspect

    from lightning.pytorch import Trainer

    from datamodules import PromptDataModule
    from lit_rlvr.algorithms import RLVRModule
    from lit_rlvr.rollout import RolloutCallback
    from lit_rlvr.run.checkpoint import RunCheckpoint
    from lit_rlvr.run.folder import RunFolder
    from lit_rlvr.types import Sampling

    names = {"model", "data", "rollout", "trainer", "checkpoint", "run", "seed_everything", "overwrite", "ckpt_path"}
    roots: list[type] = [RLVRModule, PromptDataModule, RolloutCallback, RunCheckpoint, RunFolder, Sampling, Trainer]
    while roots:
        root = roots.pop()
        names |= set(inspect.signature(root).parameters) - {"self", "args", "kwargs"}
        roots += root.__subclasses__() if root is not Trainer else []
    return sorted(names)
