"""The configuration reference, made from signatures and docstrings.

`python -m lit_rlvr.reference > docs/reference.md`
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

from docstring_parser import parse
from jsonargparse import ArgumentParser

import datamodules
import lit_rlvr.rewards
from lit_rlvr import advantages, algorithms
from lit_rlvr.diversity import CosineSimilarity, JudgeScore, SelfBLEU4, SentenceEmbedder
from lit_rlvr.lora import Lora
from lit_rlvr.rollout import FileTransfer, HFEngine, NCCLTransfer, RolloutCallback, VLLMEngine, VLLMServerEngine
from lit_rlvr.run.budget import Budget
from lit_rlvr.run.checkpoint import RunCheckpoint
from lit_rlvr.run.collapse import CollapseStop
from lit_rlvr.run.folder import RunFolder
from lit_rlvr.types import Sampling
from lit_rlvr.warm_start import WarmStart

REWARDS = (
    "MathAnswer", "Choice", "OpenAnswer", "SQLExecution", "CodeTests", "CosineScaled", "Format", "Overlong",
    "FunctionReward",
)  # fmt: skip


def options(cls: type) -> Iterator[tuple[str, str, str, str]]:
    """(name, type, default, meaning) of a class's options, its base classes' included."""
    accepted = {name.split(".")[0] for name in ArgumentParser().add_class_arguments(cls)}  # some fix a base's option
    seen: set[str] = set()
    for owner in cls.__mro__:
        if "__init__" not in vars(owner) or owner is object:
            continue
        meanings = {p.arg_name: p.description or "" for p in parse(inspect.getdoc(owner) or "").params}
        for parameter in list(inspect.signature(owner.__init__).parameters.values())[1:]:  # type: ignore[misc]
            if parameter.kind is parameter.VAR_KEYWORD or parameter.name in seen or parameter.name not in accepted:
                continue
            seen.add(parameter.name)
            meaning = " ".join(meanings.get(parameter.name, "").split()).replace("|", "\\|")
            yield parameter.name, _type(parameter.annotation), _default(parameter.default), meaning
        if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(owner.__init__).parameters.values()):  # type: ignore[misc]
            return


def _type(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    return text.replace("|", "\\|")


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return "required"
    if dataclasses.is_dataclass(value):
        return "see Sampling"
    return f"`{value!r}`".replace("\n", "\\n")


def section(title: str, cls: type) -> str:
    """One class as a heading, its first sentence, and a table."""
    summary = parse(inspect.getdoc(cls) or "").short_description or ""
    rows = [f"| `{name}` | {kind} | {default} | {meaning} |" for name, kind, default, meaning in options(cls)]
    table = "\n".join(["| option | type | default | meaning |", "|---|---|---|---|", *rows]) if rows else "No options."
    return f"### {title}\n\n{' '.join(summary.split())}\n\n{table}\n"


def reference() -> str:
    """The whole page."""
    parts = [
        "# Configuration reference",
        "Made from the code by `python -m lit_rlvr.reference > docs/reference.md`; a test compares the two. "
        "`trainer:` takes every option of Lightning's Trainer. Options of `model`, `data`, engines, rewards and "
        "advantages stand under `init_args` of their `class_path`.",
    ]
    groups: list[tuple[str, list[type]]] = [
        ("model", [getattr(algorithms, name) for name in algorithms.__all__ if name != "RLVRModule"]),
        ("model.advantage", [cls for _, cls in sorted(advantages.REGISTRY.items())]),
        ("data", [getattr(datamodules, name) for name in datamodules.__all__ if name != "BadRow"]),
        ("model.lora", [Lora]),
        ("rollout", [RolloutCallback, Sampling]),
        ("rollout.engine", [HFEngine, VLLMEngine, VLLMServerEngine]),
        ("rollout.engine.transfer", [FileTransfer, NCCLTransfer]),
        ("rollout.rewards", [getattr(lit_rlvr.rewards, name) for name in REWARDS]),
        ("diversity", [SelfBLEU4, CosineSimilarity, SentenceEmbedder, JudgeScore]),
        ("run", [RunFolder]),
        ("budget", [Budget]),
        ("checkpoint", [RunCheckpoint]),
        ("collapse", [CollapseStop]),
        ("warm_start", [WarmStart]),
    ]
    for key, classes in groups:
        parts.append(f"## `{key}`")
        parts += [section(cls.__name__, cls) for cls in classes]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
