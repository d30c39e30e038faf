"""What `mkdocs.yml` needs beyond plugins: pages for linked files that are not in docs/, so that the links of the
documents work on the site as they do in the repository; and bars in the code of tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.utils import get_relative_url
from nbconvert import MarkdownExporter

DOCS = Path(__file__).parent.resolve()
ROOT = DOCS.parent
LINK = re.compile(r"(?<=\]\()([^)#\s]+)")
TABLE_ROW, CODE_WITH_BAR = re.compile(r"^\|.*$", re.M), re.compile(r"`([^`]*\\\|[^`]*)`")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml"}
AS_IT_IS = {".png", ".json"}
"""Files that the site has as files, without a page around them."""
INTRODUCTION = "<!-- README.md up to its first section -->"
"""Where index.md shows the beginning of the README."""


def on_config(config: Any) -> Any:
    """Add the pages of algorithms to the navigation, in the order and under the names of their table."""
    pages = re.findall(r"^\| \[([^]]+)\]\((\w+\.md)\)", (DOCS / "algorithms/index.md").read_text(), re.M)
    (section,) = [entry["Algorithms"] for entry in config.nav if "Algorithms" in entry]
    section[1:1] = [{title: f"algorithms/{page}"} for title, page in pages]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add every file outside docs/ that a page, or such a file, links to: as a page, or a picture as it is."""
    pages = [(DOCS / file.src_uri, (DOCS / file.src_uri).read_text()) for file in files.documentation_pages()]
    pages.append((ROOT / "index.md", introduction()))
    while pages:
        source, text = pages.pop()
        for target in linked(source, text):
            name = page_of(target)
            if name.startswith("repository/") and files.get_file_from_path(name) is None:
                if target.suffix in AS_IT_IS:
                    files.append(File.generated(config, name, content=target.read_bytes()))
                    continue
                content, pictures = shown(target)
                for picture, data in pictures.items():
                    files.append(File.generated(config, f"repository/{picture}", content=data))
                files.append(File.generated(config, name, content=content))
                if target.suffix == ".md" or target.is_dir():
                    pages.append((target, content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A page with its links turned into links of the site."""
    name = page.file.src_uri
    if name == "index.md":
        markdown = markdown.replace(INTRODUCTION, relinked(introduction(), ROOT / "README.md", name))
    source = ROOT / name.removeprefix("repository/") if name.startswith("repository/") else DOCS / name
    markdown = TABLE_ROW.sub(lambda row: CODE_WITH_BAR.sub(with_bars, row[0]), markdown)
    return relinked(markdown, source, name)


def with_bars(code: re.Match[str]) -> str:
    """Code in a table with the bars that GitHub shows there, for which Python-Markdown would show `\\|`."""
    text = escape(code[1].replace("\\|", "|"))
    return f"<code>{re.sub('[|*_]', lambda sign: f'&#{ord(sign[0])};', text)}</code>"


def introduction() -> str:
    """The README between its title and its first section."""
    return (ROOT / "README.md").read_text().partition("\n## ")[0].partition("\n")[2]


def linked(source: Path, text: str) -> Iterator[Path]:
    """The files and folders of the repository that a file links to."""
    for link in LINK.findall(text):
        target = (source.parent / link).resolve()
        if target.exists() and target.is_relative_to(ROOT):
            yield target


def relinked(text: str, source: Path, page: str) -> str:
    """A text with its links to files turned into links from a page of the site.

    Args:
        source: the file that the text comes from. page: the name of the page that it stands on.
    """

    def link(match: re.Match[str]) -> str:
        target = (source.parent / match[1]).resolve()
        inside = target.exists() and target.is_relative_to(ROOT)
        return get_relative_url(page_of(target), page) if inside else match[1]

    return LINK.sub(link, text)


def page_of(target: Path) -> str:
    """The name of the page that shows a file of the repository, or of the file itself."""
    if target.is_relative_to(DOCS) and target.is_file():
        return target.relative_to(DOCS).as_posix()
    name = target.relative_to(ROOT).as_posix()
    return f"repository/{name}" if target.suffix in {".md", *AS_IT_IS} else f"repository/{name}.md"


def shown(target: Path) -> tuple[str, dict[str, bytes]]:
    """A file, or the list of a folder's files, as Markdown, and its pictures by their paths in the repository."""
    place = target.relative_to(ROOT)
    if target.is_dir():
        names = sorted(path.name for path in target.iterdir() if path.is_file())
        return "\n".join([f"# {place}", "", *(f"- [{name}]({target.name}/{name})" for name in names)]), {}
    if target.suffix == ".md":
        return target.read_text(), {}
    if target.suffix == ".ipynb":
        text, resources = MarkdownExporter().from_filename(str(target))
        return text, {f"{place.parent}/{name}": data for name, data in resources["outputs"].items()}
    code = f"````{LANGUAGES.get(target.suffix, 'text')}\n{target.read_text()}````"
    return f"---\nsearch: {{exclude: true}}\n---\n\n# {place}\n\n{code}\n", {}
