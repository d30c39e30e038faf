"""What an interrupted evaluation keeps, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import make_prompt

from lit_rlvr.commands.compare.study_folder import lock_study
from lit_rlvr.errors import UserError
from lit_rlvr.evaluation.records import Records, read_completions
from lit_rlvr.rewards.combine import Scores
from lit_rlvr.run.folder import lock_folder
from lit_rlvr.types import Completion, Places, RewardResult

PROMPTS = [make_prompt([1], name) for name in ("a", "b")]
COMPLETIONS = [Completion("4", (7,), "stop"), Completion("5\u2028", (7, 8), "length")]


def scores() -> Scores:
    """The first is right, the check of the second failed."""
    details = [{"math": RewardResult(1.0, True, "ok", "4")}, {"math": RewardResult(0.0, None, "error", "died")}]
    rewards, failed = torch.tensor([[1.0, 0.0]]), torch.tensor([[False, True]])
    return Scores(
        rewards,
        torch.tensor([[1.0, 0.0]]),
        ~failed,
        {"math": rewards},
        [["ok", "error"]],
        failed,
        ~failed & failed,
        [details],
    )


def test_groups_are_found_again(tmp_path: Path) -> None:
    records = Records(tmp_path, {"n": 2})
    assert records.missing("x", PROMPTS) == PROMPTS
    records.add("x", PROMPTS[0], COMPLETIONS, scores())
    again = Records(tmp_path, {"n": 2})
    assert again.missing("x", PROMPTS) == PROMPTS[1:] and again.missing("y", PROMPTS) == PROMPTS
    first, second = again.groups("x", PROMPTS[:1])[0]
    assert first | second == second  # the same fields
    assert (first["correct"], first["extracted"], first["tokens"], first["finish_reason"]) == (True, "4", 1, "stop")
    assert (second["correct"], second["status"], second["completion"]) == (None, "error", "5\u2028")
    assert (first["reward"], second["reward"]) == (1.0, None)


def test_places_in_an_image_are_recorded(tmp_path: Path) -> None:
    judged = scores()
    places = Places(((0.0, 0.25, 1 / 3, 1.0),), ((0.5, 0.5),))
    judged.details[0][0]["boxes"] = RewardResult(0.0, places=places)
    records = Records(tmp_path, {})
    records.add("x", PROMPTS[0], COMPLETIONS, judged)
    first, second = Records(tmp_path, {}).groups("x", PROMPTS[:1])[0]
    assert first["places"] == {"reference": [[0.0, 0.25, 0.3333, 1.0]], "answer": [[0.5, 0.5]]}
    assert "places" not in second


def test_a_record_can_be_judged_again(tmp_path: Path) -> None:
    """Also where the prompt opened the thoughts."""
    records = Records(tmp_path, {})
    records.add("x/sampled", replace(PROMPTS[0], prefill="<think>\n"), COMPLETIONS, scores())
    (group,) = read_completions(records.path, ["x"])["x/sampled"].values()
    assert [(one.text, one.prefill, one.finish_reason) for one in group] == [
        (one.text, "<think>\n", one.finish_reason) for one in COMPLETIONS
    ]


@pytest.mark.parametrize("cut", [1, 40, 300])
def test_a_group_that_was_cut_off_is_sampled_again(tmp_path: Path, cut: int) -> None:
    records = Records(tmp_path, {})
    records.add("x", PROMPTS[0], COMPLETIONS, scores())
    whole = records.path.read_bytes()
    records.add("x", PROMPTS[1], COMPLETIONS, scores())
    records.path.write_bytes(records.path.read_bytes()[:-cut])
    again = Records(tmp_path, {})
    assert (again.missing("x", PROMPTS), again.path.read_bytes()) == (PROMPTS[1:], whole)


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    Records(tmp_path, {"n": 2, "model": "a"}).add("x", PROMPTS[0], COMPLETIONS, scores())
    with pytest.raises(UserError, match=r"begun with other settings \(n was 2, is 4\); choose another folder"):
        Records(tmp_path, {"n": 4, "model": "a"})
    assert json.loads((tmp_path / "settings.json").read_text()) == {"n": 2, "model": "a"}


@pytest.mark.parametrize("name", ["completions.jsonl", "settings.json", "results.json", "results.md"])
def test_files_of_something_else_are_left_alone(tmp_path: Path, name: str) -> None:
    """Such as a run folder's completions."""
    (tmp_path / name).write_text('{"mine": 1}\n')
    with pytest.raises(UserError, match=f"holds a {name} not from an evaluation"):
        Records(tmp_path, {"n": 2})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: '{"mine": 1}\n'}


def test_an_evaluation_that_ended_before_its_first_completion_goes_on(tmp_path: Path) -> None:
    Records(tmp_path, {"n": 2})
    Records(tmp_path, {"n": 3})
    assert json.loads((tmp_path / "settings.json").read_text()) == {"n": 3}


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    """Of an evaluation, nor of a study."""
    file = tmp_path / "my.jsonl"
    file.write_text("{}\n")
    with pytest.raises(UserError, match=r"--out: .*/my.jsonl is a file; give a folder"), lock_folder(file, "--out"):
        raise AssertionError("it is refused")
    with pytest.raises(UserError, match=r"--out: .*/my.jsonl is a file; give a folder"), lock_study(file / "study"):
        raise AssertionError("it is refused")
