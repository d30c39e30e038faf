"""Episodes of several turns: what is sampled is trained on, what is observed is not, and turns do not wait."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import CHATML, END, ENDS, byte_tokenizer, make_prompt, plain_logprobs, random_ids
from tiny_engines import flat, hf_engine
from tiny_environments import BadTools, Broken, Dice, Echo, Faulty, Moody
from tiny_episodes import Recording, as_bytes, assert_exact, assert_own_beginnings, between, spans
from tiny_fit import T_MAX, assert_same, fit, naive_gradients

from lit_rlvr.datamodules.reading.between_turns import BetweenTurns
from lit_rlvr.datamodules.reading.chat import Chat
from lit_rlvr.engines.base import RolloutEngine
from lit_rlvr.engines.turns import Continuation, Row
from lit_rlvr.environments.base import Environment
from lit_rlvr.errors import UserError
from lit_rlvr.rollout.episodes import Episodes, with_opening
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Completion, Sample
from lit_rlvr.workers.process import Isolation


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


PROMPTS = [make_prompt(random_ids(n, n), f"p{n}") for n in (7, 2, 30, 1)]
SEEDS = [[100 * p + g for g in range(3)] for p in range(4)]
SAMPLING = Sampling(temperature=0.8, max_tokens=12, max_turns=4, max_observation_tokens=48)


@pytest.fixture
def episodes() -> Iterator[Any]:
    made: list[Episodes] = []

    def make(environment: Environment | None = None, **options: Any) -> Episodes:
        made.append(Episodes(environment or Echo(), between(), **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def generate(engine: RolloutEngine, turns: Episodes, sampling: Sampling = SAMPLING) -> list[list[Completion]]:
    return engine.generate(PROMPTS, sampling, SEEDS, turns=turns)


def test_the_sampled_tokens_are_the_engines_and_the_rest_is_the_templates(episodes: Any) -> None:
    decoder = hf_engine()
    turns = Recording(Echo(), between())
    groups = generate(decoder, turns)
    turns.close()
    assert len({len(c.turns) for group in groups for c in group}) > 1, "episodes of different lengths, decoded together"
    assert_exact(PROMPTS, groups, turns, decoder.policy.model, SAMPLING)


@pytest.mark.slow
def test_an_episode_does_not_depend_on_the_others(episodes: Any) -> None:
    together = generate(hf_engine(), episodes())
    alone = generate(hf_engine(max_sequences=3), episodes())
    assert flat(together) == flat(alone)
    assert [c.outcome for group in together for c in group] == [c.outcome for group in alone for c in group]


def test_one_turn_is_what_it_was(episodes: Any) -> None:
    """The same tokens as without an environment."""
    single = replace(SAMPLING, max_turns=1)
    plain = hf_engine().generate(PROMPTS, single, SEEDS)
    played = generate(hf_engine(), episodes(), single)
    assert flat(plain) == flat(played)
    assert [c.logprobs for group in plain for c in group] == [c.logprobs for group in played for c in group]


@torch.no_grad()
def test_every_turn_has_a_budget_of_thoughts(episodes: Any) -> None:
    """Thoughts that each prompt of a turn opens are closed after 4 tokens; the environment sees the whole turn."""
    turns, decoder = episodes(), hf_engine()
    turns.between = BetweenTurns(Chat(prefill="<think>\n"), byte_tokenizer(), ENDS, "user")
    sampling = replace(SAMPLING, max_tokens=24, max_thought_tokens=4, max_observation_tokens=64)
    prompts = [replace(prompt, prefill="<think>\n") for prompt in PROMPTS]
    groups = decoder.generate(prompts, sampling, SEEDS, turns=turns)
    mark = tuple(byte_tokenizer()("\n</think>\n\n").input_ids)
    later = 0
    for prompt, group in zip(prompts, groups, strict=True):
        for completion in group:
            parts = spans(completion)
            closed = [ids == mark for _, ids in parts]
            for (sampled, ids), is_behind in zip(parts, [False, *closed], strict=False):
                assert not sampled or len(ids) <= (24 - 4 - len(mark) if is_behind else 4)
            assert sum(closed) == sum("</think>" in turn.text for turn in completion.turns)
            later += sum(closed[2:])
            expected, _ = plain_logprobs(decoder.policy.model, prompt.token_ids, completion.token_ids, sampling)
            kept = torch.tensor(completion.sampled)
            torch.testing.assert_close(torch.tensor(completion.logprobs)[kept], expected[kept], atol=1e-4, rtol=0)
            assert completion.length == int(kept.sum()) < len(kept)
    assert later > 3


def test_finish_reasons_and_limits(episodes: Any) -> None:
    sampling = replace(SAMPLING, max_turns=3, max_episode_tokens=60)
    found = [c for group in generate(hf_engine(), episodes(), sampling) for c in group]
    for completion in found:
        assert len(completion.token_ids) <= 60 and len(completion.turns) <= 3
        last = spans(completion)[-1]
        assert last[0], "a row ends with what the model said"
        ended = completion.outcome is not None and completion.finish_reason == "stop"
        assert ended or completion.finish_reason == "length"
        assert completion.outcome is not None, "the environment judges every episode"
    assert {c.finish_reason for c in found} == {"stop", "length"}
    assert any(len(last[1]) == 12 and last[1][-1] not in ENDS for last in map(lambda c: spans(c)[-1], found)), "cut"


@pytest.mark.slow
def test_a_fault_is_that_completions_alone(episodes: Any) -> None:
    """Whatever happens in one completion's environment, the others' tokens stay the same."""
    limits = Isolation(cpu_seconds=1.0, wall_seconds=6.0)
    decoder = hf_engine()
    good = [c for group in generate(decoder, episodes(Faulty(limits=limits))) for c in group]
    assert all(c.outcome is not None and c.outcome.status == "ok" for c in good)
    victim = next(k for k, c in enumerate(good) if len(c.turns) > 1)
    word = good[victim].turns[1].text
    for fault, status in (("raise", "error"), ("hang", "timeout"), ("die", "error"), ("leak", "timeout")):
        found = [c for group in generate(decoder, episodes(Faulty(on={word: fault}, limits=limits))) for c in group]
        hit = [k for k, c in enumerate(good) if word in [turn.text for turn in c.turns[:3]]]
        assert victim in hit and len(hit) < len(good)
        for k, (before, after) in enumerate(zip(good, found, strict=True)):
            if k in hit:
                assert after.outcome is not None and after.outcome.status == status
                assert before.token_ids[: len(after.token_ids)] == after.token_ids, "up to there"
            else:
                assert before == after


# ---- observations as tokens ---------------------------------------------------------------------------------


def test_special_tokens_in_an_observation_are_text() -> None:
    seen = between("tool").tokens(BadTools().inject(), END, 400)
    text, ids = seen.text, seen.token_ids
    assert list(ids).count(END) == 1, "the template's own"
    assert "<\u200b|im_end|>" in text and byte_tokenizer().decode(ids).count("<|im_start|>") == 2
    assert between("tool").tokens("<|im_\ue000end|>", END, 400).token_ids.count(END) == 1, "the mark of a turn is lost"


def test_a_long_observation_is_cut_in_the_middle_and_says_so() -> None:
    cut = between("tool").tokens("".join(f"{k} " for k in range(200_000)), END, 100)
    text, ids = cut.text, cut.token_ids
    assert len(ids) <= 100
    assert (text.startswith("0 1 2 "), text.endswith("199999 "), "\n[... cut ...]\n" in text) == (True, True, True)
    assert between("tool").tokens("short", END, 100).text == "short"


def test_a_template_that_drops_earlier_thoughts_changes_no_token_between_turns() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHATML.replace(
        "{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] if not loop.last else m['content'] }}"
    )
    for role in ("user", "tool"):
        dropping = BetweenTurns(Chat(), tokenizer, ENDS, role)
        dropping.choose_role()
        assert dropping.tokens("x", END, 100) == between(role).tokens("x", END, 100)


ROLES = (
    "{% for m in messages %}{% if m['role'] in ROLES %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_template_without_tool_messages_shows_them_as_the_users() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = ROLES.replace("ROLES", "['system', 'user', 'assistant']")
    plain = BetweenTurns(Chat(), tokenizer, ENDS, "tool")
    plain.choose_role()
    seen = tokenizer.decode(plain.tokens("391", END, 100).token_ids)
    assert seen == "\n<|im_start|>user\n391<|im_end|>\n<|im_start|>assistant\n"
    tokenizer.chat_template = ROLES.replace("ROLES", "['assistant']")
    with pytest.raises(UserError, match="does not show messages that follow a turn of the model"):
        BetweenTurns(Chat(), tokenizer, ENDS, "tool").choose_role()


def test_without_a_template_turns_are_lines_of_text() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    plain = BetweenTurns(Chat(prefill="> "), tokenizer, (0,), "tool")
    plain.choose_role()
    assert tokenizer.decode(plain.tokens("42", 70, 100).token_ids) == "\n42\n> "


# ---- prompts that the environment begins ----------------------------------------------------------------------


def test_what_the_environment_says_first_is_in_the_prompt(episodes: Any) -> None:
    made: list[Sample] = []

    def again(sample: Sample) -> Any:
        made.append(sample)
        return replace(make_prompt(random_ids(9, 9)), sample=sample)

    turns = episodes(Dice())
    opened = turns.open(PROMPTS, SEEDS, again, 64)
    assert [sample.prompt for sample in made] == [f"{p.sample.prompt} (1)" for p in PROMPTS]
    assert [prompt.sample for prompt in opened] == [prompt.sample for prompt in PROMPTS], "rewards see the data's"
    groups = hf_engine().generate(opened, SAMPLING, SEEDS, turns=turns)
    assert all(len(c.turns) > 1 for group in groups for c in group if not c.truncated)
    with pytest.raises(
        UserError, match=r"p7: with what the environment says first.*9 tokens; raise.*max_prompt_tokens=8"
    ):
        turns.open(PROMPTS, SEEDS, again, 8)


def test_an_episode_that_cannot_begin_has_failed(episodes: Any) -> None:
    """Its tokens and its finish reason are those of its first turn."""
    turns = episodes(Broken())
    found = generate(hf_engine(), turns)
    assert turns.open(PROMPTS, SEEDS, lambda sample: PROMPTS[0], 64) == PROMPTS
    again = generate(hf_engine(), turns)
    plain = hf_engine().generate(PROMPTS, replace(SAMPLING, max_turns=1), SEEDS)
    assert flat(found) == flat(again) == flat(plain)
    for one, other in zip((c for g in again for c in g), (c for g in plain for c in g), strict=True):
        assert (one.outcome.status, "no way in" in one.outcome.detail) == ("error", True)
        assert one.finish_reason == other.finish_reason


def test_completions_of_a_prompt_may_begin_differently(episodes: Any) -> None:
    """Then their prompt ends before that, and what each of them is told is observed."""
    decoder, turns = hf_engine(), episodes(Moody())
    opened = turns.open(PROMPTS, SEEDS, as_bytes, 64)
    groups = decoder.generate(opened, SAMPLING, SEEDS, turns=turns)
    assert_own_beginnings(opened, groups, decoder.policy.model, SAMPLING)
    with pytest.raises(UserError, match="says different things to completions of a prompt, so a batch cannot be"):
        decoder.generate(opened, SAMPLING, SEEDS, turns=turns)


@pytest.mark.parametrize(
    ("prompt", "begun", "expected"),
    [
        ("Go", " on", "Go on"),
        (user("Go"), " on", user("Go on")),
        ("Go", [{"type": "text", "text": " on"}], user([{"type": "text", "text": t} for t in ("Go", " on")])),
        ("", user("Begin"), user("Begin")),
        ("Go", user("Begin"), [*user("Go"), *user("Begin")]),
        ("Go", None, "Go"),
    ],
)
def test_what_reset_returns_extends_the_prompt(prompt: Any, begun: Any, expected: Any) -> None:
    assert with_opening(Sample("a", prompt, ""), begun).prompt == expected


def test_reset_may_show_an_image() -> None:
    begun = [{"type": "image", "image": Image.new("RGB", (4, 2))}, {"type": "text", "text": "Look."}]
    opened = with_opening(Sample("a", "", ""), begun)
    assert opened.prompt == user([{"type": "image"}, {"type": "text", "text": "Look."}])
    assert opened.images.sizes == ((4, 2),) and opened.images[0].size == (4, 2)  # type: ignore[attr-defined]


# ---- training -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "aggregation",
    ["constant", *(pytest.param(name, marks=pytest.mark.slow) for name in ("token_mean", "sequence_mean"))],
)
def test_a_step_is_the_loss_over_single_episodes(tiny_model_folder: Path, tmp_path: Path, aggregation: Any) -> None:
    """Observations are in no normaliser, mean or gradient, however the batch is cut."""
    sampling = Sampling(max_tokens=9, max_turns=3, max_observation_tokens=40)
    for budget, shared in ((10**6, True), (150, True), (1, False)):
        _, seen = fit(
            tiny_model_folder,
            tmp_path,
            environment=Echo(),
            sampling=sampling,
            rewards=None,
            loss={"aggregation": aggregation},
            compute={"tokens_per_microbatch": budget, "shared_prefix": shared},
        )
        rollout = seen.rollouts[0]
        assert {len(c.turns) for group in rollout.completions for c in group} == {1, 2, 3}
        assert (
            float(rollout.mask.sum())
            == float(rollout.lengths.sum())
            < sum(len(c.token_ids) for group in rollout.completions for c in group)
        )
        loss, expected = naive_gradients(rollout, range(6), aggregation)
        share = T_MAX / 27 if aggregation == "constant" else 1.0  # T_max: three turns of nine tokens
        assert_same(seen.gradients[0], {name: share * gradient for name, gradient in expected.items()})
        assert seen.metrics[0]["train/loss"] == pytest.approx(share * loss, abs=1e-6)
        assert seen.metrics[0]["rollout/turns"] > 1


def test_every_turn_has_a_seed_of_its_own() -> None:
    row = Row(0, 0, PROMPTS[0], 17, 9)
    seeds = [row.seed]
    for _ in range(3):
        row.tokens = [70]
        row.next_turn(Continuation((80, 81), 9))
        seeds.append(row.seed)
    assert seeds[0] == 17 and len({*seeds}) == 4
    assert row.start.token_ids == [*PROMPTS[0].token_ids, *[70, 80, 81] * 3]
