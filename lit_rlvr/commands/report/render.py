"""Renders self-contained HTML pages from `templates/`, with all inserted values escaped."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lit_rlvr.commands.report.prompts import verdict_text
from lit_rlvr.common.files import write_atomically
from lit_rlvr.common.run_files import thumbnail_path
from lit_rlvr.common.terminal import printable
from lit_rlvr.errors import UserError
from lit_rlvr.run.advice import GUIDE
from lit_rlvr.run.metric_table import find_metric
from lit_rlvr.speech.prompts import prompt_text

MARK = '<meta name="generator" content="lit-rlvr">'
"""Mark in every page (`page.html`)."""


def render(template: str, **values: Any) -> str:
    """Render a page.

    Models and data sets supply much of its content, so the template escapes every value and replaces control
    characters. The page's security policy (`page.html`) also forbids scripts and all requests.
    """
    return _environment().get_template(template).render(**values)


def write_page(path: Path, text: str, option: str) -> None:
    """Write a page, and create its folder; replace an older page of ours.

    Args:
        path: the file.
        text: the page.
        option: the option that messages name.

    Raises:
        UserError: another file has that name, or it cannot be written.
    """
    try:
        if path.exists() and MARK not in path.read_text(errors="replace"):
            raise UserError(f"{option}: {path} exists and is not a page of lit-rlvr; choose another name")
        write_atomically(path, text)
    except OSError as error:
        raise UserError(f"{option}: {path} cannot be written: {error.strerror}") from error


def image_uris(run: Path, record: Mapping[str, Any]) -> list[str]:
    """Return the thumbnails of a prompt's images as data URIs, without missing ones.

    Args:
        run: the run folder.
        record: a line of completions.jsonl or a saved group; `images` has the thumbnails' keys.
    """
    paths = [thumbnail_path(run, key) for key in record.get("images", ()) if re.fullmatch(r"[0-9a-f]+", key)]
    return [f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}" for path in paths if path.is_file()]


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("lit_rlvr.commands"), autoescape=True, undefined=StrictUndefined, finalize=_visible,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.globals |= {
        "verdict": verdict_text,
        "prompt_text": prompt_text,
        "find_metric": find_metric,
        "guide": GUIDE,
    }
    return environment


def _visible(value: Any) -> Any:
    """Return text and paths without control characters; leave the output of a macro unchanged."""
    if hasattr(value, "__html__") or not isinstance(value, str | Path):
        return value
    return printable(str(value))
