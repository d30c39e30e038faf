"""The first half of the loop: when weights are synced and probed, metrics of a rollout."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import VOCAB, byte_tokenizer, make_prompt, make_rollout, tiny_llama
from tiny_engines import Copying
from tiny_fit import Recorder, fit
from transformers import AutoModelForCausalLM, Qwen3MoeConfig
from two_ranks import in_two_ranks

from lit_rlvr.engines.base import EngineContext
from lit_rlvr.engines.hf import HFEngine
from lit_rlvr.engines.synced import check_engine, probe_prompts, probe_seeds, trainer_logprobs
from lit_rlvr.engines.turns import OnGroupDone
from lit_rlvr.errors import UserError
from lit_rlvr.policy import policy as policy_module
from lit_rlvr.policy.layout import Group
from lit_rlvr.policy.policy import Policy
from lit_rlvr.rollout import RolloutCallback
from lit_rlvr.rollout.metrics import reward_spread, rollout_metrics
from lit_rlvr.rollout.settings import Evaluation
from lit_rlvr.sampling import EvalSampling, Sampling
from lit_rlvr.types import Completion, Prompt


class CountingEngine(HFEngine):
    """Records weight syncs and the number of completions per call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def sync(self, policy: Policy) -> None:
        assert "model.embed_tokens.weight" in dict(policy.named_weights())
        super().sync(policy)
        self.calls.append("sync")

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        done: OnGroupDone | None = None,
    ) -> list[list[Completion]]:
        self.calls.append(str(sum(len(s) for s in seeds)))
        return super().generate(prompts, sampling, seeds, done)

    def close(self) -> None:
        self.calls.append("close")
        super().close()


def test_weights_are_synced_once_an_iteration_and_probed_first_and_every_so_often(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    engine = CountingEngine()
    fit(tiny_model_folder, tmp_path, steps=5, engine=engine, probe_every=2)
    probed, plain = ["sync", "6", "24"], ["sync", "24"]
    assert engine.calls == [*probed, *probed, *plain, *probed, *plain, "close"]
    engine = CountingEngine()
    fit(tiny_model_folder, tmp_path, steps=3, engine=engine, probe_every=0)
    assert engine.calls == [*probed, *plain, *plain, "close"]


class StaleEngine(CountingEngine):
    """Ignores all weights after the first sync."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        done: OnGroupDone | None = None,
    ) -> list[list[Completion]]:
        found = super().generate(prompts, sampling, seeds, done)
        if self.calls.count("sync") < 2:
            return found
        return [[replace(c, logprobs=tuple(v - 0.01 for v in c.logprobs)) for c in group] for group in found]


def test_stale_weights_stop_the_run_at_the_next_probe(tiny_model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"engine stale: its log-probabilities differ .* by up to 0\.01 nats"):
        fit(tiny_model_folder, tmp_path, steps=4, engine=StaleEngine(), probe_every=2)


PROBED = [make_prompt(ids, f"p{len(ids)}") for ids in ([5, 6, 7], [9, 8, 7, 6, 5, 4, 3, 2], [11])]


@pytest.mark.parametrize(
    ("tokens", "shift", "refused"), [(16, 0.08, False), (16, 0.15, True), (1, 0.3, False), (1, 0.6, True)]
)
def test_in_16_bits_a_probe_looks_at_the_mean_of_each_completion(
    tokens: int, shift: float, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding moves single tokens further than a wrong weight matrix moves the mean."""
    engine, policy = HFEngine(), Policy(tiny_llama(), ())
    engine.start(replace(EngineContext.in_place(policy, byte_tokenizer(), 4), dtype=torch.bfloat16))
    sampling = Sampling(max_tokens=tokens)
    assert check_engine(engine, policy, PROBED, sampling) < 0.05
    groups = engine.generate(PROBED, sampling, probe_seeds(3))
    ours = trainer_logprobs(policy, PROBED, groups, sampling, torch.bfloat16)
    groups[1][1] = replace(groups[1][1], logprobs=tuple((ours[3] + shift).tolist()))
    monkeypatch.setattr(engine, "generate", lambda *_: groups)
    with pytest.raises(UserError, match="by a mean of") if refused else nullcontext():
        check_engine(engine, policy, PROBED, sampling)


@pytest.mark.parametrize(("shifts", "refused"), [((1.5, 0, 0, 0, 0), False), ((0.3,) * 5, True)])
def test_in_16_bits_a_probe_lets_single_tokens_choose_other_experts(
    shifts: tuple[float, ...], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = dict(hidden_size=64, intermediate_size=64, moe_intermediate_size=32, num_hidden_layers=2, vocab_size=VOCAB)
    heads = dict(num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_experts=4, num_experts_per_tok=2)
    model = AutoModelForCausalLM.from_config(Qwen3MoeConfig(**sizes, **heads))
    engine, policy = HFEngine(), Policy(model.eval(), ())
    engine.start(replace(EngineContext.in_place(policy, byte_tokenizer(), 4), dtype=torch.bfloat16))
    sampling = Sampling(max_tokens=5)
    groups = engine.generate(PROBED, sampling, probe_seeds(3))
    ours = trainer_logprobs(policy, PROBED, groups, sampling, torch.bfloat16)
    groups[1][1] = replace(groups[1][1], logprobs=tuple((ours[3] + torch.tensor(shifts)).tolist()))
    monkeypatch.setattr(engine, "generate", lambda *_: groups)
    with pytest.raises(UserError, match="by a median of") if refused else nullcontext():
        check_engine(engine, policy, PROBED, sampling)


def swap(groups: list[Any]) -> list[Any]:
    return [groups[1], groups[0], *groups[2:]]


def shift(groups: list[list[Completion]]) -> list[list[Completion]]:
    off = [replace(c, logprobs=tuple(v - 0.01 for v in c.logprobs)) for c in groups[1]]
    return [groups[0], off, *groups[2:]]


def misread(groups: Sequence[Group]) -> list[Group]:
    return [groups[0], replace(groups[1], prompt=[0, *groups[1].prompt[1:]]), *groups[2:]]


@pytest.mark.parametrize(
    ("engine_fault", "trainer_fault"), [(swap, None), (shift, None), (None, misread), (None, None)]
)
def test_a_fault_of_one_group_fails_the_probe(
    engine_fault: Any, trainer_fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, policy = HFEngine(), Policy(tiny_llama(), ())
    engine.start(EngineContext.in_place(policy, byte_tokenizer(), 4))
    generate, build_rows = engine.generate, policy_module.build_rows
    if engine_fault is not None:
        monkeypatch.setattr(engine, "generate", lambda *given: engine_fault(generate(*given)))
    if trainer_fault is not None:
        monkeypatch.setattr(policy_module, "build_rows", lambda groups, *rest: build_rows(trainer_fault(groups), *rest))
    with pytest.raises(UserError, match="by up to") if engine_fault or trainer_fault else nullcontext():
        assert check_engine(engine, policy, PROBED, Sampling(max_tokens=4)) < 1e-4


@pytest.mark.parametrize(
    ("lengths", "chosen"),
    [([4, 9, 2, 7, 7], [7, 9, 2]), ([3, 8], [8, 3]), ([5], [5]), ([6, 6, 6], [6, 6, 6]), ([2, 2, 2, 9], [2, 9, 2])],
)
def test_a_probe_has_prompts_of_several_lengths(lengths: list[int], chosen: list[int]) -> None:
    prompts = [make_prompt([5] * length, str(k)) for k, length in enumerate(lengths)]
    found = probe_prompts(prompts)
    assert [len(prompt.token_ids) for prompt in found] == chosen
    assert len({prompt.sample.id for prompt in found}) == len(found)


def test_ranks_probe_with_the_same_prompts(tmp_path: Path) -> None:
    def _rank_probes(rank: int) -> None:
        prompts = [make_prompt([5] * length, str(rank)) for length in ([3, 9], [4])[rank]]
        assert [(p.sample.id, len(p.token_ids)) for p in probe_prompts(prompts)] == [("1", 4), ("0", 9), ("0", 3)]
        assert probe_prompts(prompts[:1], together=False) == prompts[:1]

    in_two_ranks(tmp_path, _rank_probes)


def test_validation_is_as_long_as_training_unless_it_is_said() -> None:
    training = Sampling(temperature=0.7, top_k=5, max_tokens=24)
    assert RolloutCallback(engine="hf", sampling=training).eval_sampling == Sampling(temperature=0.0, max_tokens=24)
    given = RolloutCallback(
        engine="hf", sampling=training, evaluation=Evaluation(sampling=EvalSampling(0.6, top_p=0.95, max_tokens=96))
    )
    assert given.eval_sampling == Sampling(temperature=0.6, top_p=0.95, max_tokens=96)
    whole = Sampling(temperature=0.0, max_tokens=24)
    assert RolloutCallback(engine="hf", evaluation=Evaluation(sampling=whole)).eval_sampling == whole
    with pytest.raises(UserError, match="max_tokens: 0 must be >= 1"):
        RolloutCallback(engine="hf", evaluation=Evaluation(sampling=EvalSampling(max_tokens=0)))


def test_metrics_of_a_rollout_are_hand_computed_values() -> None:
    rollout = make_rollout([[5], [5]], [[[6, 7], [6]], [[6, 7, 8], [6, 7]]], [[1.0, 0.0], [-2.0, -2.0]])
    rollout.completions[0][0] = replace(rollout.completions[0][0], finish_reason="length")
    rollout.parts = {"answer": torch.tensor([[1.0, 0.0], [0.0, 0.0]])}
    rollout.statuses = [["ok", "parse_fail"], ["timeout", "ok"]]
    rollout.rollout_logprobs = torch.tensor([[-1.0, -2.0, 0], [-0.5, 0, 0], [-1.0, -1.0, -1.0], [-0.5, -1.0, 0]])
    others = [[Completion("", (1, 2, 3, 4), "stop")]]
    found = rollout_metrics(rollout, byte_tokenizer(), 4.0, others)
    assert {k: v for k, v in found.items() if k.startswith(("rollout", "reward"))} == pytest.approx(
        {
            "rollout/reward": -3 / 4,
            "rollout/accuracy": 1 / 4,
            "rollout/length": 2.0,
            "rollout/truncated": 1 / 4,
            "reward/answer": 1 / 4,
            "reward/status/parse_fail": 1 / 4,
            "reward/status/timeout": 1 / 4,
            "reward/status/error": 0.0,
            "reward/status/unjudged": 0.0,
            "rollout/correct_count": 1.0,
            "rollout/unsolved_prompts": 1.0,
            "rollout/judged_prompts": 2.0,
            "rollout/accuracy_error": 0.25,  # accuracies 0.5 and 0
            "rollout/samples": 4 + 1.0,
            "rollout/tokens": 8 + 4.0,
            "rollout/entropy": 8.0 / 8,
            "rollout/tokens_per_second": 8 / 4.0,
            "rollout/lowest_reward": -2.0,
            "rollout/highest_reward": 1.0,
            "rollout/prompts_at_lowest": 0.5,
            "rollout/prompts_at_highest": 0.0,
        }
    )


@pytest.mark.parametrize(
    ("rewards", "spread"),
    [
        ([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 1.0]], (0.0, 1.0, 0.75, 0.25)),
        ([[0.25, 0.25], [0.25, 0.25]], (0.25, 0.25, 1.0, 1.0)),
        ([[0.0, 1.0], [0.5, 0.5]], (0.0, 1.0, 0.0, 0.0)),
    ],
)
def test_the_spread_of_the_rewards_tells_one_reward_from_two(
    rewards: list[list[float]], spread: tuple[float, ...]
) -> None:
    rollout = make_rollout([[5]] * len(rewards), [[[6]] * 2] * len(rewards), rewards)
    assert tuple(reward_spread(rollout).values()) == spread
    rollout.statuses = [["error"] * 2] * len(rewards)
    assert all(math.isnan(value) for value in reward_spread(rollout).values())


def thinking_metrics(prefill: str, *token_ids: list[int], written: int = 0) -> list[float]:
    """Return what is logged of the thoughts in completions; the engine wrote some tokens behind the third of each."""
    rollout = make_rollout([[5]], [[[*ids] for ids in token_ids]], [[0.0] * len(token_ids)])
    for g, ids in enumerate(token_ids):
        sampled = tuple(not 3 <= k < 3 + written for k in range(len(ids)))
        text = byte_tokenizer().decode(ids)
        rollout.completions[0][g] = replace(rollout.completions[0][g], text=text, sampled=sampled)
        rollout.mask[g, : len(ids)] = torch.tensor(sampled)
    rollout.prompts = [replace(prompt, prefill=prefill) for prompt in rollout.prompts]
    found = rollout_metrics(rollout, byte_tokenizer(), 4.0)
    names = ("thought_tokens", "answer_tokens", "unclosed_thoughts", "closed_thoughts")
    return [found[f"rollout/{name}"] for name in names]


def test_thoughts_are_counted_in_sampled_tokens() -> None:
    read = byte_tokenizer()
    ends, closed = read("</think>").input_ids, read("\n</think>\n\n").input_ids
    abc, begun = read("abc").input_ids, read("日").input_ids[:1]
    no_text = [read("日").input_ids[1]] * 20  # bytes that are no character; as a text each would be three tokens
    marks = len(ends)
    assert thinking_metrics("<think>", [*abc, *ends, *abc], [*abc], [*ends, *abc], [*abc, *ends]) == [
        9 / 4,
        (3 * marks + 6) / 4,
        1 / 4,
        0.0,
    ]
    assert thinking_metrics("<think>\n", no_text) == [20.0, 0.0, 1.0, 0.0]
    assert thinking_metrics("<think>\n", [*abc, *no_text, *ends, *no_text]) == [23.0, marks + 20.0, 0.0, 0.0]
    assert thinking_metrics("<think>\n", [*begun, *ends]) == [1.0, marks, 0.0, 0.0]
    assert thinking_metrics("<think>\n", [*abc, *closed, *abc], [*abc], written=len(closed)) == [3.0, 1.5, 0.5, 0.5]


def test_an_engine_that_rests_during_training_gets_its_weights_before_the_next_rollout(
    tiny_model_folder: Path, tmp_path: Path
) -> None:

    class Resting(Copying):
        asleep = True

        def sync(self, policy: Policy) -> None:
            super().sync(policy)
            self.asleep = False

        def generate(self, *args: object, **options: object) -> list[list[Completion]]:  # type: ignore[override]
            assert not self.asleep
            return super().generate(*args, **options)  # type: ignore[arg-type]

        def sleep(self) -> bool:
            with torch.no_grad():
                for weight in self.copy.parameters():
                    weight.fill_(float("nan"))
            self.asleep = True
            return True

    class Watched(Recorder):
        def on_before_optimizer_step(self, *args: object) -> None:  # type: ignore[override]
            assert engine.asleep
            super().on_before_optimizer_step(*args)  # type: ignore[arg-type]

    engine = Resting()
    _, awake = fit(tiny_model_folder, tmp_path / "awake", steps=3, engine=Copying())
    _, slept = fit(tiny_model_folder, tmp_path / "asleep", steps=3, engine=engine, recorder=Watched())
    for ours, theirs in zip(slept.rollouts, awake.rollouts, strict=True):
        assert torch.equal(ours.token_ids, theirs.token_ids)
    assert len(slept.weights) == 3 and engine.asleep
