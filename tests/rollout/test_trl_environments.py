"""Environments as TRL documents them, in one iteration of training: the tokens are TRL's, and the rewards theirs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_chat_templates import TRL, suffix
from tiny import byte_tokenizer, save_model, tiny_llama
from tiny_engines import Scripted
from tiny_fit import fit
from transformers import AutoConfig

from lit_rlvr.datamodules import PromptDataModule
from lit_rlvr.datamodules.reading.chat import Chat
from lit_rlvr.datamodules.reading.options import ReadingOptions
from lit_rlvr.environments import as_environment
from lit_rlvr.environments.tools import WrappedTools
from lit_rlvr.errors import UserError
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Rollout, Sample, Turn

__all__ = ["suffix"]
THINKING = {"enable_thinking": False}


@pytest.fixture(scope="module")
def qwen3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with Qwen3's chat template and a long context."""
    folder = save_model(tiny_llama(), tmp_path_factory.mktemp("models") / "tiny-qwen3")
    config = AutoConfig.from_pretrained(folder)
    config.max_position_embeddings = 8192
    config.save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (TRL / "chat_templates" / "qwen3.jinja").read_text()
    tokenizer.save_pretrained(folder)
    return folder


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def one_iteration(
    folder: Path, root: Path, environment: Any, rewards: list[str] | None, rows: list[dict[str, Any]], script: list[str]
) -> Rollout:
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = PromptDataModule(
        str(root / "rows.jsonl"),
        prompts_per_rollout=len(rows),
        reading=ReadingOptions(max_prompt_tokens=4000),
        chat=Chat(chat_template_kwargs=THINKING),
    )
    sampling = Sampling(max_tokens=200, max_turns=4, max_observation_tokens=200)
    _, seen = fit(
        folder,
        root,
        environment=environment,
        rewards=rewards,
        sampling=sampling,
        data=data,
        engine=Scripted(script),
        group_size=3,
        lr=1e-4,
    )
    return seen.rollouts[0]


ECHO = [call("echo", message="Hello!"), "Done."]
WORDLE = [call("guess", guess="crate"), call("guess", guess="crane") + call("guess", guess="crane"), "Done."]
SEVERAL = [call("guess", guess="crane"), call("move", direction="left"), "Done."]


@pytest.mark.parametrize(
    ("environment", "rewards", "script", "row", "first", "answers", "reward"),
    [
        ("trl_environments.EchoTool", ["reward_func"], ECHO, {}, "", [["Hello!"]], 0.6),
        (
            "trl_environments.Wordle",
            ["reward_func"],
            WORDLE,
            {},
            "Guess the word.\n",
            [["crate\nGGGXG\n"], ["crane\nGGGGG\n", "{'error': 'Game over.'}"]],
            1.0,
        ),
        (
            "trl_environments.Several",
            ["wordle_reward", "catch_reward"],
            SEVERAL,
            {"env": "wordle"},
            "Guess the word.\n",
            [["Guess the word.\ncrane\nGGGGG\n"], ["{'error': 'move is only available in Catch'}"]],
            1.0,
        ),
    ],
)
def test_a_documented_class_trains_unchanged_on_trls_tokens(
    qwen3_folder: Path,
    tmp_path: Path,
    suffix: Callable[..., list[int]],
    environment: str,
    rewards: list[str],
    script: list[str],
    row: dict[str, Any],
    first: str,
    answers: list[list[str]],
    reward: float,
) -> None:
    rows = [{"prompt": user(f"Game {k}. ")} | row for k in range(2)]
    paths = [f"trl_environments.{name}" for name in rewards]
    rollout = one_iteration(qwen3_folder, tmp_path, environment, paths, rows, script)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (TRL / "chat_templates" / "qwen3_training.jinja").read_text()
    trainer = SimpleNamespace(
        processing_class=tokenizer,
        _tokenizer=tokenizer,
        _is_vlm=False,
        chat_template=None,
        chat_template_kwargs=THINKING,
    )
    made = as_environment(environment)
    assert made is not None
    for prompt in rollout.prompts:
        asked = user(prompt.sample.prompt[0]["content"] + first)  # type: ignore[index]
        assert prompt.token_ids == tokenizer.apply_chat_template(
            asked, tools=list(made.tools), add_generation_prompt=True, return_dict=False, **THINKING
        )
    names = [text.split('"')[3] for text in script[:-1]]
    expected: list[int] = []
    for text, name, results in zip(script, [*names, ""], [*answers, []], strict=True):
        expected += [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        messages = [{"role": "tool", "name": name, "content": result} for result in results]
        expected += suffix(trainer, messages) if messages else []
    for completion in (completion for group in rollout.completions for completion in group):
        assert list(completion.token_ids) == expected
    assert rollout.rewards.flatten().tolist() == pytest.approx([reward] * 6) and rollout.mask.any(1).all()


def test_each_game_is_judged_by_its_own_reward_and_may_begin_at_random(qwen3_folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": user("Play. "), "env": "catch"}, {"prompt": user("Play! "), "env": "wordle"}]
    rewards = ["trl_environments.wordle_reward", "trl_environments.catch_reward"]
    script = [call("move", direction="left"), "Done."]
    rollout = one_iteration(qwen3_folder, tmp_path, "trl_environments.Several", rewards, rows, script)
    for p, prompt in enumerate(rollout.prompts):
        for g, completion in enumerate(rollout.completions[p]):
            told = byte_tokenizer().decode([*prompt.token_ids, *completion.token_ids[: completion.sampled.index(True)]])
            given = {name: part[p, g].item() for name, part in rollout.parts.items()}
            if prompt.sample.row["env"] == "catch":
                assert given["catch_reward"] == float("Ball: column 1\nPaddle: column 2<|im_end|>" in told)
                assert given["wordle_reward"] != given["wordle_reward"], "NaN: it does not judge this game"
            else:
                assert given["wordle_reward"] == 0.0 and "Guess the word." in told


@pytest.mark.parametrize(
    "environment",
    ["trl_environments.make_target", {"count": "trl_environments.Target", "quiet": "trl_environments.Quiet"}],
)
def test_an_environment_may_bring_the_prompt_and_the_reward(
    qwen3_folder: Path, tmp_path: Path, environment: Any
) -> None:
    """All completions of a row get the same task, and a reward of None masks."""
    rows = [{"environment": "count"}, {"environment": "quiet", "prompt": user("")}]
    rollout = one_iteration(qwen3_folder, tmp_path, environment, None, rows, [call("increment", step=3), "Done."])
    for p, prompt in enumerate(rollout.prompts):
        text, is_masked = byte_tokenizer().decode(prompt.token_ids), not rollout.mask[3 * p : 3 * p + 3].any()
        assert "Increment the counter by " in text
        assert is_masked == (prompt.sample.row["environment"] == "quiet" and isinstance(environment, dict))
        if not is_masked:
            assert rollout.rewards[p].tolist() == [float("counter by 3." in text)] * 3


class Single:
    """Without tools: the first turn ends the episode."""

    def reset(self, **kwargs: Any) -> str:
        return "Say something."

    def get_reward(self) -> float:
        return 0.5


def test_environments_without_tools_and_by_name() -> None:
    single = as_environment(Single)
    assert isinstance(single, WrappedTools)
    assert not single.needs_turns
    assert not single.tools
    assert single.has_reward
    both = as_environment({"one": Single, "count": "trl_environments.Target"})
    assert (both.needs_turns, both.title) == (True, "Single or Target")
    data = PromptDataModule()
    data.use_environment(both)
    assert data.sample({}, 0, "f:1").prompt == ""
    with pytest.raises(UserError, match=r"a: its data set is 'two', but rollout\.environment has one, count"):
        both.tools_of(Sample("a", "", "", dataset="two"))


def test_a_set_of_a_mixture_may_be_a_single_turn() -> None:
    made = as_environment({"count": "trl_environments.Target", "facts": "SingleTurn"})
    assert made is not None and made.role == "tool"
    count, fact = (Sample("a", "", "", dataset=name) for name in ("count", "facts"))
    assert made.tools_of(count) and not made.tools_of(fact)
    made.reset(fact)
    assert made.step(Turn("42")).done and made.reward() is None
