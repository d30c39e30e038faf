"""The pages of `watch`: what they show, to whom, and that they change nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_runs import METRICS, group, make_run, row
from PIL import Image
from starlette.testclient import TestClient

from lit_rlvr.commands.watch.application import COOKIE, application
from lit_rlvr.commands.watch.follow import FollowedFolders
from lit_rlvr.run.outputs import save_thumbnails

HOSTILE = "<script>alert(1)</script>\"'\x1b[2J&amp;"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with an image, turns, a traced step, a hostile prompt, and a metric with a hostile name."""
    folder = tmp_path / "run"
    folder.mkdir()
    keys = save_thumbnails([Image.new("RGB", (30, 20), "red")], folder)
    turns = [{"text": "look it up", "observation": "it is 2"}, {"text": "2", "observation": None}]
    rows = [row(step, "1+1", g, g < step // 2, completion=f"said {g} at {step}") for step in (2, 4) for g in range(2)]
    rows += [row(4, HOSTILE, g, False, completion=HOSTILE, images=keys, turns=turns) for g in range(2)]
    traces = {4: [group("1+1", text="seen", weights=(0.5, -0.25))]}
    return make_run(folder, metrics=METRICS | {6: {HOSTILE: 1.0}}, rows=rows, traces=traces)


def client(run: Path, token: str | None = None, **options: Any) -> TestClient:
    folders = FollowedFolders([run])
    folders.read_completions()
    return TestClient(application(folders, token), base_url="http://127.0.0.1", **options)


@pytest.fixture
def pages(run: Path) -> Iterator[tuple[TestClient, str]]:
    with client(run) as asked:
        yield asked, str(run)


def test_the_overview_shows_results_curves_and_what_the_run_does(pages: tuple[TestClient, str]) -> None:
    text = pages[0].get("/").text
    for shown in (
        "GRPO on Arithmetic",
        "finished after 6 steps",
        "Training reward",
        "+0.500",
        "Validation",
        "2 prompts",
    ):
        assert shown in text, shown


def test_a_prompt_shows_its_group_now_and_before(pages: tuple[TestClient, str]) -> None:
    asked, run = pages
    last = asked.get("/prompt", params={"run": run, "id": "1+1"}).text
    assert [text in last for text in ("Step 4: 2 of 2 correct", "said 1 at 4", "said 1 at 2")] == [True, True, False]
    first = asked.get("/prompt", params={"run": run, "id": "1+1", "step": 2}).text
    assert [text for text in ("Step 2: 1 of 2 correct", "said 1 at 2", "advantage -1") if text not in first] == []
    assert "4<br>2/2 *" in first, "step 4 is marked as traced"
    assert [text for text in ('class="down"', "weight -0.25, ratio 1.0000", "seen") if text not in last] == []
    assert 'class="down"' not in first and "Not saved: only the tokens of every run.trace_every-th" in first
    hostile = asked.get("/prompt", params={"run": run, "id": HOSTILE}).text
    assert [text for text in ("data:image/png;base64,", "look it up", "it is 2") if text not in hostile] == []
    assert 'class="text observed"' in hostile


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/prompts", {"run": "/etc"}),
        ("/prompt", {"run": "{run}", "id": "2+2"}),
        ("/prompt", {"run": "{run}", "id": "1+1", "step": 3}),
        ("/etc/passwd", {}),
    ],
)
def test_what_is_not_there_is_status_404(pages: tuple[TestClient, str], path: str, query: dict[str, Any]) -> None:
    asked, run = pages
    query = {name: run if value == "{run}" else value for name, value in query.items()}
    answer = asked.get(path, params=query)
    assert answer.status_code == 404 and "Traceback" not in answer.text


def test_every_value_is_escaped(pages: tuple[TestClient, str]) -> None:
    asked, run = pages
    queries: list[tuple[str, dict[str, Any]]] = [
        ("/", {}),
        ("/prompts", {"run": run, "words": HOSTILE}),
        ("/prompt", {"run": run, "id": HOSTILE}),
        ("/prompts", {"run": run}),
    ]
    for path, query in queries:
        answer = asked.get(path, params=query)
        assert answer.status_code == 200, path
        assert "<script>alert" not in answer.text and "\x1b" not in answer.text, path
        assert answer.text.count("<script") == 1, path


def test_nothing_is_writable_and_nothing_is_written(run: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in run.rglob("*")}
    with client(run) as asked:
        for path in ("/", "/now", "/prompts", "/prompt", "/watch.js"):
            for method in ("POST", "PUT", "DELETE", "PATCH"):
                assert asked.request(method, path).status_code == 405
            asked.get(path, params={"run": str(run), "id": "1+1", "step": 4})
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in run.rglob("*")} == before


def test_pages_may_run_our_script_only(pages: tuple[TestClient, str]) -> None:
    for path in ("/", "/now", "/nothing", "/watch.js"):
        headers = pages[0].get(path).headers
        policy = headers["content-security-policy"]
        assert [
            text
            for text in ("default-src 'none'", "script-src 'self';", "frame-ancestors 'none'")
            if text not in policy
        ] == []
        assert headers["x-content-type-options"] == "nosniff"


def test_another_name_for_this_machine_is_not_answered(pages: tuple[TestClient, str]) -> None:
    """A page elsewhere whose name leads to 127.0.0.1 must not read runs."""
    assert pages[0].get("/", headers={"host": "evil.example"}).status_code == 400
    assert pages[0].get("/", headers={"host": "localhost:7860"}).status_code == 200


def test_other_machines_need_the_token(run: Path) -> None:
    with client(run, "secret", follow_redirects=False) as asked:
        for query in ({}, {"token": "wrong"}, {"token": ""}, {"token": "é"}):
            answer = asked.get("/", params=query)
            assert answer.status_code == 403 and "GRPO" not in answer.text
        first = asked.get("/", params={"token": "secret"})
        assert first.status_code == 303 and "secret" not in first.headers["location"]
        cookie = first.headers["set-cookie"].lower()
        assert (
            cookie.startswith(COOKIE),
            [text for text in ("httponly", "samesite=strict") if text not in cookie],
        ) == (True, [])
        assert "GRPO" in asked.get("/", headers={"host": "machine.example"}).text, "the cookie is enough from now on"
