"""`lit-rlvr filter`: keeps the prompts that a model sometimes answers correctly, so that groups are mixed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lit_rlvr.common.arguments import MAX_SIZE, check_within
from lit_rlvr.common.files import check_new, write_atomically
from lit_rlvr.common.log import log
from lit_rlvr.common.terminal import progress_bar
from lit_rlvr.datamodules.reading.readers import as_row
from lit_rlvr.environments.base import environment_fingerprint
from lit_rlvr.errors import UserError
from lit_rlvr.evaluation.records import RecordRow, Records
from lit_rlvr.evaluation.sampler import Sampler, load_prompts, start_sampler
from lit_rlvr.policy.sources import resolve_model
from lit_rlvr.rollout.episodes import added_images, begins
from lit_rlvr.rollout.preflight.lengths import LengthRequirement
from lit_rlvr.types import Prompt

if TYPE_CHECKING:
    from lit_rlvr.algorithms import RLVRModule
    from lit_rlvr.datamodules import PromptDataModule
    from lit_rlvr.datamodules.reading.split import Split
    from lit_rlvr.rollout import RolloutCallback


def filter_prompts(
    module: RLVRModule,
    data: PromptDataModule,
    rollout: RolloutCallback,
    dtype: torch.dtype,
    out: Path,
    samples: int,
    lowest: float,
    highest: float,
    split: Split,
    completions: int = 0,
) -> Path:
    """Sample every prompt as in training, and write the rows with a pass rate in [lowest, highest].

    The pass rate is the share of right completions. The completions go to a folder next to `out`; an interrupted run
    continues from them.

    Args:
        module: the algorithm with the model to sample from.
        data: the prompts.
        rollout: the engine, the sampling settings and the rewards.
        dtype: the engine's data type.
        out: new JSONL file for the rows of the data, each with `pass_rate` and `samples`.
        samples: completions per prompt.
        lowest: the lowest share of right completions.
        highest: the highest share of right completions.
        split: the set to filter.
        completions: write a row for each of at most this many right completions; 0 = each row once.

    Raises:
        UserError: the options contradict each other, there are no prompts, or none is left.
    """
    if not 0 <= lowest <= highest <= 1:
        raise UserError(f"--lowest {lowest} --highest {highest}: give 0 <= lowest <= highest <= 1")
    check_within(f"[1, {MAX_SIZE}]", "filter", samples=samples)
    check_within(f"[0, {MAX_SIZE}]", "filter", completions=completions)
    check_new(out, "--out", ".jsonl")
    if data.parts:
        raise UserError("data: rows of a Mixture do not fit into one file; filter each of its sets on its own")
    prompts = prompts_to_sample(module, data, rollout, split)
    sampling = rollout.sampling
    settings = {
        "model": module.model_folder,
        "samples": samples,
        "sampling": vars(sampling),
        "data": data.name,
        "rewards": [reward.name for reward in rollout.rewards],
        "environment": environment_fingerprint(rollout.environment),
    }
    records = Records(out.with_suffix(".samples"), settings)
    _sample_missing(records, module, data, rollout, dtype, prompts, samples, split)
    groups = records.groups(split, prompts)
    rates = [pass_rate(group) for group in groups]
    kept = []
    for p, rate, group in zip(prompts, rates, groups, strict=True):
        if rate is not None and lowest <= rate <= highest and (not completions or right_completions(group, 1)):
            kept.append((p, rate, group))
    log.info("%s", rate_histogram(rates, len(kept), lowest, highest))
    if not kept:
        raise _nothing_left(len(prompts), lowest, highest, completions)
    rows = _rows_of(kept, data, out.parent, samples, completions)
    write_atomically(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return out


def _sample_missing(
    records: Records,
    module: RLVRModule,
    data: PromptDataModule,
    rollout: RolloutCallback,
    dtype: torch.dtype,
    prompts: list[Prompt],
    samples: int,
    split: Split,
) -> None:
    """Sample and judge the completions that the records lack; the arguments are as for `filter_prompts`."""
    missing = records.missing(split, prompts)
    if not missing:
        return
    sampling = rollout.sampling
    sampler = open_sampler(module, data, rollout, dtype, missing, sampling.max_tokens, split)
    with progress_bar(f"{split} prompts", len(missing), done=len(prompts) - len(missing)) as one_more:

        def judged(*group: Any) -> None:
            records.add(split, *group)
            one_more()

        sampler.run(missing, sampling, samples, rollout.rewards, split, data, judged, rollout.environment)
    sampler.close()


def _nothing_left(prompts: int, lowest: float, highest: float, completions: int) -> UserError:
    """Return the error for a filter that keeps none of `prompts` prompts."""
    if completions:
        return UserError(
            f"--completions {completions}: no prompt between --lowest and --highest has a right completion that "
            "ended; raise --samples, or widen the range"
        )
    return UserError(f"--lowest {lowest} --highest {highest}: no prompt of {prompts} is left; widen the range")


def _rows_of(
    kept: list[tuple[Prompt, float, list[RecordRow]]],
    data: PromptDataModule,
    folder: Path,
    samples: int,
    completions: int,
) -> list[dict[str, Any]]:
    """Return the rows to write: one for each prompt, or for each of its first right completions.

    Args:
        kept: prompts with their pass rates and completions.
        data: the prompts' data.
        folder: paths of images are relative to it.
        samples: completions per prompt.
        completions: most rows of a prompt; 0 = its own row once.
    """
    from_file = data.locations["train"] is not None
    id_column = (data.columns or {}).get("id", "id")
    rows = []
    for p, rate, group in kept:
        row = as_row(p.sample, from_file, folder) | {"pass_rate": rate, "samples": samples}
        if not completions:
            rows.append(row)
            continue
        for k, text in enumerate(right_completions(group, completions)):
            rows.append(row | {"completion": text, id_column: f"{p.sample.id}#{k}"})
    return rows


def prompts_to_sample(
    module: RLVRModule, data: PromptDataModule, rollout: RolloutCallback, split: Split
) -> list[Prompt]:
    """Read the data of a config, check them against its rewards, and return the prompts of a set.

    Args:
        module: the algorithm.
        data: the data of the config.
        rollout: the rewards and the environment.
        split: the set.

    Raises:
        UserError: there are none, or a reward refuses the data, or there is no reward.
    """
    if not rollout.has_reward:
        raise UserError("rollout.rewards is empty, so nothing tells which completions are right; give a reward")
    source = module.model_source
    if source.adapter == "continue":  # nothing is trained here
        source.start_from(resolve_model(source.model, source.config_overrides, "merge"))
    return load_prompts(module, data, rollout.rewards, rollout.environment, split, "--split")


def open_sampler(
    module: RLVRModule,
    data: PromptDataModule,
    rollout: RolloutCallback,
    dtype: torch.dtype,
    prompts: Sequence[Prompt],
    max_tokens: int,
    split: Split = "train",
) -> Sampler:
    """Start the engine of a config on its model, for completions of at most `max_tokens` of these prompts.

    Args:
        module: the algorithm with the model to sample from.
        data: the DataModule of the prompts.
        rollout: the engine and the sampling settings.
        dtype: the engine's data type.
        prompts: the prompts to sample.
        max_tokens: the most tokens of a completion.
        split: the set of the prompts, for messages.
    """
    if begins(rollout.environment):
        grown = data.reading.max_prompt_tokens
    else:
        grown = 0
    longest = replace(rollout.sampling, max_tokens=max_tokens).max_completion_tokens
    lengths = LengthRequirement(
        f"{data.name} {split}",
        prompts,
        longest,
        "rollout.sampling.max_tokens",
        min_prompt_tokens=grown,
        added_images=added_images(rollout.environment, rollout.sampling.max_turns),
    )
    return start_sampler(module.model_folder, rollout.synced_engine, module.tokenizer, dtype, [lengths], data.prepare)


def pass_rate(group: list[RecordRow]) -> float | None:
    """Return the share of right completions among the judged ones; None if the rewards judged none."""
    judged = []
    for row in group:
        if row["correct"] is not None:
            judged.append(row["correct"])
    if judged:
        return sum(judged) / len(judged)
    return None


def right_completions(group: list[RecordRow], limit: int) -> list[Any]:
    """Return the texts of right completions that ended, the highest rewards first, each once.

    The text of an episode is a list of its turns.

    Args:
        group: the recorded completions of one prompt.
        limit: how many at most.
    """
    ended = (row for row in group if row["correct"] and row["finish_reason"] == "stop")
    texts: list[str | list[str]] = []
    for row in sorted(ended, key=lambda row: -row["reward"]):
        text = row["completion"]
        if row.get("turns"):
            text = []
            for turn in row["turns"]:
                text.append(turn["text"])
        if text not in texts:
            texts.append(text)
    return texts[:limit]


def rate_histogram(rates: list[float | None], kept: int, lowest: float, highest: float) -> str:
    """Return a histogram of the prompts' pass rates in tenths, as text.

    Args:
        rates: pass rate of each prompt; None if no completion of it was judged.
        kept: number of prompts that are kept.
        lowest: the lowest pass rate that is kept.
        highest: the highest pass rate that is kept.
    """
    tenth_of_each = []
    for rate in rates:
        if rate is not None:
            tenth_of_each.append(min(int(rate * 10), 9))
    tenths = Counter(tenth_of_each)
    never = rates.count(0.0)
    always = rates.count(1.0)
    shares = []
    for k in range(10):
        if tenths[k]:
            shares.append(f"{k / 10:.1f}-{(k + 1) / 10:.1f}: {tenths[k]}")
    bars = ", ".join(shares)
    return (
        f"Pass rates of {len(rates)} prompts: {bars} (never right: {never}, always right: {always}); "
        f"kept {kept} between {lowest:g} and {highest:g}"
    )
