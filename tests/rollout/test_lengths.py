"""Prompts and completions that exceed the model's context are refused before its weights load."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tiny import byte_tokenizer, make_prompt
from tiny_engines import Copying
from tiny_runs import FIT, tiny_config, write_config
from transformers import Gemma3TextConfig, LlamaConfig, MambaConfig, Qwen2_5_VLConfig, Qwen3Config

from lit_rlvr.engines.base import EngineContext
from lit_rlvr.engines.turns import OnGroupDone
from lit_rlvr.errors import UserError
from lit_rlvr.rollout.preflight.lengths import LengthRequirement, check_lengths, context_length
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Completion, Prompt

CLI = Callable[..., Any]
LONG = ("--data.init_args.chat.system_prompt", "x" * 1100, "--data.init_args.reading.max_prompt_tokens", 4000)
SCALED = {"rope_theta": 1e4, "factor": 4.0}
EXTENDED = SCALED | {"original_max_position_embeddings": 128}
EACH = {"full_attention": {"rope_type": "linear"} | SCALED, "sliding_attention": {"rope_type": "default"} | SCALED}


@pytest.mark.parametrize(
    ("config", "length"),
    [
        (LlamaConfig(max_position_embeddings=512), 512),
        (LlamaConfig(max_position_embeddings=512, rope_parameters={"rope_type": "linear"} | SCALED), 2048),
        (LlamaConfig(max_position_embeddings=512, rope_parameters={"rope_type": "dynamic"} | SCALED), 2048),
        (LlamaConfig(max_position_embeddings=512, rope_parameters={"rope_type": "yarn"} | EXTENDED), 512),
        (Qwen3Config(max_position_embeddings=512, rope_parameters={"rope_type": "default", "rope_theta": 1e4}), 512),
        (Gemma3TextConfig(max_position_embeddings=512, rope_parameters=EACH), 512),
        (Qwen2_5_VLConfig(text_config={"max_position_embeddings": 512}), 512),
        (MambaConfig(), None),
    ],
)
def test_the_context_that_a_config_says(config: Any, length: int | None) -> None:
    assert context_length(config) == length


def test_the_longest_prompt_counts_and_what_to_lower_is_said(tiny_model_folder: Path) -> None:
    """The model's context is 1024 tokens."""
    prompts = [make_prompt(range(n), f"row-{n}") for n in (3, 1000, 7)]
    fits, over = (LengthRequirement("math train", prompts, n, "rollout.sampling.max_tokens") for n in (24, 25))
    assert fits.max_sequence_tokens == 1024
    check_lengths(str(tiny_model_folder), [fits])
    with pytest.raises(UserError) as error:
        check_lengths(str(tiny_model_folder), [fits, over])
    assert str(error.value) == (
        "math train: prompt row-1000 has 1000 tokens, which with rollout.sampling.max_tokens=25 is more than the "
        "model's context of 1024 tokens; lower data.init_args.reading.max_prompt_tokens to 999 or "
        "rollout.sampling.max_tokens to 24, or raise it by model.config_overrides"
    )
    grown = replace(fits, min_prompt_tokens=1001)
    with pytest.raises(
        UserError, match=r"adds to prompts, up to data.init_args.reading.max_prompt_tokens=1001 tokens.* to 1000 or"
    ):
        check_lengths(str(tiny_model_folder), [grown])
    with pytest.raises(
        UserError, match=r"lower data.init_args.reading.max_prompt_tokens and rollout.sampling.max_tokens, or raise it"
    ):
        check_lengths(
            str(tiny_model_folder), [LengthRequirement("math train", [make_prompt(range(1024))], 1024, over.option)]
        )


@pytest.mark.first_case_fast
@pytest.mark.parametrize(
    ("command", "said"),
    [
        ((*FIT, "--rollout.sampling.max_tokens", 1000000), ("arithmetic train: prompt", "; lower rollout.sampling.")),
        (
            (*FIT, "--rollout.evaluation.sampling.max_tokens", 1024),
            ("arithmetic validation: ", "; lower rollout.evaluation.sampling."),
        ),
        ((*FIT, *LONG), ("arithmetic train: prompt", "; lower data.init_args.reading.max_prompt_tokens to 1016")),
        (
            ("validate", *FIT[1:], *LONG),
            ("arithmetic validation: ", "; lower data.init_args.reading.max_prompt_tokens to 1016"),
        ),
        (("filter", *FIT[1:], *LONG, "--out", "kept.jsonl"), ("arithmetic train: ", "max_prompt_tokens to 1023")),
    ],
)
def test_what_does_not_fit_is_one_line_before_weights_load(
    run_folder: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch, command: Any, said: tuple[str, ...]
) -> None:
    for user in ("training.models", "evaluation.sampler"):
        monkeypatch.setattr(f"lit_rlvr.{user}.load_policy", None)
    result = lit_rlvr(*command, status=2)
    for part in (*said, "the model's context of 1024 tokens"):
        assert part in result.err, result.err


class Sized(Copying):
    """Accepts only sequences that fit its size, as vLLM does."""

    sizes: ClassVar[list[int]] = []

    def start(self, context: EngineContext) -> None:
        super().start(context)
        self.sizes.append(context.max_tokens)

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        done: OnGroupDone | None = None,
    ) -> list[list[Completion]]:
        assert max(len(prompt.token_ids) for prompt in prompts) + sampling.max_tokens <= self.sizes[-1]
        return super().generate(prompts, sampling, seeds, done)


def test_an_engine_is_sized_by_the_longest_real_prompt(
    run_folder: Path, lit_rlvr: CLI, tiny_model_folder: Path
) -> None:
    """Whatever `max_prompt_tokens` allows; a probe on a long validation prompt fits too."""
    questions = {"train": "one two", "validation": "one two three " * 20 + "four"}
    for name, text in questions.items():
        rows = [{"id": i, "prompt": text, "answer": "1"} for i in range(4)]
        (run_folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tiny_config(tiny_model_folder)
    files = {name: f"{name}.jsonl" for name in questions}
    options = {"columns": {"prompt": "prompt"}, "prompts_per_rollout": 2, "reading": {"max_prompt_tokens": 4000}}
    config["data"] = {"class_path": "TextMath", "init_args": files | options}
    config["rollout"] |= {"engine": f"{__name__}.Sized", "evaluation": {"sampling": {"max_tokens": 2}}}
    config["rollout"]["safeguards"] = {"probe_every": 1}
    config["trainer"]["max_steps"] = 2
    write_config(run_folder / "tiny.yaml", config)
    lit_rlvr(*FIT, status=0)
    longest = [{"role": "user", "content": questions["validation"]}]
    seen = byte_tokenizer().apply_chat_template(longest, add_generation_prompt=True, return_dict=False)
    assert Sized.sizes == [len(seen) + 2]
