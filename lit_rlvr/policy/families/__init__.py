"""The families of vision-language models. Nothing else branches on a family or on a model's type."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from lit_rlvr.common.packages import load_part, registered_parts
from lit_rlvr.errors import UserError
from lit_rlvr.policy.families.base import VisionFamily
from lit_rlvr.policy.families.gemma3 import Gemma3
from lit_rlvr.policy.families.gemma4 import Gemma4
from lit_rlvr.policy.families.glm4v import GLM4V
from lit_rlvr.policy.families.internvl import InternVL
from lit_rlvr.policy.families.qwen_vl import QwenVL
from lit_rlvr.policy.families.smolvlm import SmolVLM

FAMILIES: dict[str, type[VisionFamily]] = {
    "qwen_vl": QwenVL,
    "smolvlm": SmolVLM,
    "gemma3": Gemma3,
    "gemma4": Gemma4,
    "internvl": InternVL,
    "glm4v": GLM4V,
}
"""Our families; those that installed packages register come after them."""


def family_of(config: Any) -> VisionFamily | None:
    """Return the family of a vision-language model, given its config; None for a language model.

    Raises:
        UserError: the model takes images, and no family knows how.
    """
    if not hasattr(config, "vision_config"):
        return None
    known = []
    for family in _families():
        if family.is_family(config):
            return family(config)
        known.append(family.names)
    raise UserError(
        f"model: {config.model_type} does not take images as any supported model does; use one of {', '.join(known)}, "
        "or install a package that has its family"
    )


def _families() -> Iterator[type[VisionFamily]]:
    """Yield our families, then those of installed packages, which are imported only if none of ours was right."""
    yield from FAMILIES.values()
    for point in registered_parts("families", FAMILIES).values():
        yield load_part(point, VisionFamily)


def vision_modules(model: Any) -> list[nn.Module]:
    """Return the parts of a model that turn pixels into features; none for a language model."""
    family = family_of(model.config)
    if family is None:
        return []
    return family.vision_modules(model)


def language_modules(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """Return a model's modules with their names, except those of `vision_modules`."""
    left_out = set()
    for part in vision_modules(model):
        for module in part.modules():
            left_out.add(id(module))
    return ((name, module) for name, module in model.named_modules() if id(module) not in left_out)


def freeze_vision_tower(model: Any) -> None:
    """Freeze the parts of `vision_modules`, in place.

    Raises:
        UserError: the model has none.
    """
    parts = vision_modules(model)
    if not parts:
        raise UserError(f"model.freeze_vision: {type(model).__name__} has no vision tower; leave the option out")
    for part in parts:
        part.requires_grad_(False)
