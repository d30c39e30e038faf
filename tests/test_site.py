"""The documentation builds as a site that needs no network, and its links to files of the repository lead to pages."""

import re
from html import unescape
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
LOADED = re.compile(r"<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=\"?(https?:[^\" >]+)")
"""Addresses that a browser fetches by itself; those of `<a>` it does not."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as by `make docs`: a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder))
    config.plugins.run_event("startup", command="build", dirty=False)
    build(config)
    return folder


def test_nothing_is_loaded_from_the_network(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    assert not [(page.name, found) for page in pages for found in LOADED.findall(page.read_text())]


def test_every_page_of_the_repository_is_in_the_menu(site: Path) -> None:
    menu = (site / "index.html").read_text()
    names = [page.relative_to(ROOT / "docs").with_suffix(".html") for page in (ROOT / "docs").rglob("*.md")]
    assert not [name for name in names if f'href="{name}"' not in menu]


def test_links_to_source_files_lead_to_pages_that_show_them(site: Path) -> None:
    assert 'href="repository/tests/training/test_invariants.py.html"' in (site / "concepts.html").read_text()
    assert "test_no_cut_changes_a_step" in (site / "repository/tests/training/test_invariants.py.html").read_text()
    assert 'href="../scale.html#generating-during-training"' in (site / "repository/index.html").read_text()
    assert (site / "repository/research/results/mechanism.png").is_file()
    assert 'src="results/mechanism.png"' in (site / "repository/research/findings.html").read_text()
    assert 'href="results/auto_lr_high.json"' in (site / "repository/research/learning_rate.html").read_text()


def test_code_in_tables_has_bars_without_backslashes(site: Path) -> None:
    assert "<code>KL(T || S)</code>" in unescape((site / "algorithms/opd.html").read_text())
    assert not [page.name for page in (site / "algorithms").glob("*.html") if "\\|" in page.read_text()]


def test_the_notebook_is_a_page_with_its_picture(site: Path) -> None:
    page = site / "repository/notebooks/quickstart.ipynb.html"
    (picture,) = re.findall(r'<img[^>]*src="([^"]+)"', page.read_text())
    assert (page.parent / picture).read_bytes().startswith(b"\x89PNG")
