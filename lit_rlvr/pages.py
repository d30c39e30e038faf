"""HTML pages from the files in `templates/`: self-contained, and whatever is put into them is text."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lit_rlvr.text import printable


def render(template: str, **values: Any) -> str:
    """A page. Models and data sets wrote much of what goes into it: every value is escaped, and control characters
    are replaced. The page's own policy (`page.html`) forbids scripts and any request besides."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("lit_rlvr"), autoescape=True, undefined=StrictUndefined, finalize=_visible,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def _visible(value: Any) -> Any:
    """Text without control characters; what a macro made of it is left as it is."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
