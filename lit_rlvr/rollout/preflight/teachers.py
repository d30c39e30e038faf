"""Teachers against the data and their own context."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lit_rlvr.errors import UserError
from lit_rlvr.rollout.episodes import begins
from lit_rlvr.rollout.preflight.lengths import LengthRequirement, check_lengths
from lit_rlvr.rollout.settings import RolloutSettings
from lit_rlvr.training.module import RLVRModule
from lit_rlvr.training.teachers import teacher_folder

if TYPE_CHECKING:
    from lit_rlvr.datamodules import PromptDataModule


def check_teachers(rollout: RolloutSettings, module: RLVRModule, data: PromptDataModule) -> None:
    """Refuse rows that a teacher cannot score, and prompts that leave no room for completions in its context."""
    prompts = module.teachers.prepare(data, rollout.sampling)
    if prompts and module.teachers.options is not None:
        if module.teachers.options.prompt is not None and begins(rollout.environment):
            raise UserError(
                "model.teacher.prompt: a teacher with a prompt of its own would not see what rollout.environment "
                "says first; leave one of them out"
            )
        option = "rollout.sampling.max_tokens"
        room = rollout.sampling.max_completion_tokens
        needed = LengthRequirement("model.teacher", prompts, room, option, "what its prompts show")
        folders = [] if module.teachers.options.model else [module.model_folder]
        for folder in folders or map(teacher_folder, module.teachers.options.folders):
            check_lengths(folder, [needed])
