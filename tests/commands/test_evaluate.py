"""`lit-rlvr evaluate` by the command line, with a tiny model and with completions made elsewhere."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_rewards import judged_as_is
from tiny_runs import CLI, fit, to

from lit_rlvr.commands.evaluate import suite_fingerprint
from lit_rlvr.evaluation.protocols import find_dtype, find_max_tokens
from lit_rlvr.sampling import Sampling

SUITE = {
    "data": {"class_path": "TextMath", "init_args": {"test": "data.jsonl"}},
    "rewards": [judged_as_is("first_token")],
}
AGENT = Path(__file__).parents[1] / "helpers" / "tiny_agent.py"
SMALL = ("--max_tokens", 6, "--engine", "hf", "-n", 4)


@pytest.fixture
def here(run_folder: Path) -> Path:
    """A suite of nine questions in the current directory."""
    rows = [{"problem": f"{i}?", "answer": str(i), "subject": "ab"[i % 2], "unique_id": f"q{i}"} for i in range(9)]
    (run_folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run_folder / "tiny_suite.yaml").write_text(yaml.safe_dump(SUITE))
    return run_folder


def results(out: str) -> dict[str, Any]:
    return json.loads(Path(out, "results.json").read_text())


def records(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(out, "completions.jsonl").read_text().splitlines()]


def test_samples_and_greedy_answers_are_judged(here: Path, lit_rlvr: CLI, tiny_model_folder: Path) -> None:
    command = ("evaluate", "--model", tiny_model_folder, "--suite", "tiny_suite.yaml", *SMALL)
    done = lit_rlvr(*command, "--out", "out", status=0)
    found, rows = results("out"), records("out")
    assert [*found] == ["tiny_suite"] and (found["tiny_suite"]["n"], found["tiny_suite"]["questions"]) == (4, 9)
    sampled = [row for row in rows if row["part"] == "tiny_suite/sampled"]
    greedy = [row for row in rows if row["part"] == "tiny_suite/greedy"]
    assert (len(sampled), len(greedy)) == (36, 9)
    assert found["tiny_suite"]["pass@1"] == pytest.approx(sum(row["correct"] for row in sampled) / 36)
    assert found["tiny_suite"]["greedy"] == pytest.approx(sum(row["correct"] for row in greedy) / 9)
    assert 0 < found["tiny_suite"]["pass@1"] < found["tiny_suite"]["pass@4"]
    assert found["tiny_suite"]["categories"]["a"]["questions"] == 5
    assert "| tiny_suite | 9 | 4 |" in Path("out/results.md").read_text() and "tokens/s" in done.err

    whole = Path("out/completions.jsonl").read_text()
    Path("out/completions.jsonl").write_text("".join(whole.splitlines(keepends=True)[:14]))  # as after a kill
    again = lit_rlvr(*command, "--out", "out")
    assert again.status == 0 and results("out") == found
    assert sorted(Path("out/completions.jsonl").read_text().splitlines()) == sorted(whole.splitlines())
    assert "tokens/s" not in lit_rlvr(*command, "--out", "out").err, "nothing is left to do"

    for change, said in ((("--temperature", 1), "temperature was 0.6, is 1.0"), (("--limit", 3), "questions was")):
        refused = lit_rlvr(*command, "--out", "out", *change)
        assert (refused.status, said in refused.err, "choose another folder" in refused.err) == (2, True, True)
    assert results("out") == found


@pytest.mark.slow
def test_an_agent_plays_the_questions_and_the_rows_to_filter(
    here: Path, lit_rlvr: CLI, tiny_model_folder: Path
) -> None:
    agent = json.dumps({"class_path": "Agent", "init_args": {"command": [sys.executable, str(AGENT), "turns"]}})
    limits = ("--limit", 3, "--max_turns", 3, "--max_observation_tokens", 64, "--max_prompt_tokens", 64)
    command = ("evaluate", "--model", tiny_model_folder, "--suite", "tiny_suite.yaml", *SMALL, *limits)
    lit_rlvr(*command, "--environment", agent, "--out", "out", status=0)
    rows = records("out")
    assert len(rows) == 3 * 5 and {row["status"] for row in rows} <= {"ok", "parse_fail"}
    assert {len(row["turns"]) for row in rows} == {3}
    assert all([turn["observation"] for turn in row["turns"]][-1] is None for row in rows)
    assert len({row["reward"] for row in rows}) > 2, "each agent says what its episode earned"

    Path("more.jsonl").write_text("".join(f'{{"question": "Is {i} odd?", "answer": "{i}"}}\n' for i in range(3)))
    source = ("--data", "TextMath", "--data.init_args.train", "more.jsonl", "--rollout.sampling.max_turns", 3)
    played = (
        "--config",
        "tiny.yaml",
        *source,
        "--rollout.environment",
        agent,
        "--samples",
        2,
        "--data.prompts_per_rollout",
        3,
    )
    lit_rlvr("filter", *played, "--lowest", 0, "--highest", 1, "--out", "kept.jsonl", status=0)
    sampled = [json.loads(line) for line in Path("kept.samples/completions.jsonl").read_text().splitlines()]
    assert len(sampled) == 6 and {len(row["turns"]) for row in sampled} == {3}


@pytest.mark.slow
def test_each_suite_has_its_own_settings_and_more_suites_may_be_added(
    here: Path, lit_rlvr: CLI, tiny_model_folder: Path
) -> None:
    Path("more.jsonl").write_text('{"q": "1+1?", "a": "2"}\n{"q": "1+2?", "a": "3"}\n')
    Path("mine.yaml").write_text("{samples: 2, greedy: false, temperature: 1.0, suites: {data: {samples: 3}}}")
    command = ("evaluate", "--model", tiny_model_folder, "--protocol", "mine.yaml", "--max_tokens", 6, "--engine", "hf",
               "--out", "out")  # fmt: skip
    lit_rlvr(*command, "--suite", "tiny_suite.yaml,data.jsonl", status=0)
    assert {name: found["n"] for name, found in results("out").items()} == {"tiny_suite": 2, "data": 3}
    first = records("out")

    more = "[tiny_suite.yaml, {suite: x=more.jsonl, columns: {prompt: q, answer: a}, samples: 1, greedy: true}]"
    lit_rlvr(*command, "--suite", more, status=0)
    assert {name: (r["n"], "greedy" in r) for name, r in results("out").items()} == {
        "tiny_suite": (2, False),
        "x": (1, True),
    }
    assert records("out")[: len(first)] == first and len(records("out")) == len(first) + 4
    kept = json.loads(Path("out/settings.json").read_text())["suites"]
    assert [*kept] == ["tiny_suite", "data", "x"]
    assert kept["data"]["sampled"] == {"samples": 3, "temperature": 1.0, "top_p": 0.95, "max_tokens": 6}
    assert "| **Avg.** |" in Path("out/results.md").read_text()


def test_gold_answers_that_a_reward_cannot_read_are_refused_before_the_engine_starts(
    here: Path, lit_rlvr: CLI, tiny_model_folder: Path
) -> None:
    Path("tiny_suite.yaml").write_text(yaml.safe_dump(SUITE | {"rewards": ["LCPO"]}))
    command = ("evaluate", "--model", tiny_model_folder, "--suite", "tiny_suite.yaml", *SMALL, "--out", "out")
    refused = lit_rlvr(*command, status=2, says="data.jsonl:1 has no number of tokens in the column")
    assert "(lcpo: 9 of 9 rows)" in refused.err and not Path("out/completions.jsonl").exists()


def test_a_completion_may_reach_the_end_of_the_context(here: Path, lit_rlvr: CLI, tiny_model_folder: Path) -> None:
    """1024 tokens, of which the prompts have 20 or 21."""
    lit_rlvr(
        "evaluate",
        "--model",
        tiny_model_folder,
        "--suite",
        "tiny_suite.yaml",
        "--max_tokens",
        5000,
        "--engine",
        "hf",
        "-n",
        1,
        "--limit",
        2,
        "--out",
        "out",
        status=0,
        says="2 of 2 prompts and 5000 new tokens do not fit into the model's context of 1024 tokens",
    )
    assert max(row["tokens"] for row in records("out")) <= 1010


@pytest.mark.parametrize("changed", [{"max_thought_tokens": 5}, {"stop": ("\n",)}, {"top_p": 0.5}])
def test_completions_of_other_settings_are_not_mixed(changed: dict[str, Any]) -> None:
    before, after = (suite_fingerprint({"sampled": (Sampling(**more), 1)}, [], None) for more in ({}, changed))
    assert before != after


def test_completions_of_another_end_of_thoughts_are_not_mixed() -> None:
    closing = Sampling(max_thought_tokens=5)
    ending = replace(closing, at_budget="end")
    prints = [suite_fingerprint({"sampled": (sampling, 1)}, [], None) for sampling in (closing, ending)]
    assert prints[0] != prints[1]


@pytest.mark.slow
def test_completions_made_elsewhere(here: Path, lit_rlvr: CLI) -> None:
    rows = [{"id": f"q{i}", "completion": f"\\boxed{{{i + k}}}"} for i in range(9) for k in range(2)]
    rows += [{"id": f"q{i}", "completion": f"\\boxed{{{i}}}", "greedy": True, "tokens": 4} for i in range(9)]
    rows[-1]["prefill"] = "<think>\n"  # thoughts that never end
    Path("given.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ("evaluate", "--suite", "data.jsonl", "--out", "out")
    lit_rlvr(*command, "--completions", "given.jsonl", "--diversity", "[SelfBLEU4]", status=0)
    found = results("out")["data"]
    assert (found["pass@1"], found["pass@2"], found["greedy"], found["n"]) == (0.5, 1.0, 8 / 9, 2)
    assert 0 < found["diversity/self_bleu_4"] <= 1 and found["diversity/self_bleu_4/prompts"] == 9
    assert "| diversity/self_bleu_4 |" in Path("out/results.md").read_text()
    sampled = {(row["sample"], row["correct"]) for row in records("out") if row["part"] == "data/sampled"}
    assert sampled == {(0, True), (1, False)}

    for text, said in (
        ('{"id": "q1"}', "given.jsonl:1: no text in field 'completion'"),
        ('{"id": "q1", "completion": "x"', "given.jsonl:1: broken JSON"),
        ('{"id": "q77", "completion": "x"}', "there is no question 'q77'; ids are like 'q0'"),
        ('{"id": "q1", "completion": "x", "suite": "other"}', "'other' is not one of data"),
        (
            '{"id": "q1", "completion": "x"}\n{"id": "q2", "completion": "x"}\n{"id": "q2", "completion": "x"}',
            "some questions have 1 completions, others 2",
        ),
        ("", "is empty"),
    ):
        Path("given.jsonl").write_text(text)
        lit_rlvr(*command[:-1], "other", "--completions", "given.jsonl", status=2, says=said)


def test_a_run_folder_is_a_model(here: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_RLVR_CACHE", str(here / "cache"))
    fit(lit_rlvr, *to("run"), "--trainer.max_steps", "1")
    options = ("--suite", "tiny_suite.yaml", "--engine", "hf", "--samples", 0, "--out", "out")
    lit_rlvr(
        "evaluate",
        "--model",
        "run",
        *options,
        status=0,
        says="Computing in float32 (the run's precision), completions of up to 8 tokens (the run's rollout.",
    )
    assert max(row["tokens"] for row in records("out")) == 8
    assert results("out")["tiny_suite"]["n"] == 0 and len(records("out")) == 9
    assert len(list((here / "cache/exported").glob("[!.]*"))) == 1


def test_precision_and_lengths_are_the_runs(here: Path, lit_rlvr: CLI, tiny_model_folder: Path) -> None:
    """What is asked for, else what the run did, else what the model's config says."""
    Path("run").mkdir()
    config = {"trainer": {"precision": "bf16-mixed"}, "model": {"init_args": {"model": str(tiny_model_folder)}}}
    for sampling, wanted in (
        (
            {"sampling": {"max_tokens": 7}, "evaluation": {"sampling": {"max_tokens": 9}}},
            (9, "the run's rollout.evaluation.sampling"),
        ),
        (
            {"sampling": {"max_tokens": 7}, "evaluation": {"sampling": {"max_tokens": None}}},
            (7, "the run's rollout.sampling"),
        ),
        ({}, (2048, "by default")),
    ):
        Path("run/config.yaml").write_text(yaml.safe_dump(config | {"rollout": sampling}))
        limit, why = find_max_tokens(None, "run")
        assert (limit, why.removesuffix(".max_tokens")) == wanted
        assert find_max_tokens(5, "run") == (5, "--max_tokens")
    Path("run/config.yaml").write_text(yaml.safe_dump(config))
    assert find_dtype("auto", "run", str(tiny_model_folder)) == (torch.bfloat16, "the run's precision")
    assert find_dtype("float32", "run", str(tiny_model_folder)) == (torch.float32, "--dtype")
    settings = json.loads((tiny_model_folder / "config.json").read_text())
    (here / "model").mkdir()
    for said, found in (("bfloat16", torch.bfloat16), ("float16", torch.bfloat16), ("float32", torch.float32)):
        (here / "model/config.json").write_text(json.dumps(settings | {"dtype": said}))
        assert find_dtype("auto", "model", str(here / "model")) == (found, f"its config.json: torch.{said}")
    (here / "model/config.json").write_text(json.dumps(settings | {"dtype": None}))
    assert find_dtype("auto", "model", str(here / "model")) == (torch.float32, "by default")
    assert find_max_tokens(None, "model") == (2048, "by default")


@pytest.mark.parametrize(("options", "said"), [
    (("--suite", "tiny_suite.yaml"), "--model: give either a model"),
    (("--suite", "tiny_suite.yaml", "--model", "x", "--completions", "y"), "--model: give either a model"),
    (("--suite", "data.jsonl", "--model", "MODEL", "--like", "data.jsonl"), "--like: data.jsonl has no config.yaml"),
    (("--suite", "data.jsonl", "--model", "MODEL", "--samples", 0, "--greedy", "false"),
     "--suite: data: samples: give a positive"),
    (("--suite", "data.jsonl", "--model", "MODEL", "--protocol", "agra"), "no protocol 'agra'; did you mean"),
    (("--suite", "[{suite: data.jsonl, temprature: 1}]", "--model", "MODEL"), "did you mean 'temperature'?"),
    (("--suite", "tiny_suite.yaml", "--model", "MODEL", "--dtype", "int8"),
     "dtype: give one of 'auto', 'float32', 'bfloat16', not int8"),
    (("--suite", "wrong.yaml", "--model", "MODEL"), "--suite: wrong: data: lit_rlvr.datamodules.TextMath has no opt"),
    (("--suite", "tiny_suite.yaml", "--model", "no/such-model"), "neither a folder nor a model on the hub"),
])  # fmt: skip
def test_wrong_models_suites_and_folders_are_refused(
    here: Path, lit_rlvr: CLI, tiny_model_folder: Path, options: tuple[Any, ...], said: str
) -> None:
    Path("wrong.yaml").write_text("data: {class_path: TextMath, init_args: {tset: x}}\nrewards: []\n")
    told = [str(tiny_model_folder) if option == "MODEL" else option for option in options]
    lit_rlvr("evaluate", *told, "--engine", "hf", "--out", "out", status=2, says=said)
