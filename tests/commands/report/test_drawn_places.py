"""The boxes and points of a group, drawn over its image in `explain` and the report."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from made_runs import group, make_run
from PIL import Image
from tiny import make_rollout

from lit_rlvr.commands.report.explain import group_page
from lit_rlvr.commands.report.page import write_report
from lit_rlvr.commands.report.places import Mark, place_marks
from lit_rlvr.media import Coordinates
from lit_rlvr.rewards import Boxes, Points
from lit_rlvr.rewards.combine import score_rollout
from lit_rlvr.run.outputs import sample_rows
from lit_rlvr.training.trace import Trace
from lit_rlvr.types import Completion, Rollout, Sample

GEMMA = Coordinates((200, 100), (1024, 1024), y_first=True)
ROW = Sample("p0", "?", "[20, 20, 60, 40]", answer_object=[20, 20, 60, 40], coordinates=(GEMMA,))
REFERENCE = Mark("reference", "100.0,200.0 300.0,200.0 300.0,400.0 100.0,400.0", "reference")


def judged(reward: Boxes | Points, *texts: str) -> Rollout:
    """A group with an image of 200 x 100 pixels, scored by a reward."""
    rollout = make_rollout([[5]], [[[6]] * len(texts)], [[0.0] * len(texts)])
    sample = replace(ROW, images=[Image.new("RGB", (200, 100), "red")])
    completions = [Completion(text, (6,), "stop") for text in texts]
    scores = score_rollout([reward], [completions], [sample])
    rollout.prompts[0] = replace(rollout.prompts[0], sample=sample)
    rollout.completions[0] = completions
    rollout.rewards, rollout.correct, rollout.details = scores.rewards, scores.correct, scores.details
    rollout.advantages = torch.ones(1, len(texts))
    return rollout


def test_both_boxes_are_drawn_over_the_image_that_the_model_saw(tmp_path: Path) -> None:
    rollout = judged(Boxes(), "[205, 102, 410, 307]", "[0, 512, 512, 1024]", "there")
    trace = Trace(1)
    trace.choose(torch.ones(1, 3), [0])
    rows = sample_rows(rollout, 1, 1, tmp_path / "run")
    (traced,) = trace.records(rollout, SimpleNamespace(decode=str))
    expected = [
        Mark("right", "99.6,200.2 299.8,200.2 299.8,400.4 99.6,400.4", "completion 0: correct"),
        Mark("wrong", "500.0,0.0 1000.0,0.0 1000.0,500.0 500.0,500.0", "completion 1: wrong"),
        REFERENCE,
    ]
    assert place_marks(rows) == place_marks(traced["completions"]) == expected
    run = make_run(tmp_path / "run", rows=rows, traces={1: [traced]})
    page = write_report([run]).read_text()
    explained = group_page(1, "GRPO", traced, ["data:image/png;base64,"])
    for shown in (page, explained):
        for mark in expected:
            assert f'<polygon class="{mark.kind}" points="{mark.points}"><title>{mark.title}</title>' in shown
    assert "<polygon" not in group_page(1, "GRPO", traced, ["data:,", "data:,"]), "of two images none is known to be it"


def test_points_are_dots() -> None:
    rollout = judged(Points(), "(307, 205)")
    rows: Any = [rollout.record(0, 0)]
    assert place_marks(rows) == [Mark("right dot", "200.2,299.8 200.2,299.8", "completion 0: correct"), REFERENCE]


def test_a_completion_that_was_cut_off_is_drawn_as_wrong() -> None:
    (result,) = Points().score([(Completion("(307, 205)", (6,), "length"), ROW)])
    assert (result.value, result.correct, result.detail) == (0.0, False, "cut off")
    assert result.places == Points()(Completion("(307, 205)", (6,), "stop"), ROW).places is not None


def test_groups_without_places_are_drawn_as_before_and_broken_places_left_out() -> None:
    assert place_marks(group()["completions"]) == []
    completion = group()["completions"][0]
    for places in ("x", {"answer": 5}, {"answer": [[1, 2, 3], ["<b>", 1], [float("nan"), 1], [], 7]}):
        assert place_marks([completion | {"places": places}]) == []
