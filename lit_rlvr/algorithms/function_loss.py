"""A loss without a class: a function of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lit_rlvr.common.user_code import check_takes
from lit_rlvr.objectives import LossInputs, Stats
from lit_rlvr.training.module import RLVRModule


class FunctionLoss(RLVRModule):
    """`function(x)`: the loss of a function of your own, as `RLVRModule.objective` returns it.

    Example:
        ```yaml
        model: {class_path: FunctionLoss, init_args: {function: my_task.my_loss}}
        ```

    Args:
        function: `(x: LossInputs) -> (loss, stats)`; a config gives its dotted path.
        has_ratio: False = the loss has no ratio to the sampling policy, as `has_ratio` of a class says.
        kwargs: the options of `RLVRModule`.
    """

    def __init__(
        self, function: Callable[[LossInputs], tuple[Tensor, Stats]], has_ratio: bool = True, **kwargs: Any
    ) -> None:
        check_takes(function, "x")
        super().__init__(**kwargs)
        self.has_ratio = has_ratio  # type: ignore[misc]  # of this loss
        self.objective = function  # type: ignore[assignment, method-assign]  # so messages name it

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        raise NotImplementedError("each instance has its function in its place")
