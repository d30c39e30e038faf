"""Rewards against the algorithm and the data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lit_rlvr.errors import UserError, refuse_all
from lit_rlvr.rewards.base import reward_weights_of
from lit_rlvr.rollout.settings import RolloutSettings
from lit_rlvr.training.module import RLVRModule

if TYPE_CHECKING:
    from lit_rlvr.datamodules import PromptDataModule


def check_unrewarded(rollout: RolloutSettings, module: RLVRModule, data: PromptDataModule) -> None:
    """Refuse what needs rewards if there are none."""
    if rollout.has_reward:
        return
    if module.teachers.options is None and not module.demonstrates:
        raise UserError("rollout.rewards is empty: give at least one reward, or a model.teacher to learn from")
    terms_with_rewards = {}
    for term in module.terms:
        if term.place == "rewards" or "correct" in term.needs:
            terms_with_rewards[term.option] = True
    needing = {
        "model.dynamic_sampling, or the advantage's min_valid_fraction": module.selection.min_mixed_fraction,
    } | terms_with_rewards
    problems = []
    for option, needs in needing.items():
        if needs:
            problems.append(
                f"{option}: it needs rewards, and rollout.rewards is empty; leave it out, or set it to false or 0"
            )
    refuse_all(problems)
    unjudged = []
    for other in data.validated:
        for split, prompts in other.prompts.items():
            if split != "train" and prompts and rollout.samples_of(other.name):
                unjudged.append(
                    f"rollout.rewards is empty, so nothing tells whether an answer to a prompt of {other.name} {split} "
                    "is right; give a reward, or leave this set out"
                )
    refuse_all(unjudged)


def check_selection(rollout: RolloutSettings, module: RLVRModule, data: PromptDataModule) -> None:
    """Refuse dynamic sampling by a reward that there is not, or that does not judge every row, and two shares of mixed
    groups."""
    share = module.advantage.min_valid_fraction
    needed = module.selection.min_mixed_fraction
    if share is not None and share != needed:
        raise UserError(
            f"model.advantage.min_valid_fraction: {share:g}, but {type(module).__name__} samples until {needed:g} of "
            "the groups are mixed; leave it out, or set model.dynamic_sampling: false"
        )
    names = [reward.name for reward in rollout.rewards]
    by = module.selection.by
    if by not in ("reward", "correct", *names):
        raise UserError(
            f"model.dynamic_sampling: there is no reward {by!r}; give reward, correct, false, or the name of a "
            f"reward: {', '.join(names)}"
        )
    if data.success is not None and all(reward.reports_correct is False for reward in rollout.rewards):
        raise UserError(
            f"data.curriculum: it goes by `correct`, which {', '.join(names)} do not report; give a threshold or "
            "another reward"
        )
    rows = []
    for prompt in data.prompts.get("train", ()):
        rows.append(prompt.sample)
    weights = dict.fromkeys(names, 1.0)
    if by in names and (without := next((row for row in rows if by not in reward_weights_of(row, weights)), None)):
        raise UserError(
            f"model.dynamic_sampling: {by} does not judge {without.source or without.id}, so its group never counts; "
            "give reward, the weighted sum"
        )


def check_whole_rollouts(rollout: RolloutSettings, module: RLVRModule, data: PromptDataModule) -> None:
    """Refuse rewards of whole rollouts where single groups are judged while others are sampled."""
    late = []
    for reward in rollout.rewards:
        if reward.whole_rollout:
            late.append(reward.name)
    if rollout.staleness and late and module.selection.num_needed(data.prompts_per_rollout):
        raise UserError(
            f"rollout.staleness: reward {late[0]} judges whole rollouts, but dynamic sampling has to know single "
            "groups before; turn one of them off"
        )
