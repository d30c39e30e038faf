"""The pages of `watch` in a real browser, on a phone and on a desktop, while the run is being written."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest
import uvicorn
from browser import Page, browser
from made_runs import METRICS, config, group, make_run, row
from PIL import Image
from test_watch_follow import live

from lit_rlvr.commands.watch.application import application
from lit_rlvr.commands.watch.follow import FollowedFolders
from lit_rlvr.common.sockets import open_socket
from lit_rlvr.run.outputs import save_thumbnails

LONG = "unbroken" * 60
SIZES = [360, 1280]


def rows(step: int, keys: list[str]) -> list[dict[str, object]]:
    return [
        row(step, name, g, (step // 2 + g) % 3 == 0, completion=f"{LONG} {step}", answer=LONG, images=keys)
        for name in ("1+1", LONG)
        for g in range(4)
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with long names, of which the first is going on."""
    root = tmp_path_factory.mktemp("runs")
    keys = save_thumbnails([Image.new("RGB", (300, 200), "red")], root / "going")
    going = [line for step in range(2, 120, 2) for line in rows(step, keys)]
    make_run(root / "going", config(), rows=going, traces={118: [group("1+1", text=LONG)]})
    (root / "going" / "summary.json").unlink()
    make_run(root / f"done_{LONG[:60]}", config(algorithm="DAPO"), metrics=METRICS | {8: {"train/no_signal": 0.99}})
    return root


@contextmanager
def serving(runs: Path) -> Iterator[str]:
    """The address of `lit-rlvr watch`, in this process."""
    listener = open_socket("127.0.0.1", 0)
    served = uvicorn.Server(uvicorn.Config(application(FollowedFolders([runs])), log_level="warning"))
    thread = threading.Thread(target=served.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        served.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[str]:
    (runs / "going" / "live.json").write_text(live())
    with serving(runs) as address:
        yield address


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.mark.parametrize("width", SIZES)
def test_every_view_fits_and_shows_something(server: str, page: Page, runs: Path, width: int) -> None:
    run = str(runs / "going")
    views = {
        "/": "figure .line",
        "/prompts?" + urlencode({"run": run}): ".bars .share",
        "/prompt?" + urlencode({"run": run, "id": LONG}): ".completion .text",
        "/prompt?" + urlencode({"run": run, "id": "1+1", "step": 118}): "span.up",
    }
    for path, part in views.items():
        page.open(server + path, width)
        page.wait(f"document.querySelectorAll({json.dumps(part)}).length > 0")
        page.ask("document.querySelectorAll('details').forEach((each) => each.open = true)")
        assert page.ask("document.documentElement.scrollWidth") <= page.ask("innerWidth") == width, path
        assert len(set(page.picture().resize((90, 90)).getdata())) > 10, path
    assert not page.errors


@pytest.mark.slow
def test_it_renews_itself_while_the_run_is_written(server: str, page: Page, runs: Path) -> None:
    """The stage, a new point in the curves, and a new visit of the prompt; what was opened stays open."""
    folder = runs / "going"
    page.open(server + "/", 1280)
    page.ask("document.querySelector('#settings details').open = true")
    page.ask("document.querySelector('#show-1').click()")
    (folder / "live.json").write_text(live(step=7, stage="scoring", total=0, tokens_per_second=0, waiting={"judge": 4}))
    page.wait("document.getElementById('now').innerText.includes('step 7 of 10, scoring, waiting for judge 4 s')")
    before = page.ask("document.getElementById('curves').innerText")
    with (folder / "metrics.csv").open() as file:
        *_, last = file.read().splitlines()
    with (folder / "metrics.csv").open("a") as file:
        file.write(",".join(["300", *last.split(",")[1:]]) + "\n")
    page.wait(f"document.getElementById('curves').innerText !== {json.dumps(before)}")
    assert page.ask("document.querySelector('#settings details').open")
    assert not page.ask("document.querySelector('#show-1').checked")

    page.open(server + "/prompt?" + urlencode({"run": str(folder), "id": "1+1"}), 1280)
    page.wait("document.querySelector('#group h2').innerText.includes('Step 118')")
    keys = [path.stem for path in (folder / "images").iterdir()]
    with (folder / "completions.jsonl").open("a") as file:
        for line in rows(300, keys):
            file.write(json.dumps(line) + "\n")
            file.flush()
            time.sleep(0.05)
    page.wait("document.querySelector('#group h2').innerText.includes('Step 300')")
    page.wait("document.querySelectorAll('.completion').length === 4")
    assert not page.errors


@pytest.mark.slow
def test_it_says_when_the_server_is_gone(runs: Path, page: Page) -> None:
    with serving(runs) as address:
        page.open(address, 1280)
        assert page.ask("document.getElementById('lost').hidden")
    page.wait("!document.getElementById('lost').hidden")
    assert "lit-rlvr watch" in page.ask("document.getElementById('lost').innerText")
