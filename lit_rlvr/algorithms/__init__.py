"""One LightningModule per algorithm; each file is one loss.

The formulas write P prompts, G completions of each, B = P G; n_i tokens of completion i in the loss, N of a whole step;
r, mu and sd for a reward, and mean and deviation of its group; A for an advantage; w = exp(logp - old_logp) for the
ratio of a token's probability to that at the beginning of the iteration; and W for the ratio of a completion's
probability to that when it was sampled.

Their base class, `RLVRModule`, stands in `training/module.py`. `SFT` is here because it is trained by the same loop, on
the data's own completions. `__all__` has the base class and the losses on the model's completions: all but
`SFT` and `FunctionLoss`, whose loss is a user's function.
"""

from lit_rlvr.algorithms.aapo import AAPO
from lit_rlvr.algorithms.apmpo import APMPO
from lit_rlvr.algorithms.cispo import CISPO
from lit_rlvr.algorithms.clip_cov import ClipCov
from lit_rlvr.algorithms.dapo import DAPO
from lit_rlvr.algorithms.dppo import DPPO
from lit_rlvr.algorithms.dr_grpo import DrGRPO
from lit_rlvr.algorithms.dro import DRO
from lit_rlvr.algorithms.fipo import FIPO
from lit_rlvr.algorithms.function_loss import FunctionLoss as FunctionLoss
from lit_rlvr.algorithms.gmpo import GMPO
from lit_rlvr.algorithms.gpg import GPG
from lit_rlvr.algorithms.grpo import GRPO
from lit_rlvr.algorithms.grpo_lead import GRPOLead
from lit_rlvr.algorithms.gspo import GSPO
from lit_rlvr.algorithms.gspo_token import GSPOToken
from lit_rlvr.algorithms.kl_cov import KLCov
from lit_rlvr.algorithms.luspo import LUSPO
from lit_rlvr.algorithms.m2po import M2PO
from lit_rlvr.algorithms.opd import OPD
from lit_rlvr.algorithms.reinforce import Reinforce
from lit_rlvr.algorithms.sapo import SAPO
from lit_rlvr.algorithms.sft import SFT as SFT
from lit_rlvr.algorithms.topr import TOPR
from lit_rlvr.algorithms.vespo import VESPO
from lit_rlvr.training.module import RLVRModule

__all__ = [
    "AAPO",
    "APMPO",
    "CISPO",
    "DAPO",
    "DPPO",
    "DRO",
    "FIPO",
    "GMPO",
    "GPG",
    "GRPO",
    "GSPO",
    "LUSPO",
    "M2PO",
    "OPD",
    "SAPO",
    "TOPR",
    "VESPO",
    "ClipCov",
    "DrGRPO",
    "GRPOLead",
    "GSPOToken",
    "KLCov",
    "RLVRModule",
    "Reinforce",
]
