"""The page as a whole: what is on it, and that nothing of what models wrote gets out of its place."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from made_runs import METRICS, config, group, make_run, make_study, row

from lit_rlvr.commands.report.page import write_report

EVIL = "</div></table></style></title><script>alert('x')</script>\"'><img src=x onerror=alert(1)>\x1b[2J\x00 \u202eπ🙂"


class Elements(HTMLParser):
    """Counts a page's elements, its text and its attributes' names; notes what is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self._open: list[str] = []
        self.misnested: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in ("meta", "input", "img", "wbr"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.misnested.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def read(path: Path) -> tuple[str, Elements]:
    text = path.read_text(encoding="utf-8")
    return text, Elements(text)


def run_of(text: str, folder: Path) -> Path:
    """A run in which a model, a data set and a user wrote nothing but `text`."""
    rows = [
        row(step, text, g, g == 0 and step > 2, text, prompt=prompt, answer=text, finish_reason=text, status=text)
        for step, prompt in ((2, text), (4, [{"role": text, "content": text}]))
        for g in (0, 1)
    ] + [row(4, f"{text}2", 0, False, text, answer=text, images=[text])]
    trace = group(text, text) | {"prompt": text, "answer": text}
    trace["completions"][0]["status"] = text
    more = {f"train/{text}": 1.0, f"val/{text}/accuracy/{text}": 0.5}
    metrics = {step: values | more for step, values in METRICS.items()}
    settings = config(0, **{text: text}) | {text: {"class_path": text, "init_args": {text: [text]}}}
    return make_run(folder, settings, metrics, rows, {4: [trace]}, engine=text, weights_sha256=text, stopped=text)


def test_a_run_has_a_page(tmp_path: Path) -> None:
    rows = [row(2, "1+1", 0, False), row(2, "1+1", 1, False), row(4, "1+1", 0, True), row(4, "2+2", 0, False)]
    metrics = {step: values | {"train/grad_norm": 1.0} for step, values in METRICS.items()}
    run = make_run(tmp_path / "run", metrics=metrics, rows=rows, traces={4: [group()]})
    text, page = read(write_report([run]))
    assert (run / "report.html").is_file() and page.misnested == []
    assert '<figcaption title="norm of the gradient before it is clipped' in text
    for words in (
        "GRPO on Arithmetic", "1 run.", "+0.500", "Training reward", "0.5 → 0.75", "arithmetic/accuracy",
        "0.250 → 0.750", "model.lr", "0.001", "0 of 2, step 2", "1 of 1, step 4", "never right: 1",
        "reward 1", "advantage -1", "GRPO, step 4, prompt 1+1", "class_path: lit_rlvr.algorithms.GRPO",
    ):  # fmt: skip
        assert words in page.text, words
    assert (page.seen.count("figure"), [part for part in ('class="up"', 'class="down"') if part not in text]) == (6, [])
    assert "Some runs are incomplete" not in text and "What differs" not in text
    sections = re.findall(r'<section id="(\w+)"', text)
    assert sections == ["health", "results", "curves", "validation", "prompts", "settings"]
    assert text == write_report([run], tmp_path / "again.html").read_text(), "the same runs give the same page"


def test_a_study_has_its_tasks_apart_and_names_its_failures(tmp_path: Path) -> None:
    cells: list[dict[str, Any]] = [
        {"name": name, "task": task, "run": f"runs/{name}-{task}/seed-0"}
        for task in ("sums", "angles")
        for name in ("a", "b")
    ]
    for k, cell in enumerate(cells[:-1]):
        make_run(tmp_path / cell["run"], config(lr=float(cell["name"] == "a")), accuracy_after=0.5 + k / 10)
    cells[-1] |= {"status": "failed", "error": "<b>no memory</b>"}
    target = write_report([make_study(tmp_path, cells, baseline="a")])
    text, page = read(target)
    assert target == tmp_path / "report.html" and page.misnested == []
    assert "b on angles, seed 0: failed: <b>no memory</b>" in page.text and "<b>no memory" not in text
    assert (
        page.text.count("against a"),
        [part for part in ("+0.100", "0 of 1 finished") if part not in page.text],
    ) == (2, [])


def test_nothing_of_a_run_becomes_markup(tmp_path: Path) -> None:
    text, page = read(write_report([run_of(EVIL, tmp_path / "evil")]))
    _, plain = read(write_report([run_of("plain", tmp_path / "plain")]))
    elements, expected = ([tag for tag in it.seen if tag != "wbr"] for it in (page, plain))
    assert (elements, page.attributes, page.misnested) == (expected, plain.attributes, [])
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)
    assert page.text.count("<script>alert('x')</script>") > 20 and "π🙂" in page.text


def test_the_page_needs_no_network(tmp_path: Path) -> None:
    text, page = read(write_report([make_run(tmp_path / "run", rows=[row(2, "a", 0, True)], traces={4: [group()]})]))
    assert "default-src 'none'" in text and not {"script", "link", "iframe"} & set(page.seen)
    assert not re.search(r'(?:src|href)="(?!#|data:)|url\(|@import', text)


def test_a_study_without_any_run_has_a_page(tmp_path: Path) -> None:
    cell = {"name": "a", "run": "gone", "status": "failed", "error": json.dumps({"e": 1})}
    _, page = read(write_report([make_study(tmp_path, [cell])]))
    assert [part for part in ("0 runs", "No metrics.", 'failed: {"e": 1}') if part not in page.text] == []
