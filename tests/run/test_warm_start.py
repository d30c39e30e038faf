"""The supervised start: it learns, it is kept, and what it depends on makes it anew."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_environments import Broken
from tiny_runs import CLI, FIT, metrics, summary
from transformers import AutoModelForImageTextToText

from lit_rlvr.algorithms import GRPO
from lit_rlvr.datamodules import Arithmetic, CellArea, MultiStepArithmetic, PromptDataModule
from lit_rlvr.environments import Calculator
from lit_rlvr.errors import UserError
from lit_rlvr.policy.loading import load_policy
from lit_rlvr.policy.policy import Policy
from lit_rlvr.rollout.demonstrations import DemonstrationSource
from lit_rlvr.run.warm_start import WarmStart, exact_match
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Completion, Prompt, PromptBatch, Rollout, Sample


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIT_RLVR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "warm-start"


def start(vlm_folder: Path, pictures: int = 40, **options: Any) -> GRPO:
    module = GRPO(model=str(vlm_folder))
    settings = {"steps": 6, "checked": 8, "batch_size": 8, "check_every": 3} | options
    WarmStart(**settings).apply(module, CellArea(pictures=pictures, held_out=4))
    return module


@pytest.mark.slow
def test_it_is_made_once_and_learns(vlm_folder: Path, cache: Path) -> None:
    module = start(vlm_folder)
    (made,) = cache.glob("[!.]*")
    assert module.model_folder == str(made)
    trained = AutoModelForImageTextToText.from_pretrained(made)
    before = AutoModelForImageTextToText.from_pretrained(vlm_folder)
    assert not torch.equal(trained.model.visual.merger.mlp[0].weight, before.model.visual.merger.mlp[0].weight)
    written = (made / "model.safetensors").stat().st_mtime_ns
    start(vlm_folder)
    assert (made / "model.safetensors").stat().st_mtime_ns == written
    start(vlm_folder, steps=7)
    start(vlm_folder, pictures=41)
    assert len(list(cache.glob("[!.]*"))) == 3


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Rollout]:
    """The rollouts that warm starts have trained on."""
    seen: list[Rollout] = []
    made = DemonstrationSource.next

    def noted(source: DemonstrationSource, batch: PromptBatch) -> Rollout:
        seen.append(made(source, batch))
        return seen[-1]

    monkeypatch.setattr(DemonstrationSource, "next", noted)
    return seen


def test_it_holds_out_a_quarter_of_few_prompts(
    cache: Path, trained: list[Rollout], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[int] = []
    monkeypatch.setattr("lit_rlvr.run.warm_start.exact_match", lambda _, pairs, *__: checked.append(len(pairs)) or 0.0)
    for most in (128, 8):
        data = MultiStepArithmetic(terms=[2], problems=40, held_out=0, tested=0)
        WarmStart(steps=1, checked=most, batch_size=100).apply(GRPO(model="tiny-llama"), data)
    assert ([len(rollout.prompts) for rollout in trained], checked) == ([30, 32], [10, 8])


def test_it_trains_on_the_named_categories_alone(cache: Path, trained: list[Rollout]) -> None:
    data = MultiStepArithmetic(terms=[2, 3, 4], problems=90, held_out=0, tested=0)
    WarmStart(steps=3, checked=2, categories=["2 terms", "4 terms"]).apply(GRPO(model="tiny-llama"), data)
    assert {prompt.sample.category for rollout in trained for prompt in rollout.prompts} == {"2 terms", "4 terms"}
    said = "no training prompt has the category '5 terms'; the data has '2 terms', '3 terms', '4 terms'"
    with pytest.raises(UserError, match=said):
        WarmStart(steps=3, categories=["2 terms", "5 terms"]).check(GRPO(model="tiny-llama"), data)


def test_the_exact_match_counts_greedy_answers(vlm_folder: Path, tmp_path: Path) -> None:
    module = GRPO(model=str(vlm_folder))
    policy = load_policy(str(vlm_folder))
    prompts = [Prompt(Sample(str(i), "?", "1"), [40 + i, 41]) for i in range(3)]
    greedy = []
    for prompt in prompts:
        ids = list(prompt.token_ids)
        for _ in range(3):
            logits = policy.model(torch.tensor([ids])).logits[0, -1]
            logits[list(policy.placeholder_ids)] = float("-inf")
            ids.append(int(logits.argmax()))
        greedy.append(tuple(ids[2:]))
    wanted = [Completion("", ids, "stop") for ids in greedy]
    assert exact_match(policy, list(zip(prompts, wanted, strict=True)), module.tokenizer) == 1.0
    wanted[0] = Completion("", (*greedy[0][:2], greedy[0][2] + 1), "stop")
    assert exact_match(policy, list(zip(prompts, wanted, strict=True)), module.tokenizer) == pytest.approx(2 / 3)
    limits = Sampling(max_tokens=2)
    assert exact_match(policy, list(zip(prompts, wanted, strict=True)), module.tokenizer, None, limits) == 0.0, (
        "the run's own limit cuts them"
    )


def test_a_stop_text_ends_a_solution_in_the_place_of_eos(tiny_model_folder: Path) -> None:
    module, policy = GRPO(model=str(tiny_model_folder)), load_policy(str(tiny_model_folder))
    prompt = Prompt(Sample("0", "?", "1"), [40, 41])
    first = int(policy.model(torch.tensor([[40, 41]])).logits[0, -1].argmax())
    stop = Sampling(max_tokens=8, stop=(module.tokenizer.decode([first]),))
    solution = Completion("", (first, policy.eos_token_ids[0]), "stop")
    assert exact_match(policy, [(prompt, solution)], module.tokenizer, None, stop) == 1.0
    assert exact_match(policy, [(prompt, solution)], module.tokenizer, None, Sampling(max_tokens=8)) == 0.0


def test_solutions_longer_than_a_completion_are_refused_or_reported(
    tiny_model_folder: Path, cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warm start on them would be exact within other limits than the run's."""
    monkeypatch.setattr(logging.getLogger("lit_rlvr"), "propagate", True)
    data = Arithmetic(high=12, held_out=4, prompts_per_rollout=2)
    module = GRPO(model=str(tiny_model_folder))
    data.use_model(module)
    data.setup("fit")
    start = WarmStart(steps=1, checked=4, batch_size=4)
    with pytest.raises(
        UserError, match=r"max_tokens: 1 tokens are too few for the solutions \(column 'solution'\) of "
    ):
        start.check(module, data, sampling=Sampling(max_tokens=1))
    start.check(module, data, sampling=Sampling(max_tokens=2))
    (line,) = caplog.messages
    assert "2 tokens are too few for the solutions (column 'solution') of " in line and "raise it to 3 or more" in line
    for limit in (2, 3, 4):
        start.apply(module, data, sampling=Sampling(max_tokens=limit))
        module.model_source.start_from(str(tiny_model_folder))
    assert len(list(cache.glob("[!.]*"))) == 2, "a limit that cuts a solution can change the result; others cannot"


def worded(answers: list[str], **columns: list[str]) -> PromptDataModule:
    """Rows with answers and further columns, given in Python."""
    cells = {"prompt": [f"{k}?" for k in range(len(answers))], "answer": answers} | columns
    rows = [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]
    return PromptDataModule(train=rows, prompts_per_rollout=4)


@pytest.mark.parametrize(
    ("shares", "chosen", "said"),
    [
        (
            {"answer": [0.1, 0.2], "worked": [0.1, 0.3]},
            "worked",
            "'worked': 0.300 exact after 4 steps; on 'answer': 0.200",
        ),
        (
            {"answer": [0.1, 0.3], "worked": [0.1, 0.2]},
            "answer",
            "'answer': 0.300 exact after 4 steps; on 'worked': 0.200",
        ),
        ({"answer": [0.1, 0.9], "worked": [0.6]}, "worked", "'worked': 0.600 exact after 2 steps; on 'answer': 0.900"),
    ],
)
def test_of_two_columns_it_takes_the_one_that_is_learnt_better(
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    shares: dict[str, list[float]],
    chosen: str,
    said: str,
) -> None:
    """The one that is exact after fewer steps, or else more often; a run on that column takes it from the cache."""
    monkeypatch.setattr(logging.getLogger("lit_rlvr"), "propagate", True)
    caplog.set_level(logging.INFO, "lit_rlvr")
    left = {name: [*values] for name, values in shares.items()}

    def found(policy: Policy, pairs: list[tuple[Prompt, Completion]], *rest: Any) -> float:
        return left["worked" if "so" in pairs[0][1].text else "answer"].pop(0)

    monkeypatch.setattr("lit_rlvr.run.warm_start.exact_match", found)
    answers = [f"{k}" for k in range(16)]
    data, module = worded(answers, worked=[f"so {k}" for k in answers]), GRPO(model="tiny-llama")
    settings: dict[str, Any] = {"steps": 4, "until": 0.5, "check_every": 2, "batch_size": 4}
    start = WarmStart(solution=["answer", "worked"], **settings)
    data.use_model(module)
    data.setup("fit")
    start.check(module, data)
    best, _ = start.apply(module, data)
    assert (
        best.column == chosen and module.model_folder == best.folder and any(said in line for line in caplog.messages)
    )
    again = GRPO(model="tiny-llama")
    WarmStart(solution=chosen, **settings).apply(again, data)
    assert again.model_folder == best.folder


@pytest.mark.parametrize(("answers", "target"), [(["a"] * 8 + ["b"] * 8, 0.75), (["a"] * 16, 0.5)])
def test_until_counts_from_a_constant_guess_on(
    cache: Path, monkeypatch: pytest.MonkeyPatch, answers: list[str], target: float
) -> None:
    """Where every solution is the same, there is no guess to beat."""
    monkeypatch.setattr("lit_rlvr.run.warm_start.exact_match", lambda *_: 0.6)
    start = WarmStart(solution="answer", steps=4, until=0.5, check_every=2, batch_size=4)
    (result,) = start.apply(GRPO(model="tiny-llama"), worded(answers))
    assert (result.target, result.steps) == (target, 4 if target > 0.6 else 2)


def test_a_limit_in_seconds_ends_it_after_a_step_and_is_not_cached(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_rlvr.run.warm_start.exact_match", lambda *_: 0.1)
    start, data = WarmStart(solution="answer", steps=4, check_every=2, batch_size=4), worded(["a", "b"] * 8)
    (cut,) = start.apply(GRPO(model="tiny-llama"), data, seconds=0.0)
    (whole,) = start.apply(GRPO(model="tiny-llama"), data)
    assert (cut.steps, cut.was_cut, whole.steps, whole.was_cut) == (1, True, 4, False)
    assert cut.folder != whole.folder and Path(cut.folder, "config.json").is_file()


def test_a_run_measures_the_model_before_its_warm_start(
    run_folder: Path, lit_rlvr: CLI, cache: Path, tmp_path: Path
) -> None:
    """By the same questions; a resumed run knows it still."""
    warm = ("--warm_start.steps", 2, "--warm_start.checked", 4, "--warm_start.check_every", 1)
    plain = lit_rlvr(*FIT, "--trainer.max_steps", 1, "--trainer.default_root_dir", "plain", status=0)
    result = lit_rlvr(*FIT, *warm, "--trainer.max_steps", 2, status=0)
    before = summary(run_folder / "plain")["accuracy_before"]
    found = summary(run_folder / "run")
    assert (
        found["accuracy_before_warm_start"] == before
        and summary(run_folder / "plain")["accuracy_before_warm_start"] is None
    )
    after, end = found["accuracy_before"], found["accuracy_after"]
    said = f"Validation accuracy {before:.3f} before, {after:.3f} after the warm start, {end:.3f} (+-"
    assert said in result.err and "after the warm start" not in plain.err
    assert found["accuracy_after_noise"] > 0 and 0 < found["constant_guess"] < 1
    first = metrics(run_folder / "run")[0]
    assert float(first["val/accuracy_before_warm_start"]) == before and float(first["val/accuracy"]) == after
    again = lit_rlvr(*FIT, *warm, "--ckpt_path", "last", "--trainer.max_steps", 3, status=0)
    assert f"Validation accuracy {before:.3f} before, {after:.3f} after the warm start" in again.err


def test_a_warm_start_without_rows_sizes_or_solutions_is_refused(vlm_folder: Path, cache: Path) -> None:
    with pytest.raises(UserError, match=r"warm_start.until: 0 must lie in"):
        WarmStart(until=0)
    with pytest.raises(UserError, match=r"warm_start.batch_size: 0 must lie in"):
        WarmStart(batch_size=0)
    with pytest.raises(UserError, match=r"warm_start: 3 training prompts are too few"):
        few = MultiStepArithmetic(terms=[2], problems=3, held_out=0, tested=0, prompts_per_rollout=1)
        WarmStart(steps=1).apply(GRPO(model="tiny-llama"), few)
    with pytest.raises(UserError, match=r"warm_start.solution:"):
        start(vlm_folder, solution="worked")
    assert not list(cache.glob("*/")), "nothing half-made"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_computes_as_the_run_does(
    tiny_model_folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    seen: list[bool] = []
    forward = Policy.forward

    def noted(policy: Policy, *arguments: Any, **more: Any) -> Any:
        if torch.is_grad_enabled() and policy.device.type == "cpu":
            seen.append(torch.is_autocast_enabled("cpu"))
        return forward(policy, *arguments, **more)

    monkeypatch.setattr(Policy, "forward", noted)
    data = Arithmetic(high=6, held_out=4, prompts_per_rollout=2)
    for _ in range(2):
        WarmStart(steps=2, checked=4, check_every=2).apply(GRPO(model=str(tiny_model_folder)), data, dtype=dtype)
    assert seen == [dtype == torch.bfloat16] * 2, "two steps, and then it is cached"
    WarmStart(steps=2, checked=4, check_every=2).apply(GRPO(model=str(tiny_model_folder)), data)
    assert len(list(cache.glob("[!.]*"))) == 1 + (dtype == torch.bfloat16), "another precision, another result"


@pytest.mark.slow
def test_the_solutions_of_episodes_are_played(tiny_model_folder: Path, cache: Path, trained: list[Rollout]) -> None:
    """The environment answers the solution's turns, and only the turns are learnt."""
    turns = {"max_tokens": 32, "max_turns": 2, "max_observation_tokens": 40}
    sampling, environment = Sampling(**turns), Calculator(offer=False)

    def made(solution: list[str] | str) -> Arithmetic:
        return Arithmetic(high=6, held_out=4, operation="multiply", solution=solution, prompts_per_rollout=2)

    data = made(["<call>calculate('{a}*{b}')</call>", "{answer}"])
    start = WarmStart(steps=3, checked=4, batch_size=4, check_every=3)
    start.apply(GRPO(model=str(tiny_model_folder)), data, environment, sampling)
    seen = [completion for rollout in trained for (completion,) in rollout.completions]
    assert len(seen) == 12
    for completion in seen:
        call, answer = completion.turns
        assert (call.observation, call.calls, call.errors) == (answer.text, 1, 0)
        sampled = [t for t, own in zip(completion.token_ids, completion.sampled, strict=True) if own]
        assert data.tokenizer.decode(sampled, skip_special_tokens=True) == call.text + answer.text
    for wrong, played, said in (
        ("{answer}", environment, r"warm_start.solution:"),
        (["<call>calculate('1')</call>"], environment, r"ends before its episode does.*add a turn"),
        (["2", "{answer}"], environment, r"has 1 turn\(s\) after the end of its episode"),
        (["2" * 40], environment, "has a turn of more than 32 tokens"),
        (["2"], Broken(), r"environment: .*no way in"),
    ):
        with pytest.raises(UserError, match=said):
            start.apply(GRPO(model=str(tiny_model_folder)), made(wrong), played, sampling)
    kept = list(cache.glob("[!.]*"))
    start.apply(GRPO(model=str(tiny_model_folder)), data, environment, replace(sampling, max_observation_tokens=44))
    assert len(list(cache.glob("[!.]*"))) == len(kept) + 1, "another limit, another episode"


@pytest.mark.slow
def test_a_run_starts_from_it_and_resumes(run_folder: Path, lit_rlvr: CLI, cache: Path, vlm_folder: Path) -> None:
    warm = ("--warm_start.steps", 3, "--warm_start.checked", 8, "--warm_start.check_every", 3)
    data = ("--data", "CellArea", "--data.init_args.pictures", 24, "--data.init_args.held_out", 4)
    fit = ("fit", "--config", "tiny.yaml", "--model.init_args.model", vlm_folder, *data, *warm)
    fit += ("--rollout.sampling.max_tokens", 10)  # as its solutions have
    for root, steps in (("whole", 3), ("cut", 1)):
        lit_rlvr(*fit, "--trainer.default_root_dir", root, "--trainer.max_steps", steps, status=0)
    lit_rlvr(*fit, "--trainer.default_root_dir", "cut", "--trainer.max_steps", 3, "--ckpt_path", "last", status=0)
    assert summary(Path("cut"))["weights_sha256"] == summary(Path("whole"))["weights_sha256"]
    assert len(list(cache.glob("[!.]*"))) == 1
