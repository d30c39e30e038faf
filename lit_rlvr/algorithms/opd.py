"""OPD: on-policy distillation."""

from __future__ import annotations

from typing import Any

from lit_rlvr.advantages import Advantage
from lit_rlvr.algorithms.reinforce import Reinforce
from lit_rlvr.errors import UserError


class OPD(Reinforce):
    """`-(1/N) sum_i sum_t (log pi_T - log pi_old) logp`.

    Its gradient is that of the reverse KL divergence from the teacher, sampled on the policy's own completions.

    `advantage` adds that of rewards, which alone are measured by default. Every other loss on tokens takes a teacher
    too. With `teacher.beta` the teacher's term is the divergence over the vocabulary instead: on-policy GKD.

    Source: Agarwal et al. 2023 (GKD, arXiv 2306.13649), whose divergences are summed over the vocabulary; Lu et al.
    2025 (On-Policy Distillation, Thinking Machines), whose student log-probability is the engine's.

    Example:
        ```yaml
        model: {class_path: OPD, init_args: {model: smollm2, teacher: {model: HuggingFaceTB/SmolLM2-1.7B-Instruct}}}
        ```

    Args:
        kwargs: the options of `Reinforce`.
    """

    def __init__(self, advantage: Advantage | str = "none", **kwargs: Any) -> None:
        super().__init__(advantage=advantage, **kwargs)

    def configure_model(self) -> None:
        if self.teachers.options is None:
            raise UserError("model.teacher.model: OPD learns from a teacher; give its folder or hub id")
        super().configure_model()
