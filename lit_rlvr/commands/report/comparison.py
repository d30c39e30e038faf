"""The results of a study on its page: `results.md`, which `lit-rlvr compare` writes, as HTML with its figures."""

from __future__ import annotations

import base64
import re
from pathlib import Path

from markdown_it import MarkdownIt
from markupsafe import Markup

from lit_rlvr.common.terminal import printable

COMPARISON = "results.md"
"""File of a study's folder with its tables and the places of its figures."""
FIGURE = re.compile(r"^!\[[^]]*\]\((figures/[^)]+\.png)\)$", re.MULTILINE)
"""A line with a figure."""
EMPTY = re.compile(r"^## .*\s*(?=^## |\Z)", re.MULTILINE)
"""A section that had nothing but figures."""


StudyResults = tuple[str, Markup, list[tuple[str, str]]]
"""A study's name, its tables and their explanations as HTML, and (title, data URI) of its figures."""


def comparison(folder: Path) -> StudyResults:
    """Read the results of a study; show HTML in names and errors as text, and leave out figures that are missing."""
    title, _, text = (folder / COMPARISON).read_text(encoding="utf-8", errors="replace").partition("\n")
    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["image", "link", "autolink"])
    reader.add_render_rule("table_open", lambda *_: '<div class="scroll"><table class="numbers">')
    reader.add_render_rule("table_close", lambda *_: "</table></div>")
    for cell in ("th", "td"):
        reader.add_render_rule(f"{cell}_open", lambda _, tokens, k, *__: f"<{tokens[k].tag}><div>")
        reader.add_render_rule(f"{cell}_close", lambda _, tokens, k, *__: f"</div></{tokens[k].tag}>")
    tokens = reader.parse(printable(EMPTY.sub("", FIGURE.sub("", text))))
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{int(token.tag[1:]) + 1}"
    paths = [folder / source for source in FIGURE.findall(text) if ".." not in source]
    figures = [(_title(path), _uri(path)) for path in paths if path.is_file()]
    return title.removeprefix("# "), Markup(reader.renderer.render(tokens, reader.options, {})), figures


def _title(path: Path) -> str:
    """Return a figure's name, after that of its task if it has one."""
    return path.stem if path.parent.name == "figures" else f"{path.parent.name}: {path.stem}"


def _uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
