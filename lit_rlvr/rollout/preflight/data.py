"""Rows against rewards, environment and model: references, completions to learn from, lengths."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lit_rlvr.common.log import log
from lit_rlvr.datamodules.reading.rows import abbreviate
from lit_rlvr.engines.turns import check_room_for_answer
from lit_rlvr.errors import UserError, check_all, refuse_all
from lit_rlvr.rewards.base import check_prefills, report_rewards_in_process
from lit_rlvr.rewards.gold_answers import (
    check_references,
    warn_of_gold_answers,
    warn_of_other_lengths,
)
from lit_rlvr.rollout.demonstrations import DemonstrationSets
from lit_rlvr.rollout.preflight.lengths import LongAnswerSearch, check_lengths, length_requirements
from lit_rlvr.rollout.preflight.rewards import check_selection, check_unrewarded, check_whole_rollouts
from lit_rlvr.rollout.preflight.teachers import check_teachers
from lit_rlvr.rollout.settings import RolloutSettings
from lit_rlvr.training.module import RLVRModule
from lit_rlvr.types import Sample

if TYPE_CHECKING:
    from lit_rlvr.datamodules import PromptDataModule


def inspect_data(
    rollout: RolloutSettings,
    module: RLVRModule,
    data: PromptDataModule,
    demonstrations: DemonstrationSets,
    long_answers: LongAnswerSearch,
) -> None:
    """Refuse data that do not fit the settings or the model's context; read the completions to learn from.

    Args:
        rollout: the settings of rollouts.
        module: the algorithm.
        data: the data, whose sets are loaded.
        demonstrations: reads the completions to learn from, if the data have some.
        long_answers: finds gold answers that are too long.

    Raises:
        UserError: names the settings.
    """
    names = [other.name for other in data.validated]
    samples = rollout.evaluation.samples
    if isinstance(samples, dict):
        unknown = [name for name in samples if name not in names]
    else:
        unknown = []
    check_all(
        lambda: refuse_all(
            f"rollout.evaluation.samples: there is no validation set {name!r}; the sets are {', '.join(names)}"
            for name in unknown
        ),
        lambda: check_selection(rollout, module, data),
        lambda: check_unrewarded(rollout, module, data),
        lambda: check_prefills(rollout.rewards, data.loaded_prompts),
        lambda: check_whole_rollouts(rollout, module, data),
        lambda: check_references(rollout.rewards, scored_samples(rollout, data)),
        lambda: read_demonstrations(rollout, module, data, demonstrations),
        lambda: check_lengths(module.model_folder, length_requirements(rollout, data)),
        lambda: check_teachers(rollout, module, data),
        lambda: check_thoughts(rollout, data),
    )
    hopeless = []
    for answers in long_answers.find(rollout, data):
        if answers.is_hopeless:
            hopeless.append(str(answers))
    refuse_all(hopeless)


def check_thoughts(rollout: RolloutSettings, data: PromptDataModule) -> None:
    """Refuse budgets of thoughts, in training and in validation, that leave no room for an answer."""
    if data.demonstrates:
        return
    settings = {"rollout.sampling": rollout.sampling, "rollout.evaluation.sampling": rollout.eval_sampling}
    for option, sampling in settings.items():
        if sampling.max_thought_tokens:
            check_room_for_answer(sampling, data.tokenizer, data.prompt_encoder.opening, option)


def scored_samples(rollout: RolloutSettings, data: PromptDataModule) -> list[Sample]:
    """Return the samples whose completions rewards judge."""
    if not data.demonstrates:
        return [prompt.sample for prompt in data.loaded_prompts]
    samples = []
    for other in data.validated:
        for split, prompts in other.prompts.items():
            if split != "train" and rollout.samples_of(other.name):
                for prompt in prompts:
                    samples.append(prompt.sample)
    return samples


def read_demonstrations(
    rollout: RolloutSettings, module: RLVRModule, data: PromptDataModule, demonstrations: DemonstrationSets
) -> None:
    """Read the completions to learn from of an algorithm that has such, unless the settings do not allow it."""
    check_demonstrations(rollout, module, data)
    if module.demonstrates:
        demonstrations.read(rollout, module, data)


def check_demonstrations(rollout: RolloutSettings, module: RLVRModule, data: PromptDataModule) -> None:
    """Refuse settings that an algorithm which learns from completions in the data does not have, or alone has."""
    if not module.demonstrates:
        unmeasured = []
        for other in data.validated:
            if not rollout.samples_of(other.name):
                unmeasured.append(other.name)
        problems = []
        for name in unmeasured:
            problems.append(
                f"rollout.evaluation.samples: 0 for {name} measures the loss alone, which only SFT has; give 1 or more"
            )
        refuse_all(problems)
        return
    if rollout.staleness or rollout.replay.rollouts_from or rollout.replay.record or rollout.replay_routes:
        raise UserError(
            "rollout: SFT samples nothing to train on, so staleness, replay.rollouts_from, replay.record and "
            "replay_routes do not apply; leave them out"
        )
    if data.success is not None:
        raise UserError("data.curriculum: SFT samples no completions to learn a prompt's success from; leave it out")
    env = rollout.environment
    unanswered = []
    for sample in scored_samples(rollout, data):
        if not sample.answer:
            unanswered.append(sample.source or sample.id)
    if unanswered and rollout.has_reward and not (env is not None and (env.has_reward or env.reward_functions)):
        raise UserError(
            f"rollout.evaluation.samples: rewards judge validation, and {len(unanswered)} of its rows have no "
            f"answer ({abbreviate(unanswered)}); name its column (data.columns), or set 0 to validate by the loss"
        )


def report_rewards(rollout: RolloutSettings, data: PromptDataModule, long_answers: LongAnswerSearch) -> None:
    """Report what a run should know of its rewards and answers when it starts; the rewards judge some references."""
    report_rewards_in_process(rollout.rewards)
    if not data.demonstrates:
        samples = []
        for prompt in data.prompts["train"]:
            samples.append(prompt.sample)
        warn_of_gold_answers(rollout.rewards, samples)
    warn_of_answers(rollout, data, long_answers)


def warn_of_answers(rollout: RolloutSettings, data: PromptDataModule, long_answers: LongAnswerSearch) -> None:
    """Warn of gold answers that are longer than a completion can be, of rewards for other lengths, and of thoughts that
    cannot be told from answers."""
    if not data.demonstrates:
        warn_of_other_lengths(rollout.rewards, rollout.sampling.max_completion_tokens)
    for answers in long_answers.find(rollout, data):
        log.warning("%s", answers)
    if rollout.rewards and (unread := data.chat.unread_thoughts(data.tokenizer)):
        log.warning(
            "model: its chat template writes thoughts in a form that is not known, so an answer in them counts: %s",
            unread[:100],
        )
