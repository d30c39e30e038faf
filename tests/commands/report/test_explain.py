"""`explain`: the saved numbers of a group, in the terminal and as a page."""

import base64
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from made_runs import group, make_run, row
from PIL import Image
from tiny import make_rollout
from tiny_runs import CLI

from lit_rlvr.commands.report.closeup import extremes
from lit_rlvr.commands.report.explain import cells, group_page, load_group
from lit_rlvr.commands.report.page import write_report
from lit_rlvr.commands.report.prompts import index_completions, verdict_text
from lit_rlvr.commands.report.render import added_uris, image_uris
from lit_rlvr.commands.report.runs import read_run
from lit_rlvr.common.run_files import THUMBNAILS, list_traces, read_trace
from lit_rlvr.errors import UserError
from lit_rlvr.media import Pixels
from lit_rlvr.objectives import LossInputs
from lit_rlvr.run.outputs import RunFolder, sample_rows
from lit_rlvr.training.trace import Trace


def test_explain_shows_a_group_of_a_run(run_folder: Path, lit_rlvr: CLI) -> None:
    two = ("--model.init_args.updates_per_rollout", "2", "--trainer.max_steps", "8", "--run.trace_every", "2")
    assert lit_rlvr("fit", "--config", "tiny.yaml", *two).status == 0
    saved_steps = [int(p.stem.removeprefix("step-")) for p in sorted((run_folder / "run/rollouts").iterdir())]
    assert saved_steps == [2, 6, 8], "every second one, and the last"
    saved = json.loads((run_folder / "run/rollouts/step-000006.json").read_text())
    live = next(k for k, group in enumerate(saved["groups"]) if "weight" in group["completions"][0])
    result = lit_rlvr("explain", "run", "--step", "6", "--prompt", str(live), status=0)
    assert "From reward to weight" in result.out and "GRPO, step 6" in result.out
    text = (run_folder / "run/explain.html").read_text()
    assert [part in text for part in ('class="up"', 'class="down"', "ratio", "<script")] == [True, True, True, False]
    for completion in saved["groups"][live]["completions"]:
        assert len(completion["weight"]) == len(completion["ratio"]) == len(completion["tokens"])
        signs = {weight > 0 for weight in completion["weight"] if weight}
        assert signs <= {completion["advantage"] > 0}, "GRPO's weights have the advantage's sign"


def test_what_was_not_saved_is_named(tmp_path: Path, lit_rlvr: CLI) -> None:
    run = make_run(tmp_path / "run")
    for options, said in (
        ((), "a run with run.trace_every above 0"),
        (("--step", 3), "saved steps: 1, 6"),
        (("--prompt", "99"), "there are 0, "),
    ):
        lit_rlvr("explain", run, *options, status=2, says=said)
        make_run(tmp_path / "run", traces={1: [group()], 6: [group()]})
    assert "nothere/rollouts holds no rollout" in lit_rlvr("explain", "nothere").err


def test_the_trace_holds_ratio_and_gradient_weight() -> None:
    logp = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, -1.0]], requires_grad=True)
    x = LossInputs(
        logp=logp * 1.0,
        old_logp=torch.tensor([[-1.0, -2.5, -3.0], [0.0, 0.0, 0.0]]),
        mask=torch.tensor([[True, True, False], [True, True, True]]),
        advantages=torch.ones(2, 1),
        token_weight=torch.ones(2, 3),
        plain_weight=torch.ones(2, 3),
        row_weight=torch.ones(2),
        prompt=torch.tensor([0, 1]),
        rollout_logp=logp.detach(),
    )
    trace = Trace(prompts=1)
    trace.choose(torch.ones(2, 2), [0, 1])
    trace.watch([1, 2], group_size=2, x=x)  # completion 1 of prompt 0, completion 0 of prompt 1
    (x.logp * torch.tensor([[0.5, -2.0, 9.0], [1.0, 1.0, 1.0]])).sum().backward()
    assert trace.tokens.keys() == {1}, "only the first prompt's group is watched"
    assert trace.tokens[1]["weight"].tolist() == [-0.5, 2.0]
    assert trace.tokens[1]["ratio"].tolist() == pytest.approx([1.0, 2.718281828**0.5], rel=1e-5)


@pytest.mark.parametrize(
    ("live", "trained", "watched"),
    [([], [0, 1, 2, 3], [0, 1]), ([1], [0, 1, 2, 3], [0, 1]), ([2, 3], [0, 1, 2, 3], [0, 2]), ([2, 3], [0, 3], [0, 3])],
)
def test_a_group_with_an_advantage_is_watched_if_there_is_one(
    live: list[int], trained: list[int], watched: list[int]
) -> None:
    advantages = torch.zeros(4, 2)
    advantages[live] = torch.tensor([1.0, -1.0])
    trace = Trace(prompts=2)
    trace.choose(advantages, trained)
    assert (trace.watched, trace.live) == (watched, bool(live))


def dead() -> dict[str, Any]:
    """A group of equal answers, run for its KL term."""
    found = group("dead")
    for completion in found["completions"]:
        completion["advantage"] = 0.0
    return found


def test_the_newest_group_with_a_gradient_is_shown(tmp_path: Path, lit_rlvr: CLI) -> None:
    make_run(tmp_path / "run", traces={1: [group("first")], 5: [dead(), group("newest")], 9: [dead()]})
    assert "step 5, prompt newest" in lit_rlvr("explain", tmp_path / "run").out
    assert "step 1, prompt first" in lit_rlvr("explain", tmp_path / "run", "--step", 1).out
    alone = lit_rlvr("explain", tmp_path / "run", "--step", 9).out
    assert "step 9, prompt dead" in alone and "Advantages give this group no gradient" in alone


@pytest.mark.slow
def test_traces_of_later_steps_go_when_a_run_goes_on_from_an_earlier_one(run_folder: Path, lit_rlvr: CLI) -> None:
    every = ("--run.trace_every", 1, "--checkpoint.every", 1, "--checkpoint.keep", 3, "--trainer.max_steps")
    assert lit_rlvr("fit", "--config", "tiny.yaml", *every, 3).status == 0
    older = ("--ckpt_path", "run/checkpoints/step-000001.ckpt")
    assert lit_rlvr("fit", "--config", "tiny.yaml", *every, 2, *older).status == 0
    assert sorted(list_traces(run_folder / "run")) == [1, 2]


def test_a_page_goes_into_a_new_folder_and_over_no_file_of_the_users(tmp_path: Path, lit_rlvr: CLI) -> None:
    run, page_file = make_run(tmp_path / "run", traces={1: [group()]}), tmp_path / "new/folder/page.html"
    for command, option in (("explain", "--html"), ("report", "--out")):
        for _ in range(2):
            assert lit_rlvr(command, run, option, page_file).status == 0
        mine = tmp_path / "mine.html"
        mine.write_text("<p>mine</p>")
        lit_rlvr(command, run, option, mine, status=2, says=f"{option}: {mine} exists and is not a page of lit-rlvr")
        assert mine.read_text() == "<p>mine</p>"
        lit_rlvr(
            command,
            run,
            option,
            "/proc/no_such/page.html",
            status=2,
            says=f"{option}: /proc/no_such/page.html cannot be written",
        )


@pytest.mark.parametrize(
    ("correct", "status", "said"),
    [
        (True, "ok", "yes"),
        (False, "parse_fail", "no"),
        (None, "error", "check failed"),
        (None, "unjudged", "not judged"),
        (None, "ok", "not judged"),
        (False, "error", "check failed"),
    ],
)
def test_a_completion_that_was_not_judged_is_neither_right_nor_wrong(
    tmp_path: Path, correct: bool | None, status: str, said: str
) -> None:
    """In its group's statistics it counts as the mean of the others; a reader must not take that for a judgement."""
    made = group("q")
    made["completions"][0] |= {"correct": correct, "status": status}
    make_run(tmp_path / "run", traces={1: [made]}, rows=[row(1, "q", 0, True) | {"correct": correct, "status": status}])
    _, _, read = load_group(tmp_path / "run", None, None)
    assert cells(read["completions"][0])[1] == said
    assert f"<td>{said}</td>" in group_page(1, "GRPO", read)
    index = index_completions(read_run(tmp_path / "run"))
    (known,) = index.read_group(index.prompts["q"].visits[0])
    assert verdict_text(known) == {"yes": "correct", "no": "wrong"}.get(said, said)


def test_a_failed_check_is_recorded_as_neither_right_nor_wrong() -> None:
    rollout = make_rollout([[5]], [[[6], [7], [8]]], [[1.0, 1.0, 0.0]])
    rollout.has_correct, rollout.statuses = torch.tensor([[True, False, True]]), [["ok", "error", "ok"]]
    rollout.parts, trace = {"answer": torch.tensor([[1.0, math.nan, 0.0]])}, Trace(1)
    trace.choose(torch.zeros(1, 3), [0])
    (found,) = trace.records(rollout, SimpleNamespace(decode=str))
    assert [one["correct"] for one in found["completions"]] == [True, None, False]
    assert [one["parts"] for one in found["completions"]] == [{"answer": 1.0}, {"answer": None}, {"answer": 0.0}]
    assert [one["correct"] for one in sample_rows(rollout, 1, 1, Path())] == [True, None, False]


@pytest.mark.parametrize("status", ["error", "unjudged"])
def test_what_stands_in_for_a_missing_reward_is_not_recorded(status: str, tmp_path: Path) -> None:
    """In the group's statistics it has the mean of the others, which nobody has given."""
    rollout = make_rollout([[5]], [[[6], [7], [8]]], [[1.0, 0.5, 0.0]])
    rollout.has_correct, rollout.statuses = torch.tensor([[True, False, True]]), [["ok", status, "ok"]]
    rollout.advantages, trace = torch.tensor([[1.0, 0.25, -1.25]]), Trace(1)
    trace.choose(rollout.advantages, [0])
    (traced,) = trace.records(rollout, SimpleNamespace(decode=str))
    sampled = sample_rows(rollout, 1, 1, tmp_path)
    for rows in (traced["completions"], sampled):
        assert [one["reward"] for one in rows] == [1.0, None, 0.0]
        assert [one["advantage"] for one in rows] == [1.0, None, -1.25]

    made = group("q")
    made["completions"][1] |= {"reward": None, "advantage": None, "status": status, "correct": None}
    run = make_run(tmp_path / "run", traces={1: [made]}, rows=[row | {"id": "q"} for row in sampled])
    shown = cells(load_group(run, None, None)[2]["completions"][1])
    assert shown[:3] == ["none", "check failed" if status == "error" else "not judged", "none"]
    (visit,) = index_completions(read_run(run)).prompts["q"].visits
    assert (visit.mean_reward, visit.rewarded, visit.count) == ("0.5", 2, 3)
    assert extremes([None, 1.0, None, 2.0]) == [3, 1, 0, 2]
    assert write_report([run]).is_file()


def test_the_page_shows_the_images_of_a_traced_group(tmp_path: Path, lit_rlvr: CLI) -> None:
    run, folder = make_run(tmp_path / "run"), RunFolder()
    rollout = make_rollout([[5], [5]], [[[6], [7]], [[6], [7]]], [[1.0, 0.0], [1.0, 0.0]])
    seen = rollout.prompts[1]
    rollout.prompts[1] = replace(seen, sample=replace(seen.sample, images=[Image.new("RGB", (9, 9), "red")]))
    rollout.advantages, trace = torch.tensor([[0.0, 0.0], [1.0, -1.0]]), Trace(2)
    trace.choose(rollout.advantages, [1])
    folder._unsaved_traces[4] = (trace, rollout)
    trainer: Any = SimpleNamespace(default_root_dir=run)
    folder._save_trace(trainer, SimpleNamespace(tokenizer=SimpleNamespace(decode=str)), 4)
    plain, pictured = read_trace(list_traces(run)[4])[1]
    assert plain == trace.records(rollout, SimpleNamespace(decode=str))[0], "groups without images have no new key"
    (thumbnail,) = run.glob(THUMBNAILS)
    assert pictured["images"] == [thumbnail.stem]
    uri = f"data:image/png;base64,{base64.b64encode(thumbnail.read_bytes()).decode()}"
    for name, shown in (("p1", 1), ("p0", 0)):
        assert lit_rlvr("explain", run, "--prompt", name).status == 0
        assert (run / "explain.html").read_text().count(f'<img src="{uri}"') == shown


def test_pages_show_the_images_that_an_agent_sent(tmp_path: Path, lit_rlvr: CLI) -> None:
    """One that all prompts of a group have, which is none of the row, and one in a later message of an episode."""
    run, folder = make_run(tmp_path / "run", traces={}, rows=[]), RunFolder()
    rollout = make_rollout([[5]], [[[6], [7]]], [[1.0, 0.0]])
    red, blue = (Pixels(({},), ((1,),), (Image.new("RGB", (9, 9), color),)) for color in ("red", "blue"))
    rollout.prompts[0] = replace(rollout.prompts[0], pixels=red)
    rollout.completions[0][1] = replace(rollout.completions[0][1], pixels=blue)
    rollout.advantages, trace = torch.tensor([[1.0, -1.0]]), Trace(1)
    trace.choose(rollout.advantages, [0])
    folder._unsaved_traces[4] = (trace, rollout)
    trainer: Any = SimpleNamespace(default_root_dir=run)
    folder._save_trace(trainer, SimpleNamespace(tokenizer=SimpleNamespace(decode=str)), 4)
    rows = sample_rows(rollout, 4, 1, run)
    assert "added_images" not in rows[0]
    uris = image_uris(run, rows[1]) + added_uris(run, rows[1])
    assert len({*uris}) == 2
    (run / "completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert lit_rlvr("explain", run).status == 0
    explained = (run / "explain.html").read_text()
    reported = write_report([run]).read_text()
    for uri in uris:
        assert explained.count(f'<img src="{uri}"') == 1 and f'<img src="{uri}"' in reported
    assert reported.count(f'<img src="{uris[1]}"') == 1, "with its completion"


def test_broken_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rollouts/step-000004.json"
    path.parent.mkdir()
    completion = {
        "tokens": ["a"], "finish_reason": "stop", "reward": 1.0, "correct": True, "status": "ok", "advantage": 1.0,
        "logp": [-1.0], "ratio": [1.0], "weight": [0.5],
    }  # fmt: skip
    group = {"id": "p", "prompt": "?", "answer": "1", "completions": [completion]}
    for saved in ('{"step": 4', "[1]", '{"algorithm": "GRPO", "groups": []}'):
        path.write_text(saved)
        with pytest.raises(UserError, match=r"step-000004\.json"):
            load_group(tmp_path, None, None)
    path.write_text(json.dumps({"algorithm": "GRPO", "groups": [group]}))
    assert load_group(tmp_path, None, None) == (4, "GRPO", group)


def test_the_page_marks_thoughts_also_those_that_the_prompt_opened() -> None:
    """Each text has two tokens."""
    for prompt, text, marked in (
        ("What is 1+1?", "two</think>", 1),
        ("What is 1+1?", "<think>two", 2),
        ("What is 1+1?\n<think>\n", "two", 2),
        ("What is 1+1?", "two", 0),
        ("What is 1+1?\n<think></think>", "two", 0),
    ):
        page = group_page(1, "GRPO", group(text=text, weights=(0.5,)) | {"prompt": prompt})
        assert page.count('thought"') - page.count('class="thought">underlined') == marked, (prompt, text)
