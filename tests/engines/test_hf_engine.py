"""The Hugging Face engine: log-probabilities, seeds, draws and finish reasons."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import (
    ENDS,
    VOCAB,
    make_prompt,
    plain_logprobs,
    random_ids,
    start_engine,
    tiny_llama,
    tiny_qwen2,
)
from tiny_engines import check_thought_budget, flat, hf_engine
from torch import Tensor
from transformers import AutoModelForCausalLM, MambaConfig, PreTrainedModel, RwkvConfig

from lit_rlvr.engines.hf import HFEngine, draw_tokens
from lit_rlvr.engines.synced import probe_sampling
from lit_rlvr.engines.turns import check_room_for_answer
from lit_rlvr.errors import UserError
from lit_rlvr.policy.policy import Policy
from lit_rlvr.sampling import EvalSampling, Sampling
from lit_rlvr.types import Completion

SAMPLING = Sampling(temperature=0.8, max_tokens=12, banned_token_ids=(3, 50))
PROMPTS = [make_prompt(random_ids(n, n), f"p{n}") for n in (7, 2, 30, 1)]
SEEDS = [[100 * p + g for g in range(3)] for p in range(4)]


@torch.no_grad()
@pytest.mark.parametrize("build", [tiny_llama, tiny_qwen2], ids=["llama", "qwen2"])
@pytest.mark.parametrize("temperature", [0.8, 1.0, 1.7])
def test_logprobs_equal_teacher_forcing(
    build: Callable[[], PreTrainedModel], temperature: float, device: torch.device
) -> None:
    """Prompts of mixed lengths in one left-padded batch, several completions each, rows leaving early."""
    model = build().to(device)
    sampling = Sampling(temperature=temperature, max_tokens=12, banned_token_ids=(3, 50))
    groups = hf_engine(model).generate(PROMPTS, sampling, SEEDS)
    assert [len(group) for group in groups] == [3] * 4
    lengths = {len(c.token_ids) for group in groups for c in group}
    assert len(lengths) > 2, "completions of one length only would test too little"
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for completion in group:
            expected, _ = plain_logprobs(model, prompt.token_ids, completion.token_ids, sampling)
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected.cpu(), atol=1e-5, rtol=1e-5)


def test_finish_reasons_and_the_end_token_is_part_of_the_completion() -> None:
    found = [c for group in hf_engine().generate(PROMPTS, SAMPLING, SEEDS) for c in group]
    stopped = [c for c in found if c.finish_reason == "stop"]
    cut = [c for c in found if c.finish_reason == "length"]
    assert (bool(stopped), bool(cut), len(stopped) + len(cut)) == (True, True, len(found))
    assert all(c.token_ids[-1] in ENDS and not set(c.token_ids[:-1]) & set(ENDS) for c in stopped)
    assert all(len(c.token_ids) == SAMPLING.max_tokens and not set(c.token_ids) & set(ENDS) for c in cut)
    assert all(len(c.logprobs) == len(c.token_ids) for c in found)
    assert not {3, 50} & {token for c in found for token in c.token_ids}


def test_an_end_token_at_the_last_place_is_a_stop() -> None:
    one = hf_engine(ends=range(VOCAB)).generate(PROMPTS[:1], Sampling(max_tokens=1), [[1]])[0][0]
    assert one.finish_reason == "stop" and len(one.token_ids) == 1


def test_a_completion_depends_on_its_own_seed_alone() -> None:
    """Not on the order of prompts, on the rest of the batch, or on how many are decoded together."""
    groups = hf_engine().generate(PROMPTS, SAMPLING, SEEDS)
    assert flat(hf_engine().generate(PROMPTS[::-1], SAMPLING, SEEDS[::-1])[::-1]) == flat(groups)
    for p in range(4):
        alone = [hf_engine().generate([PROMPTS[p]], SAMPLING, [[seed]])[0][0] for seed in SEEDS[p]]
        assert flat([alone]) == flat([groups[p]])
    for max_sequences in (1, 3, 6, 7):
        assert flat(hf_engine(max_sequences=max_sequences).generate(PROMPTS, SAMPLING, SEEDS)) == flat(groups)
    some = hf_engine().generate(PROMPTS, SAMPLING, [SEEDS[0][:1], [], SEEDS[2], SEEDS[3][:2]])
    assert [len(group) for group in some] == [1, 0, 3, 2]
    assert flat(some) == flat([groups[0][:1], groups[2], groups[3][:2]])


def test_thoughts_end_with_their_budget() -> None:
    model = tiny_llama()
    check_thought_budget(hf_engine(model), model, PROMPTS, SAMPLING, SEEDS)
    budget = Sampling(max_tokens=64, max_thought_tokens=32)
    assert probe_sampling(budget).max_thought_tokens == budget.with_max_tokens(32).max_thought_tokens == 0
    assert budget.with_max_tokens(40).max_thought_tokens == 32


def test_thoughts_without_a_budget_do_not_end_at_it() -> None:
    ending = Sampling(max_tokens=64, max_thought_tokens=32, at_budget="end")
    assert ending.with_max_tokens(40).at_budget == "end"
    assert probe_sampling(ending).at_budget == ending.with_max_tokens(32).at_budget == "close"
    assert EvalSampling().filled_from(ending).at_budget == "end"
    assert EvalSampling(max_thought_tokens=0).filled_from(ending) == Sampling(max_tokens=64, temperature=0.0)
    with pytest.raises(UserError, match=r"sampling\.at_budget: end must be left out, because max_thought_tokens=0"):
        Sampling(at_budget="end")


def test_a_completion_ends_where_the_context_does() -> None:
    """With up to 12 tokens a completion, a context of 16 cuts that of 7 tokens after 9; the rest is unchanged."""
    engine = hf_engine()
    whole = engine.generate(PROMPTS, SAMPLING, SEEDS)
    engine.context = replace(engine.context, max_tokens=16)
    limits = [min(12, 16 - len(p.token_ids)) for p in PROMPTS if len(p.token_ids) < 16]
    short = [k for k, p in enumerate(PROMPTS) if len(p.token_ids) < 16]
    assert min(limits) < 12, "nothing would be cut"
    cut = engine.generate([PROMPTS[k] for k in short], SAMPLING, [SEEDS[k] for k in short])
    for k, limit, group in zip(short, limits, cut, strict=True):
        for before, after in zip(whole[k], group, strict=True):
            assert after.token_ids == before.token_ids[:limit]
            assert after.finish_reason == ("length" if len(before.token_ids) > limit else before.finish_reason)


def test_generation_leaves_the_generator_of_the_process_alone() -> None:
    engine = hf_engine()
    before = torch.get_rng_state()
    engine.generate(PROMPTS, SAMPLING, SEEDS)
    assert torch.equal(torch.get_rng_state(), before)


def test_groups_are_reported_when_they_are_complete() -> None:
    engine, reported = hf_engine(), {}
    texts: list[int] = []

    def done(p: int, group: list[Completion]) -> None:
        reported[p] = group
        texts.append(max(len(c.token_ids) for c in group))

    found = engine.generate(PROMPTS, SAMPLING, SEEDS, done)
    assert [reported[p] for p in range(len(PROMPTS))] == found
    assert texts == sorted(texts), "a group is reported at the step that ends its last completion"


def test_max_sequences_bounds_what_is_decoded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = hf_engine(max_sequences=6)
    sizes: list[int] = []
    decode = engine._decode_together

    def counted(starts: Sequence[Sequence[Any]], *more: Any) -> Any:
        sizes.append(sum(len(rows) for rows in starts))
        return decode(starts, *more)

    monkeypatch.setattr(engine, "_decode_together", counted)
    engine.generate(PROMPTS, SAMPLING, SEEDS)
    assert sizes == [6, 6]


def test_greedy_decoding_takes_the_likeliest_token() -> None:
    model = tiny_llama()
    greedy = Sampling(temperature=0.0, max_tokens=6, banned_token_ids=(3,))
    for prompt, group in zip(PROMPTS, hf_engine(model).generate(PROMPTS, greedy, [[1, 2]] * 4), strict=True):
        assert group[0].token_ids == group[1].token_ids, "seeds do not matter"
        plain = Sampling(banned_token_ids=(3,))
        logp, everything = plain_logprobs(model, prompt.token_ids, group[0].token_ids, plain)
        assert everything.argmax(-1).tolist() == list(group[0].token_ids)
        torch.testing.assert_close(torch.tensor(group[0].logprobs), logp.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [RwkvConfig(attention_hidden_size=64), MambaConfig()], ids=["rwkv", "mamba"])
def test_a_model_without_a_cache_is_refused(config: Any) -> None:
    config.vocab_size, config.hidden_size, config.num_hidden_layers = VOCAB, 64, 2
    model = AutoModelForCausalLM.from_config(config)
    policy = Policy(model, ENDS, shared_prefix=False)
    with pytest.raises(UserError, match=rf"engine: hf cannot decode {type(model).__name__}, which takes no cache"):
        start_engine(HFEngine(), policy)


# ---- one draw ---------------------------------------------------------------------------------------------


def uniforms(count: int) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def counts(logits: Tensor, sampling: Sampling, draws: int = 20000) -> tuple[Tensor, Tensor, Tensor]:
    """Draws from one row of logits: counts (V,), and tokens and their log-probabilities (draws,)."""
    tokens, logp = draw_tokens(logits.expand(draws, -1), sampling, uniforms(draws))
    return tokens.bincount(minlength=logits.shape[-1]), tokens, logp


def chi_square(observed: Tensor, expected: Tensor) -> float:
    return float(((observed - expected) ** 2 / expected).sum())


LOGITS = torch.tensor([1.0, -1.0, 0.5, 2.0, 0.0, 1.5])


def test_draws_follow_the_tempered_distribution_without_banned_tokens() -> None:
    sampling = Sampling(temperature=1.6, banned_token_ids=(2,))
    seen, tokens, logp = counts(LOGITS, sampling)
    kept = [0, 1, 3, 4, 5]
    expected = (LOGITS[kept] / 1.6).softmax(0)
    assert seen[2] == 0
    assert chi_square(seen[kept], expected * 20000) < 18.5  # 4 degrees of freedom: exceeded once in a thousand
    probabilities = torch.zeros(6).index_put((torch.tensor(kept),), expected)
    torch.testing.assert_close(logp.exp(), probabilities[tokens])
    assert chi_square(seen[kept], LOGITS[kept].softmax(0) * 20000) > 100, "the same test tells temperature 1 from 1.6"


def test_top_k_keeps_the_k_likeliest_and_renormalises() -> None:
    seen, tokens, logp = counts(LOGITS, Sampling(top_k=3))
    assert (seen > 0).tolist() == [True, False, False, True, False, True]
    expected = LOGITS[[0, 3, 5]].softmax(0)
    assert chi_square(seen[[0, 3, 5]], expected * 20000) < 13.8  # 2 degrees of freedom
    torch.testing.assert_close(logp[tokens == 3].exp().unique(), expected[1:2])
    assert (counts(LOGITS, Sampling(top_k=100))[0] > 0).all()


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    support = {p: (counts(logits, Sampling(top_p=p))[0] > 0).tolist() for p in (0.35, 0.45, 0.75, 0.95, 1.0)}
    assert support == {
        0.35: [False, True, False, False],
        0.45: [False, True, False, True],
        0.75: [False, True, True, True],
        0.95: [True, True, True, True],
        1.0: [True, True, True, True],
    }
    seen, tokens, logp = counts(logits, Sampling(top_p=0.45))
    assert chi_square(seen[[1, 3]], torch.tensor([4 / 7, 3 / 7]) * 20000) < 10.8  # 1 degree of freedom
    torch.testing.assert_close(logp[tokens == 1].exp().unique(), torch.tensor([4 / 7]))


def test_the_edges_of_the_unit_interval_never_draw_an_impossible_token() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 1.0, 0.0, -torch.inf]]).repeat(2, 1)
    edges = torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)
    tokens, logp = draw_tokens(logits, Sampling(banned_token_ids=(0,)), edges)
    assert tokens.tolist() == [2, 3] and bool(logp.isfinite().all())
    assert draw_tokens(logits, Sampling(), edges)[0].tolist() == [0, 3]


def test_an_engine_decodes_at_least_one_sequence() -> None:
    with pytest.raises(UserError, match=r"rollout.engine.max_sequences: 0 must lie in \[1, inf\)"):
        HFEngine(max_sequences=0)


def test_a_budget_of_thoughts_leaves_room_for_their_mark_and_an_answer(tiny_tokenizer: Any) -> None:
    mark = len(tiny_tokenizer("\n</think>\n\n", add_special_tokens=False).input_ids)
    option = "rollout.sampling"
    for opening in ("", "<think>\n"):
        fits = Sampling(max_tokens=64, max_thought_tokens=64 - mark - 1)
        check_room_for_answer(fits, tiny_tokenizer, opening, option)
        full = replace(fits, max_thought_tokens=64 - mark)
        line = rf"rollout\.sampling\.max_thought_tokens: {64 - mark} of max_tokens=64 .*; give at most {64 - mark - 1}"
        with pytest.raises(UserError, match=line):
            check_room_for_answer(full, tiny_tokenizer, opening, option)
        check_room_for_answer(replace(full, at_budget="end"), tiny_tokenizer, opening, option)
    check_room_for_answer(Sampling(max_tokens=2), tiny_tokenizer, "", option)
