"""Describes tools as text, for models whose chat template has no place for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

HOW = "To call a tool, write <call>name(arguments)</call> and wait for its result. The tools are:"


def describe(tools: Sequence[dict[str, Any]]) -> str:
    """How to call the tools, and a line for each.

    Args:
        tools: JSON schemas, as chat templates take them.
    """
    return "\n".join([HOW, *map(_line, tools)])


def _kind(spec: dict[str, Any]) -> str:
    """An argument's type, or its values if it has only some."""
    if "enum" in spec:
        return " or ".join(map(repr, spec["enum"]))
    kind = spec.get("type", "any")
    return kind if isinstance(kind, str) else " or ".join(kind)


def _line(tool: dict[str, Any]) -> str:
    function = tool["function"]
    properties = function.get("parameters", {}).get("properties", {})
    arguments = ", ".join(f"{name}: {_kind(spec)}" for name, spec in properties.items())
    notes = "; ".join(f"{name}: {spec['description']}" for name, spec in properties.items() if spec.get("description"))
    return f"{function['name']}({arguments}) - {function.get('description', '')}" + (f" ({notes})" if notes else "")
