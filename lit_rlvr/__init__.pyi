"""The public names, by the module that defines each. `__init__.py` imports a name from there when it is first used.

A class that a config names or a public constructor takes stands here, and what code of one's own needs: a loss, an
advantage, a reward, data, an environment, an engine. Everything else may change at any time.
"""

from lit_rlvr.advantages import (
    AGRAE as AGRAE,
    AAPOAdvantage as AAPOAdvantage,
    Advantage as Advantage,
    Composed as Composed,
    DrGRPOAdvantage as DrGRPOAdvantage,
    EasyFocused as EasyFocused,
    GDPOAdvantage as GDPOAdvantage,
    GiGPOAdvantage as GiGPOAdvantage,
    GPGAdvantage as GPGAdvantage,
    GroupBatch as GroupBatch,
    GRPOAdvantage as GRPOAdvantage,
    GRPOLeadAdvantage as GRPOLeadAdvantage,
    GRPOPassKAdvantage as GRPOPassKAdvantage,
    HardFocused as HardFocused,
    MaxRLAdvantage as MaxRLAdvantage,
    NegativeDominant as NegativeDominant,
    NoAdvantage as NoAdvantage,
    OPOAdvantage as OPOAdvantage,
    PassAtKAdvantage as PassAtKAdvantage,
    PositiveDominant as PositiveDominant,
    ReinforceAdvantage as ReinforceAdvantage,
    ReinforcePPAdvantage as ReinforcePPAdvantage,
    RLOOAdvantage as RLOOAdvantage,
    StepReturns as StepReturns,
    register as register,
)
from lit_rlvr.advantages.base import centered as centered
from lit_rlvr.algorithms import (
    AAPO as AAPO,
    APMPO as APMPO,
    CISPO as CISPO,
    DAPO as DAPO,
    DPPO as DPPO,
    DRO as DRO,
    FIPO as FIPO,
    GMPO as GMPO,
    GPG as GPG,
    GRPO as GRPO,
    GSPO as GSPO,
    LUSPO as LUSPO,
    M2PO as M2PO,
    OPD as OPD,
    SAPO as SAPO,
    SFT as SFT,
    TOPR as TOPR,
    VESPO as VESPO,
    ClipCov as ClipCov,
    DrGRPO as DrGRPO,
    FunctionLoss as FunctionLoss,
    GRPOLead as GRPOLead,
    GSPOToken as GSPOToken,
    KLCov as KLCov,
    Reinforce as Reinforce,
    RLVRModule as RLVRModule,
)
from lit_rlvr.algorithms.apmpo_schedule import (
    PowerSchedule as PowerSchedule,
)
from lit_rlvr.commands.check import (
    check_algorithm as check_algorithm,
)
from lit_rlvr.common.arguments import check_within as check_within
from lit_rlvr.conformance.functions import check_loss as check_loss
from lit_rlvr.datamodules import (
    Arithmetic as Arithmetic,
    CellArea as CellArea,
    CodeProblems as CodeProblems,
    Geometry as Geometry,
    LesionCount as LesionCount,
    LesionPlace as LesionPlace,
    MedicalVQA as MedicalVQA,
    Mixture as Mixture,
    MultipleChoice as MultipleChoice,
    MultiStepArithmetic as MultiStepArithmetic,
    PromptDataModule as PromptDataModule,
    ShapeBox as ShapeBox,
    SyntheticSQL as SyntheticSQL,
    TextMath as TextMath,
    TextToSQL as TextToSQL,
)
from lit_rlvr.datamodules.base import (
    EvaluationData as EvaluationData,
)
from lit_rlvr.datamodules.reading.cells import (
    BadRow as BadRow,
)
from lit_rlvr.datamodules.reading.chat import (
    Chat as Chat,
)
from lit_rlvr.datamodules.reading.curriculum import (
    Curriculum as Curriculum,
)
from lit_rlvr.datamodules.reading.images import (
    ImageOptions as ImageOptions,
)
from lit_rlvr.datamodules.reading.options import (
    ReadingOptions as ReadingOptions,
)
from lit_rlvr.datamodules.reading.split import (
    Split as Split,
)
from lit_rlvr.distributed.fsdp2 import (
    FSDP2 as FSDP2,
)
from lit_rlvr.engines import (
    HFEngine as HFEngine,
    RolloutEngine as RolloutEngine,
    VLLMEngine as VLLMEngine,
)
from lit_rlvr.engines.base import (
    InPlaceEngine as InPlaceEngine,
    OneByOneEngine as OneByOneEngine,
)
from lit_rlvr.engines.server import (
    VLLMServerEngine as VLLMServerEngine,
)
from lit_rlvr.engines.transfer import (
    FileTransfer as FileTransfer,
    NCCLTransfer as NCCLTransfer,
    WeightTransfer as WeightTransfer,
)
from lit_rlvr.engines.turns import (
    Row as Row,
    read_completion as read_completion,
)
from lit_rlvr.environments import (
    Agent as Agent,
    Calculator as Calculator,
    Crop as Crop,
    Environment as Environment,
    EnvironmentReward as EnvironmentReward,
    Observation as Observation,
    Python as Python,
    SingleTurn as SingleTurn,
    SQLShell as SQLShell,
    Tools as Tools,
    TurnRewards as TurnRewards,
    WrappedTools as WrappedTools,
)
from lit_rlvr.errors import (
    RunStopped as RunStopped,
    UserError as UserError,
)
from lit_rlvr.evaluation.diversity import (
    CosineSimilarity as CosineSimilarity,
    Embedder as Embedder,
    SelfBLEU4 as SelfBLEU4,
    measure_diversity as measure_diversity,
)
from lit_rlvr.media import (
    Pixels as Pixels,
)
from lit_rlvr.objectives import (
    LossInputs as LossInputs,
    Stats as Stats,
    StepTokens as StepTokens,
    largest as largest,
    masked_sum as masked_sum,
    ratio as ratio,
    row_sum as row_sum,
)
from lit_rlvr.options import (
    KL as KL,
    AutoLR as AutoLR,
    Compute as Compute,
    Importance as Importance,
    Lora as Lora,
    Loss as Loss,
    Optim as Optim,
    Teacher as Teacher,
    TeacherPrompt as TeacherPrompt,
)
from lit_rlvr.policy.families.base import (
    ImageProcessor as ImageProcessor,
    VisionFamily as VisionFamily,
)
from lit_rlvr.policy.logprobs import (
    shape_logits as shape_logits,
)
from lit_rlvr.rewards import (
    LCPO as LCPO,
    Boxes as Boxes,
    Choice as Choice,
    CodeTests as CodeTests,
    CosineScaled as CosineScaled,
    Format as Format,
    FunctionReward as FunctionReward,
    GroupJudge as GroupJudge,
    InstructionFollowing as InstructionFollowing,
    MathAnswer as MathAnswer,
    OpenAnswer as OpenAnswer,
    Overlong as Overlong,
    PairwiseJudge as PairwiseJudge,
    Points as Points,
    PointwiseJudge as PointwiseJudge,
    RelativeLength as RelativeLength,
    RepetitionPenalty as RepetitionPenalty,
    Reward as Reward,
    RewardModel as RewardModel,
    RewardModelServer as RewardModelServer,
    RubricJudge as RubricJudge,
    SQLExecution as SQLExecution,
)
from lit_rlvr.rewards.judges.base import (
    Judge as Judge,
)
from lit_rlvr.rewards.judges.prompts import (
    ask_about as ask_about,
)
from lit_rlvr.rewards.judges.server import (
    JudgeServer as JudgeServer,
)
from lit_rlvr.rollout import (
    RolloutCallback as RolloutCallback,
)
from lit_rlvr.rollout.record import (
    Replay as Replay,
)
from lit_rlvr.rollout.settings import (
    Evaluation as Evaluation,
    Safeguards as Safeguards,
)
from lit_rlvr.run.checkpoint import (
    RunCheckpoint as RunCheckpoint,
)
from lit_rlvr.run.monitor import (
    CollapseMonitor as CollapseMonitor,
)
from lit_rlvr.run.outputs import (
    RunFolder as RunFolder,
)
from lit_rlvr.run.progress import (
    Budget as Budget,
)
from lit_rlvr.run.trackers import (
    MLflow as MLflow,
    Tracker as Tracker,
    Trackio as Trackio,
    Wandb as Wandb,
)
from lit_rlvr.run.trainer import (
    Trainer as Trainer,
)
from lit_rlvr.run.warm_start import (
    WarmStart as WarmStart,
)
from lit_rlvr.sampling import (
    EvalSampling as EvalSampling,
    Sampling as Sampling,
)
from lit_rlvr.training.teachers import (
    Demonstration as Demonstration,
)
from lit_rlvr.training.terms import (
    Term as Term,
)
from lit_rlvr.types import (
    Completion as Completion,
    GroupSelection as GroupSelection,
    Prompt as Prompt,
    PromptBatch as PromptBatch,
    RewardResult as RewardResult,
    Rollout as Rollout,
    Sample as Sample,
    ToolResult as ToolResult,
    Turn as Turn,
)
from lit_rlvr.workers.process import (
    Isolation as Isolation,
)

__version__: str
