"""Reward functions written for TRL, verl and lit-rlvr, called as each library calls them."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
from dataclasses import replace
from functools import partial
from math import isnan
from pathlib import Path
from typing import Any

import pytest
import trl.rewards

from lit_rlvr.errors import UserError
from lit_rlvr.rewards import FunctionReward, Reward, as_rewards
from lit_rlvr.rewards.background import BackgroundScoring
from lit_rlvr.rewards.combine import logged_metrics, score_rollout
from lit_rlvr.types import Completion, RewardResult, Sample, Turn

CHAT = [{"role": "user", "content": "1 + 2?"}]
ROW = {
    "prompt": "not this one",
    "solution": "3",
    "level": 2,
    "data_source": "sums",
    "extra_info": {"index": 7},
    "reward_model": {"style": "rule", "ground_truth": "three"},
}
ROWS = [Sample("a", "1 + 2?", "3", row=ROW), Sample("b", "2 + 2?", "4", row={**ROW, "solution": "4", "level": 5})]
PAIRS = [(Completion(text, tuple(range(len(text))), "length"), sample) for sample in ROWS for text in ("3", "four")]

CODE = """
import asyncio
from functools import lru_cache


def everything(prompts, completions, completion_ids, trainer_state, log_extra, log_metric, level, **kwargs):
    steps = trainer_state.global_step, trainer_state.max_steps
    seen.append((prompts, completions, completion_ids, *steps, level, kwargs))
    log_extra("half", [len(text) / 2 for text in completions])
    log_metric("size", len(prompts))
    return [None if text == "four" and n == 2 else float(n) for text, n in zip(completions, level)]


seen = []


def few(completions, solution):
    return [text == right for text, right in zip(completions, solution)]


def only_keywords(**kwargs):
    return [len(ids) for ids in kwargs["completion_ids"]]


async def judge(completions, **kwargs):
    await asyncio.sleep(0)
    loops.add(asyncio.get_running_loop())
    return [0.5] * len(completions)


loops = set()


def short(completions, **kwargs):
    return [1.0]


def logs_short(completions, log_extra, **kwargs):
    log_extra("x", [1])
    return [1.0] * len(completions)


def broken(completions, **kwargs):
    return [1 / 0 for _ in completions]


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    if solution_str == "four":
        return {"score": -1, "acc": False, "pred": solution_str}
    return len(data_source) + len(ground_truth) + extra_info["index"]


async def compute_score_later(data_source, solution_str, ground_truth, extra_info, scale=1):
    started.append(solution_str)
    while len(started) % 4:  # ends only if all are running
        await asyncio.sleep(0)
    if solution_str == "four":
        raise ValueError("no number")
    return scale


started = []


def compute_scores(data_sources, solution_strs, ground_truths, extra_infos):
    assert len(data_sources) == len(solution_strs) == len(ground_truths)
    return [{"score": info["index"], "acc": 1.0} for info in extra_infos]


def nemo(prompts, responses, ground_truths):
    return [0.0] * len(prompts)


def make(size=3):
    def longer(completions, **kwargs):
        return [float(len(text) > size) for text in completions]
    return longer


class Longer:
    def __init__(self, size):
        self.size = size

    def __call__(self, completion, sample):
        return len(completion.text) > self.size


async def own(completion, sample):
    return completion.text == sample.answer


def unlike_any(first, *, second):
    return 1


def easyr1(reward_input, format_weight=0.1):
    right = float(reward_input["response"] == reward_input["ground_truth"])
    return {"overall": right + format_weight * reward_input["response_length"], "format": 0.5, "accuracy": right}


def easyr1_batch(reward_inputs: list[dict]):
    return [easyr1(one) for one in reward_inputs]


def openrlhf(queries, prompts, labels, **kwargs):
    import torch
    right = [query.removeprefix(prompt) == label for query, prompt, label in zip(queries, prompts, labels)]
    rewards = torch.tensor(right).float()[:, None] - 0.5
    return {"rewards": rewards, "scores": rewards + 0.5, "extra_logs": {"half": rewards / 2}}


def openrlhf_tensor(queries, prompts, labels):
    import torch
    return torch.tensor([float(len(query)) for query in queries])


async def slime(args, sample, **kwargs):
    await asyncio.sleep(0)
    return {"score": args.scale * len(sample.response), "acc": sample.response == sample.label}


def slime_sync(args, sample, **kwargs):
    return (sample.response_length, sample.metadata, sample.status, sample.prompt) == (1, {}, "truncated", "1 + 2?")


def old_easyr1(predict_str: str, ground_truth: str) -> float:
    return float(predict_str == ground_truth)


def later(completions, **kwargs):
    return judge(completions)


def turned_round(sample, completion):
    return float(completion.text == sample.answer)


async def slime_group(args, samples, **kwargs):
    return [1.0] * len(samples)


def areal(prompt, completions, prompt_ids, completion_ids, answer, **kwargs):
    return 1.0


def with_tokenizer(solution_str, ground_truth, tokenizer):
    return 1.0


def unwrapped(*args, **kwargs):
    return 1.0


def response_and_label(response, label):
    return 1.0


class Undecided:
    def __call__(self, data, return_dict=False):
        return 1.0


def pair(completion, sample):
    return 1.0, {"format": 1.0}


def nothing_known(completion, sample):
    return {"points": 1.0}
"""


@pytest.fixture(autouse=True)
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The functions above as the module `foreign`."""
    (tmp_path / "foreign.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "foreign", raising=False)
    yield __import__("foreign")
    sys.modules.pop("foreign")


def values(path: str, **options: Any) -> list[float | None]:
    results = FunctionReward(path, **options).score(PAIRS)
    assert {result.status for result in results} <= {"ok", "unjudged"}, results
    return [None if result.status == "unjudged" else result.value for result in results]


def test_a_function_of_trl_gets_what_trl_gives(foreign: Any) -> None:
    reward = FunctionReward("foreign.everything")
    reward.begin_rollout(3, 20)
    results = reward.score(PAIRS)
    assert [(r.value, r.status, r.detail) for r in results] == [
        (2.0, "ok", "half: 0.5"),
        (0.0, "unjudged", "half: 2.0"),
        (5.0, "ok", "half: 0.5"),
        (5.0, "ok", "half: 2.0"),
    ]
    assert logged_metrics([reward]) == {"reward/size": 4.0}
    ((prompts, completions, ids, step, last, level, rest),) = foreign.seen
    assert (prompts, completions) == (["1 + 2?"] * 2 + ["2 + 2?"] * 2, ["3", "four"] * 2)
    assert (ids, step, last, level) == ([[0], [0, 1, 2, 3]] * 2, 3, 20, [2, 2, 5, 5])
    assert rest["solution"] == ["3", "3", "4", "4"] == rest["answer"] and "prompt" not in rest
    assert [info["index"] for info in rest["extra_info"]] == [7] * 4
    reward.begin_rollout(4, 20)
    assert isnan(logged_metrics([reward])["reward/size"]), "Lightning would repeat the last value"
    reward.score(PAIRS)
    reward.begin_rollout(5, 20)
    assert logged_metrics([reward]) == {"reward/size": 4.0}, "judged during training, for a later rollout"
    reward.check_reference(PAIRS[0][1])
    with pytest.raises(UserError, match=r"reward 'everything': foreign.everything takes level, which is no column of"):
        reward.check_reference(replace(PAIRS[0][1], row={}))


@pytest.mark.parametrize("given", [{"index": 7}, '{"index": 7}'])
def test_a_mapping_of_verl_may_be_json_text(foreign: Any, given: Any) -> None:
    row = {"data_source": "ab", "extra_info": given, "reward_model": '{"ground_truth": "321"}'}
    reward, sample = FunctionReward("foreign.compute_score"), Sample("c", "1 + 2?", "3", row=row, source="d.csv:2")
    reward.check_reference(sample)
    assert reward.score([(Completion("3", (1,), "stop"), sample)])[0].value == 2 + 3 + 7
    wrong = replace(sample, row=row | {"extra_info": "index 7"})
    with pytest.raises(UserError, match=r"d\.csv:2: extra_info: 'index 7' is no mapping, nor JSON of one"):
        reward.check_reference(wrong)


def test_messages_are_for_data_of_messages_and_for_functions_that_say_so(foreign: Any) -> None:
    turns = (Turn("look", "it is 3"), Turn("3"))
    chat = Sample("c", CHAT, "3", row={"level": 1})
    FunctionReward("foreign.everything").score([(Completion("3", (1,), "stop", turns=turns), chat)])
    ((prompts, completions, *_, rest),) = foreign.seen
    assert prompts == [CHAT] and rest["solution"] == ["3"]
    assert completions == [
        [
            {"role": "assistant", "content": "look"},
            {"role": "tool", "content": "it is 3"},
            {"role": "assistant", "content": "3"},
        ]
    ]
    boxed = [(Completion(rf"\boxed{{{text}}}", (1, 2), "stop"), sample) for sample in ROWS for text in ("3", "x")]
    assert [r.value for r in FunctionReward("trl.rewards.accuracy_reward").score(boxed)] == [1.0, 0.0, 0.0, 0.0]
    unreadable = [(Completion(r"\boxed{3}", (1,), "stop"), Sample("d", CHAT, "no answer here"))]
    for function in ("accuracy_reward", "get_cosine_scaled_reward"):
        options = {"max_len": 10} if function.startswith("get") else None
        assert FunctionReward(f"trl.rewards.{function}", options).score(unreadable)[0].status == "unjudged"


@pytest.mark.parametrize(
    ("path", "options", "found"),
    [
        ("foreign.few", None, [1.0, 0.0, 0.0, 0.0]),  # it takes no **kwargs
        ("foreign.only_keywords", None, [1, 4, 1, 4]),
        ("foreign.judge", None, [0.5] * 4),
        ("foreign.make", None, [0.0, 1.0, 0.0, 1.0]),
        ("foreign.make", {"size": 0}, [1.0] * 4),
        ("foreign.compute_score", None, [16, -1, 16, -1]),
        ("foreign.compute_scores", None, [7.0] * 4),
        ("foreign.easyr1", None, [0.1, 0.4, 0.1, 0.4]),  # the row's ground truth is "three"
        ("foreign.easyr1", {"format_weight": 1}, [1.0, 4.0, 1.0, 4.0]),
        ("foreign.easyr1_batch", None, [0.1, 0.4, 0.1, 0.4]),
        ("foreign.openrlhf", None, [0.5, -0.5, -0.5, -0.5]),
        ("foreign.openrlhf_tensor", None, [7, 10, 7, 10]),  # prompt and completion
        ("foreign.slime", {"scale": 2}, [2.0, 8.0, 2.0, 8.0]),
        ("foreign.slime_sync", None, [1.0, 0.0, 0.0, 0.0]),
        ("foreign.old_easyr1", None, [0.0] * 4),
        ("foreign.later", None, [0.5] * 4),  # it returns a coroutine
        ("foreign.Longer", {"size": 1}, [0.0] * 4),  # all are cut off, which ours judges as wrong
        ("trl.rewards.get_repetition_penalty_reward", {"ngram_size": 1}, [0.0] * 4),
        ("trl.rewards.get_soft_overlong_punishment", {"max_completion_len": 3, "soft_punish_cache": 0}, [0, -1, 0, -1]),
        ("trl.rewards.think_format_reward", None, [0.0] * 4),
    ],
)
def test_each_kind_of_function_is_called_as_its_library_does(path: str, options: Any, found: list[float]) -> None:
    assert values(path, options=options) == found


def test_names_and_correctness(foreign: Any) -> None:
    assert FunctionReward("foreign.few").name == "few"
    made = FunctionReward("trl.rewards.get_soft_overlong_punishment", {"max_completion_len": 9, "soft_punish_cache": 2})
    assert made.name == trl.rewards.get_soft_overlong_punishment(9, 2).__name__
    assert [r.correct for r in FunctionReward("foreign.few").score(PAIRS)] == [True, False, False, False]
    assert [r.correct for r in FunctionReward("foreign.compute_score").score(PAIRS)] == [None, False] * 2
    assert FunctionReward("foreign.compute_score").score(PAIRS)[1].detail == "pred: four"
    assert FunctionReward("foreign.compute_scores").score(PAIRS)[0].correct is True


def test_the_accuracy_of_other_libraries_is_correct_and_their_numbers_are_metrics() -> None:
    for path, correct in {"easyr1": [False] * 4, "openrlhf": [True, False, False, False]}.items():
        assert [r.correct for r in FunctionReward(f"foreign.{path}").score(PAIRS)] == correct
    reward = FunctionReward("foreign.slime", {"scale": 1})
    assert [r.correct for r in reward.score(PAIRS)] == [True, False, False, False]
    for path, name, mean in (("easyr1_batch", "format", 0.5), ("easyr1", "accuracy", 0), ("openrlhf", "half", -0.125)):
        reward = FunctionReward(f"foreign.{path}")
        reward.score(PAIRS)
        assert logged_metrics([reward])[f"reward/{path}/{name}"] == mean
    assert [r.value for r in FunctionReward("foreign.turned_round", truncated_is_wrong=False).score(PAIRS)] == [
        1,
        0,
        0,
        0,
    ]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "2?"}], "2?"),
        ([{"type": "image"}, {"type": "text", "text": "2?"}], "<image>2?"),
        ("2?", "2?"),
        (None, ""),
    ],
)
def test_a_query_of_openrlhf_has_what_the_template_opened(content: Any, text: str) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    pair = (Completion("2</think>", (1,), "stop", prefill="<think>"), Sample("a", chat, "2"))
    assert FunctionReward("foreign.openrlhf_tensor")(*pair) == len(f"Be brief.\n\n{text}<think>2</think>")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("foreign.pair", "must return a number, a bool, .* or a dict with score, overall or reward .* returned tuple"),
        ("foreign.nothing_known", "a dict must have the reward as score, overall or reward; its keys are points"),
        ("foreign.slime", "has no attribute 'scale'"),
    ],
)
def test_what_cannot_be_read_names_the_forms(path: str, said: str) -> None:
    (result, *_) = FunctionReward(path).score(PAIRS)
    assert result.status == "error" and re.search(said, result.detail), result


def test_asynchronous_functions_share_one_loop_and_run_at_once(foreign: Any) -> None:
    reward = FunctionReward("foreign.judge")
    reward.score(PAIRS)
    thread = threading.Thread(target=reward.score, args=(PAIRS,))
    thread.start()
    thread.join()
    assert len(foreign.loops) == 1 and isinstance(foreign.loops.pop(), asyncio.AbstractEventLoop)
    results = FunctionReward("foreign.compute_score_later", {"scale": 3}).score(PAIRS)
    assert [(r.value, r.status) for r in results] == [(3.0, "ok"), (0.0, "error")] * 2
    assert "foreign.py" in results[1].detail and "ValueError: no number" in results[1].detail
    assert [r.correct for r in FunctionReward("foreign.own", truncated_is_wrong=False).score(PAIRS)] == [
        True,
        False,
        False,
        False,
    ]


def test_a_failure_is_one_of_all_completions_and_a_wrong_answer_ends_the_run() -> None:
    results = FunctionReward("foreign.broken").score(PAIRS)
    assert {r.status for r in results} == {"error"} and "ZeroDivisionError" in results[3].detail
    with pytest.raises(UserError, match=r"'short': short \(.*foreign.py:\d+\) must return a list .* 4 .* 1 values"):
        FunctionReward("foreign.short").score(PAIRS)
    with pytest.raises(UserError, match=r"log_extra\('x', ...\) must get one value for each of the 4 .* got 1"):
        FunctionReward("foreign.logs_short").score(PAIRS)


@pytest.mark.parametrize(
    ("path", "options", "said"),
    [
        (
            "foreign.unlike_any",
            None,
            r"unlike_any': .*\(first, \*, second\).* \(completion, .* a required argument: 'first'",
        ),
        ("foreign.Longer", None, "Longer': .*lacks options: missing a required argument: 'size'"),
        ("trl.rewards.get_soft_overlong_punishment", None, "missing a required argument: 'max_completion_len'"),
        ("foreign.make", {"length": 3}, "unexpected keyword argument 'length'"),
        ("foreign.unlike_any", {"first": 1, "second": 2}, "it makes an int of none of the known forms"),
        ("foreign.slime_group", None, r"\(args, samples, \*\*kwargs\) are of no known form.*slime \(args, sample\)"),
        ("foreign.areal", None, r"\(prompt, completions, .* no known form"),
        (
            "foreign.with_tokenizer",
            None,
            "as a function of verl it gets data_source, .*, not tokenizer; give .* `options",
        ),
        ("foreign.unwrapped", None, "its parameters have no names"),
        ("foreign.nemo", None, r"\(prompts, responses, ground_truths\) are of no known form"),
        ("foreign.response_and_label", None, r"\(response, label\) are of no known form"),
        ("foreign.Undecided", None, "Undecided of none of the known forms"),
        ("foreign.easyr1", {"weight": 1}, "it has no parameter weight"),
    ],
)
def test_what_is_no_reward_function_is_refused_at_the_start(path: str, options: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        FunctionReward(path, options)
    assert "\n" not in str(error.value)


def test_a_function_without_free_parameters_makes_the_reward(foreign: Any) -> None:
    """One that is written in C has unknown parameters, and judges."""
    made = FunctionReward(partial(foreign.make, 3))
    assert [result.value for result in made.score(PAIRS)] == [0.0, 1.0, 0.0, 1.0]
    with pytest.raises(UserError, match="it makes an int of none of the known forms"):
        FunctionReward(partial(foreign.unlike_any, 1), {"second": 2})
    assert FunctionReward(max).form is FunctionReward("foreign.own").form


def test_a_function_of_trl_judges_a_whole_rollout_at_once(foreign: Any) -> None:
    begun = threading.Event()

    class Counts(Reward):
        def __call__(self, completion: Completion, sample: Sample) -> float:
            begun.set()
            return float(completion.length)

    rewards = as_rewards([Counts(), "foreign.everything", FunctionReward("foreign.judge", weight=2.0)])
    with BackgroundScoring(rewards) as scoring:
        for number, sample in ((1, ROWS[1]), (0, ROWS[0])):
            scoring.add(number, [completion for completion, s in PAIRS if s is sample], sample)
            assert begun.wait(10)  # the first group is being scored before the second one comes
        scores = scoring.scores([0, 1], 2)
    assert len(foreign.seen) == 1  # one call, in the order of the prompts
    assert list(scores.parts) == ["counts", "everything", "judge"]
    assert scores.rewards.tolist() == [[0 + 2 + 1.0, 0 + 0 + 1.0], [0 + 5 + 1.0, 0 + 5 + 1.0]]
    whole = score_rollout(rewards, [[c for c, _ in PAIRS[:2]], [c for c, _ in PAIRS[2:]]], ROWS)
    assert whole.rewards.tolist() == scores.rewards.tolist()
    assert whole.has_reward.all()


def test_an_isolated_function_of_trl_gets_one_completion_per_call() -> None:
    reward = FunctionReward("trl.rewards.think_format_reward", isolate=True)
    assert not reward.whole_rollout
    assert reward._judge(*PAIRS[0], MemoryError) == RewardResult(0.0, None)
