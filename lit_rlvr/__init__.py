"""lit-rlvr: reinforcement learning with verifiable rewards on Lightning.

This module imports nothing heavy: reward workers import it, and they must start fast.
"""

__version__ = "0.2.0"

import os as _os
import sys as _sys
from importlib import import_module as _import_module
from typing import Any as _Any

_os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # see policy/speed.py; read at torch's first allocation
if "PYTORCH_ALLOC_CONF" not in _os.environ:  # else freed GPU memory is in pieces that a sleeping engine cannot use
    _os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

_MODULES = {
    "advantages": (
        "AGRAE AAPOAdvantage Advantage Composed DrGRPOAdvantage EasyFocused GDPOAdvantage GPGAdvantage GRPOAdvantage "
        "GRPOLeadAdvantage GRPOPassKAdvantage GiGPOAdvantage GroupBatch HardFocused MaxRLAdvantage NegativeDominant "
        "NoAdvantage OPOAdvantage PassAtKAdvantage PositiveDominant RLOOAdvantage ReinforceAdvantage "
        "ReinforcePPAdvantage StepReturns register"
    ),
    "algorithms": (
        "AAPO APMPO CISPO ClipCov DAPO DPPO DRO DrGRPO FIPO GMPO GPG GRPO GRPOLead GSPO GSPOToken KLCov LUSPO M2PO "
        "OPD FunctionLoss RLVRModule Reinforce SAPO SFT TOPR VESPO"
    ),
    "algorithms.apmpo_schedule": "PowerSchedule",
    "datamodules": (
        "Arithmetic CellArea CodeProblems Geometry LesionCount LesionPlace MedicalVQA MultiStepArithmetic "
        "Mixture MultipleChoice PromptDataModule ShapeBox SyntheticSQL TextMath TextToSQL"
    ),
    "datamodules.base": "EvaluationData",
    "datamodules.reading.chat": "Chat",
    "datamodules.reading.curriculum": "Curriculum",
    "datamodules.reading.images": "ImageOptions",
    "datamodules.reading.split": "ReadingOptions",
    "engines": "HFEngine RolloutEngine VLLMEngine",
    "engines.server": "VLLMServerEngine",
    "engines.synced": "Safeguards",
    "engines.transfer": "FileTransfer NCCLTransfer WeightTransfer",
    "environments": (
        "Agent Calculator Crop Environment EnvironmentReward Observation Python SQLShell SingleTurn Tools TurnRewards "
        "WrappedTools"
    ),
    "objectives": "LossInputs",
    "options": "AutoLR Compute Importance KL Lora Loss Optim Teacher TeacherPrompt",
    "rewards": (
        "Boxes Choice CodeTests CosineScaled Format FunctionReward GroupJudge InstructionFollowing LCPO MathAnswer "
        "OpenAnswer Overlong PairwiseJudge Points PointwiseJudge RelativeLength RepetitionPenalty Reward RewardModel "
        "RewardModelServer RubricJudge SQLExecution"
    ),
    "rewards.judges.server": "JudgeServer",
    "rollout": "RolloutCallback",
    "rollout.record": "Replay",
    "rollout.settings": "Evaluation",
    "run.trackers": "MLflow Trackio Wandb",
    "run.trainer": "Trainer",
    "sampling": "EvalSampling Sampling",
    "training.terms": "Term",
    "types": "Completion RewardResult Sample ToolResult",
    "workers.process": "Isolation",
}
_NAMES = {name: f"lit_rlvr.{module}" for module, names in _MODULES.items() for name in names.split()}
"""Public names: classes that a config names or a public constructor takes -> their modules, imported when used."""


def __getattr__(name: str) -> _Any:
    # jsonargparse looks for the shortest path of a class; in configs it stays lit_rlvr.algorithms.GRPO.
    if name not in _NAMES or _sys._getframe(1).f_globals["__name__"].startswith("jsonargparse"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*_NAMES, "__version__"})
