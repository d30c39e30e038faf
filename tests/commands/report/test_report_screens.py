"""The page in a real browser, as narrow as on a phone: it fits, it shows something, and its switches work."""

import html
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from browser import chromium
from made_runs import METRICS, config, group, make_run, make_study, row
from PIL import Image

from lit_rlvr.commands.report.page import write_report
from lit_rlvr.run.outputs import save_thumbnails

LONG = "unbroken" * 80
FRAME = """<!doctype html><meta charset="utf-8">
<style>body {{ margin: 0 }} iframe {{ border: 0; display: block }}</style>
<iframe id="frame" width="{width}" height="{height}" srcdoc="{page}"></iframe>
<script>
onload = () => {{
  const inner = document.getElementById("frame").contentDocument, root = inner.documentElement;
  const shown = (selector) => getComputedStyle(inner.querySelector(selector)).display !== "none";
  const found = {{}};
  for (const open of [false, true]) {{
    if (open) inner.querySelectorAll("details").forEach((each) => each.open = true);
    found[open ? "opened" : "closed"] = root.scrollWidth;
  }}
  found.viewport = root.clientWidth;
  found.lines = [...inner.querySelectorAll("figure .line")].filter((line) => line.getBBox().width > 0).length;
  found.small = [...inner.querySelectorAll("figure .tick")].filter((t) => t.getBoundingClientRect().height < 9).length;
  found.strangers = inner.querySelectorAll("script, iframe, object, link, form").length;
  const box = inner.getElementById("show-0");
  if (box) {{
    found.before = shown(".g0"); box.click(); found.after = shown(".g0"); found.others = shown(".g1"); box.click();
  }}
  inner.querySelectorAll("details").forEach((each) => each.open = false);
  document.title = JSON.stringify(found);
}};
</script>"""
"""A window cannot be as narrow as a phone; a frame can, and its page is laid out as in a window of that width."""


def browse(page: str, width: int, height: int, folder: Path) -> tuple[dict[str, Any], Image.Image]:
    """What a browser measures of a page, and its picture."""
    frame, picture = folder / "frame.html", folder / "picture.png"
    frame.write_text(FRAME.format(width=width, height=height, page=html.escape(page)), encoding="utf-8")
    command = [
        chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
        f"--user-data-dir={folder / 'profile'}", f"--window-size={max(width, 500)},{height + 200}",
    ]  # fmt: skip
    dom = _run([*command, "--dump-dom", frame.as_uri()])
    _run([*command, f"--screenshot={picture}", frame.as_uri()])
    title = re.search(r"<title>(\{.*?\})</title>", dom)
    assert title is not None, dom[-2000:]
    return json.loads(html.unescape(title[1])), Image.open(picture).convert("RGB").crop((0, 0, width, height))


def _run(command: list[Any]) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a study with pictures, failures, many groups, and names too long for any screen."""
    root = tmp_path_factory.mktemp("study")
    cells: list[dict[str, Any]] = [
        {"name": f"cell {k} {LONG if k == 8 else ''}", "seed": seed, "run": f"runs/{k}/seed-{seed}"}
        for k in range(9)
        for seed in (0, 1)
    ]
    for k, cell in enumerate(cells[:-1]):
        folder = root / cell["run"]
        images = save_thumbnails((Image.new("RGB", (500, 300), "teal"),), folder)
        rows = [
            row(step, "q", g, g == 0, LONG, prompt=LONG, answer=LONG, images=images) for step in (2, 4) for g in (0, 1)
        ]
        rows += [row(4, "hard", g, False, LONG, prompt=f"<script>{LONG}</script>") for g in (0, 1)]
        metrics = {
            step: {name: value * (1 - k / 40) for name, value in values.items()} | {f"val/s/accuracy/{LONG}": 0.5}
            for step, values in METRICS.items()
        }
        settings = config(cell["seed"], lr=k // 2, note=LONG + str(k // 2))
        make_run(folder, settings, metrics, rows, {4: [group(text=LONG)]}, engine=LONG)
    cells[-1] |= {"status": "failed", "error": LONG}
    return write_report([make_study(root, cells, baseline=cells[0]["name"])])


def test_the_report_fits_and_shows_something(study: Path, tmp_path: Path) -> None:
    width, height = 360, 800
    found, picture = browse(study.read_text(encoding="utf-8"), width, height, tmp_path)
    assert found["viewport"] == width
    assert found["closed"] <= width and found["opened"] <= width
    assert (found["lines"] >= 9 * 5, found["small"], found["strangers"]) == (True, 0, 0)
    assert found["before"], "a group's switch hides its curves alone"
    assert not found["after"], "a group's switch hides its curves alone"
    assert found["others"], "a group's switch hides its curves alone"
    colours = picture.getcolors(width * height)
    assert len(colours) > 100
    assert max(count for count, _ in colours) < 0.95 * width * height
