"""An algorithm with faults: numbers that are not finite, memory that runs out, processes that end.

`FAULT` in the environment says which, as "KIND STEP RANK": in that optimizer step (counted from 1) of that process.
Memory runs out once, as long as micro-batches have the size of the settings.
"""

from __future__ import annotations

import os
import signal

import torch
from torch import Tensor

from lit_rlvr.algorithms import GRPO
from lit_rlvr.distributed.collectives import rank
from lit_rlvr.errors import UserError
from lit_rlvr.objectives import LossInputs, Stats


class Faulty(GRPO):
    """GRPO with the fault of the environment."""

    ran_out = False

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        loss, stats = super().objective(x)
        kind, step, where = os.environ["FAULT"].split()
        if (self.updates + 1, rank()) != (int(step), int(where)):
            return loss, stats
        if kind == "nan":
            return loss * torch.nan, stats
        if kind == "memory" and self.budget.tokens == self.budget.given and not self.ran_out:
            self.ran_out = True
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if kind == "user":
            raise UserError("the licence of this process has expired")
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return loss, stats
