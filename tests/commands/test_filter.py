"""`lit-rlvr filter` by the command line: which rows are kept, what is in them, and that it goes on after a stop."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import CLI

from lit_rlvr.commands.filter import right_completions
from lit_rlvr.datamodules import LesionCount, TextMath
from lit_rlvr.datamodules.reading.readers import as_row
from lit_rlvr.types import Sample

FILTER = ("filter", "--config", "tiny.yaml", "--samples", 3, "--lowest", 0.01, "--highest", 0.99)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_in_the_range_are_kept_as_they_were(run_folder: Path, lit_rlvr: CLI) -> None:
    data = [{"question": f"Is {i} odd?", "answer": f"#### {i}", "extra": [i, None]} for i in range(12)]
    (run_folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    source = ("--data", "TextMath", "--data.init_args.train", "data.jsonl")
    lit_rlvr(*FILTER, *source, "--out", "kept.jsonl", status=0)
    sampled = rows(run_folder / "kept.samples/completions.jsonl")
    assert len(sampled) == 12 * 3
    right = [sum(row["correct"] for row in sampled if row["id"] == f"text_math:{i + 1}") for i in range(12)]
    wanted = [data[i] | {"pass_rate": n / 3, "samples": 3} for i, n in enumerate(right) if 0 < n < 3]
    assert rows(run_folder / "kept.jsonl") == wanted and 0 < len(wanted) < 12

    loaded = TextMath(train=str(run_folder / "kept.jsonl")).load("train")  # the same DataModule reads it
    assert [sample.prompt for sample in loaded] == [row["question"] for row in wanted]

    path = run_folder / "kept.samples/completions.jsonl"
    whole = path.read_text()
    path.write_text("".join(whole.splitlines(keepends=True)[: 3 * 5]))
    (run_folder / "kept.jsonl").unlink()
    assert lit_rlvr(*FILTER, *source, "--out", "kept.jsonl").status == 0
    assert sorted(path.read_text().splitlines()) == sorted(whole.splitlines()), "the missing ones, with the same seeds"
    (run_folder / "kept.jsonl").unlink()
    lit_rlvr(*FILTER, *source, "--out", "kept.jsonl", "--samples", 7, status=2, says="samples was 3, is 7")


def test_right_completions_become_rows_to_imitate(run_folder: Path, lit_rlvr: CLI) -> None:
    """Each once, those of the highest rewards, and `SFT` trains on them."""
    data = [{"question": f"Is {i} odd?", "answer": f"#### {i}"} for i in range(12)]
    (run_folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    source = ("--data", "TextMath", "--data.init_args.train", "data.jsonl")
    result = lit_rlvr(
        *FILTER, *source, "--highest", 1, "--samples", 40, "--completions", 5, "--out", "right.jsonl", status=0
    )
    sampled = rows(run_folder / "right.samples/completions.jsonl")
    wanted = []
    for i, row in enumerate(data):
        mine = [one for one in sampled if one["id"] == f"text_math:{i + 1}"]
        right = [one["completion"] for one in mine if one["correct"] and one["finish_reason"] == "stop"]
        rate = sum(one["correct"] for one in mine) / 40
        wanted += [
            row | {"pass_rate": rate, "samples": 40, "completion": text, "id": f"text_math:{i + 1}#{k}"}
            for k, text in enumerate([*dict.fromkeys(right)][:5])
        ]
    assert rows(run_folder / "right.jsonl") == wanted and len(wanted) > 12, len(wanted)
    assert f"kept {len({row['question'] for row in wanted})} between" in result.err, "those without a right one are not"
    imitated = ("--model", "SFT", "--model.init_args.target", "completion", "--rollout.sampling.max_tokens", 64)
    source = ("--data", "TextMath", "--data.init_args.train", "right.jsonl", "--data.prompts_per_rollout", 4)
    assert lit_rlvr("fit", "--config", "tiny.yaml", *imitated, *source, "--trainer.max_steps", 1).status == 0


def test_a_reward_that_fails_on_everything_ends_the_command(run_folder: Path, lit_rlvr: CLI) -> None:
    (run_folder / "broken.py").write_text("def broken(completion, sample):\n    return sample.nothing\n")
    rewards = "[{class_path: FunctionReward, init_args: {path: broken.broken}}]"
    result = lit_rlvr(
        *FILTER, "--rollout.rewards", rewards, "--out", "kept.jsonl", status=2, says="reward 'broken' failed on all of "
    )
    assert "first: broken.py:2: AttributeError" in result.err and not Path("kept.jsonl").exists()


def test_of_equal_completions_one_stays_and_the_best_come_first() -> None:
    def row(text: str, reward: float, correct: bool | None = True, reason: str = "stop", **more: Any) -> dict[str, Any]:
        return {"completion": text, "reward": reward, "correct": correct, "finish_reason": reason} | more

    group = [
        row("a", 1),
        row("b", 2),
        row("a", 1),
        row("c", 9, correct=False),
        row("d", 9, reason="length"),
        row("e", 3, correct=None),
        row("f", 1, turns=[{"text": "call"}, {"text": "f"}]),
    ]
    assert right_completions(group, 5) == ["b", "a", ["call", "f"]] and right_completions(group, 1) == ["b"]


def test_an_empty_result_says_what_to_do(run_folder: Path, lit_rlvr: CLI) -> None:
    result = lit_rlvr(
        *FILTER,
        "--out",
        "none.jsonl",
        "--rollout.rewards",
        "[tiny_rewards.always_wrong]",
        status=2,
        says="no prompt of 16 is left; widen the range",
    )
    assert "never right: 16" in result.err and not (run_folder / "none.jsonl").exists()
    again = ("--lowest", 0, "--completions", 2)
    result = lit_rlvr(*FILTER, "--out", "none.jsonl", "--rollout.rewards", "[tiny_rewards.always_wrong]", *again)
    assert (
        result.status,
        [text for text in ("kept 0 between", "no prompt between --lowest and") if text not in result.err],
    ) == (2, [])


@pytest.mark.first_case_fast
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--lowest", 0.9, "--highest", 0.1), "give 0 <= lowest <= highest <= 1"),
        (("--split", "test"), "there is no test set"),
        (("--rollout.rewards", "[LCPO]"), "no number of tokens in the column"),
        (("--rollout.rewards", "[]"), "rollout.rewards is empty"),
        (("--out", "x.csv"), "ends in .jsonl"),
        (("--completions", -1), "filter.completions: -1 must lie in"),
    ],
)
def test_wrong_ranges_and_outputs_are_refused(
    run_folder: Path, lit_rlvr: CLI, more: tuple[Any, ...], said: str
) -> None:
    lit_rlvr(*FILTER, "--out", "x.jsonl", *more, status=2, says=said)


def test_a_file_that_exists_is_refused_before_a_model_loads(run_folder: Path, lit_rlvr: CLI) -> None:
    """Its own input above all."""
    (run_folder / "data.jsonl").write_text('{"question": "1?", "answer": "1"}\n')
    before = (run_folder / "data.jsonl").read_bytes()
    source = ("--data", "TextMath", "--data.init_args.train", "data.jsonl", "--model.init_args.model", "no-such-model")
    lit_rlvr(*FILTER, *source, "--out", "data.jsonl", status=2, says="--out: data.jsonl exists; choose another name")
    assert (run_folder / "data.jsonl").read_bytes() == before
    assert "--out: /proc/no_such cannot be written" in lit_rlvr(*FILTER, *source, "--out", "/proc/no_such/x.jsonl").err


def test_generated_samples_become_rows_that_columns_can_name(tmp_path: Path) -> None:
    (sample,) = LesionCount(pictures=1, held_out=0).load("train")
    row = as_row(sample, False, tmp_path)
    assert row["prompt"] == sample.prompt and row["answer"] == sample.answer
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    from lit_rlvr.datamodules import Geometry

    columns = {"prompt": "prompt", "answer": "answer", "image": "image", "id": "id"}
    (again,) = Geometry(train=str(tmp_path / "rows.jsonl"), columns=columns).load("train")
    assert again.images.keys == sample.images.keys  # type: ignore[attr-defined]


def test_aliases_of_generated_samples_stay_answers() -> None:
    assert as_row(Sample("1", "q", "a", aliases=("b",)), False, Path())["answer"] == ("a", "b")
