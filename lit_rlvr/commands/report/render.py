"""Renders self-contained HTML pages from `templates/`, with all inserted values escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lit_rlvr.commands.report.places import place_marks
from lit_rlvr.commands.report.prompts import TrackedPrompt, image_keys, verdict_text
from lit_rlvr.common.files import write_atomically
from lit_rlvr.common.pictures import data_url
from lit_rlvr.common.run_files import thumbnail_path
from lit_rlvr.common.terminal import printable
from lit_rlvr.errors import UserError
from lit_rlvr.run.advice import GUIDE
from lit_rlvr.run.metric_table import find_metric
from lit_rlvr.speech.prompts import prompt_text

MARK = '<meta name="generator" content="lit-rlvr">'
"""Mark in every page (`page.html`)."""
ROW_PIXELS, ROW_QUALITY = 64, 60
"""The longer side of a picture in a table's row, in pixels, and its quality in percent: 0.2 to 1.5 kB."""
MOST_PIXELS = 4096
"""The longer side of the largest thumbnail that is decoded; a run's own are far smaller."""


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


def image_uris(run_folder: Path, record: Mapping[str, Any]) -> list[str]:
    """Return the thumbnails of a prompt's images as data URIs, without missing ones.

    Args:
        run_folder: the run folder.
        record: a line of completions.jsonl or a saved group; `images` has the thumbnails' keys.
    """
    paths = []
    for key in image_keys(record):
        paths.append(thumbnail_path(run_folder, key))
    uris = []
    for path in paths:
        if path.is_file():
            uris.append(data_url("png", path.read_bytes()))
    return uris


def added_uris(run_folder: Path, completion: Mapping[str, Any]) -> list[str]:
    """Return the thumbnails of the images that an environment or agent added to a completion, as `image_uris` does."""
    return image_uris(run_folder, {"images": completion.get("added_images")})


def small_uris(run_folder: Path, prompts: Iterable[TrackedPrompt]) -> dict[str, str]:
    """Return a picture for a table's row of the first image of each prompt that has one, as a data URI by prompt.

    Args:
        run_folder: the run folder.
        prompts: the prompts in the table.
    """
    firsts = {}
    for prompt in prompts:
        if prompt.images:
            firsts[prompt.id] = thumbnail_path(run_folder, prompt.images[0])
    uris = {}
    for name, path in firsts.items():
        if path.is_file():
            uris[name] = _small_uri(path)
    return {name: uri for name, uri in uris.items() if uri}


@lru_cache(maxsize=4096)
def _small_uri(path: Path) -> str:
    """Return a thumbnail in the size of a table's row as a data URI; "" if it is no picture, or too large for ours."""
    from PIL import Image

    content = BytesIO()
    try:
        with Image.open(path) as picture:
            if max(picture.size) > MOST_PIXELS:
                return ""
            whole = picture.convert("RGBA")
        whole.thumbnail((ROW_PIXELS, ROW_PIXELS))
        white = Image.new("RGBA", whole.size, "white")
        Image.alpha_composite(white, whole).convert("RGB").save(content, "WEBP", quality=ROW_QUALITY)
    except (OSError, ValueError, SyntaxError):  # the last of a broken PNG
        return ""
    return data_url("webp", content.getvalue())


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("lit_rlvr.commands"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "verdict": verdict_text,
        "prompt_text": prompt_text,
        "place_marks": place_marks,
        "find_metric": find_metric,
        "guide": GUIDE,
    }
    return environment


def _visible(value: Any) -> Any:
    """Return text and paths without control characters; leave the output of a macro unchanged."""
    if hasattr(value, "__html__") or not isinstance(value, str | Path):
        return value
    return printable(str(value))
