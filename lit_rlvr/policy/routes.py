"""Records the experts that the routers of a mixture of experts choose, and replays them (R3, arXiv 2510.11370).

It also measures how evenly they are used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lit_rlvr.errors import UserError
from lit_rlvr.policy.architecture import CHOSEN, EXPERTS, first_of
from lit_rlvr.policy.families import language_modules


class Routing:
    """The experts of the N tokens of a forward pass, in K layers with routers.

    Args:
        given: (K, N, k) the experts to use; -1 = the router chooses; None = routers choose for all tokens.
        keeps_scores: record `scores`, which `imbalance` needs and which a checkpointed pass holds until its end.

    Attributes:
        chosen: layer -> (N, k) the experts that its router chooses by itself.
        scores: layer -> (N, E) what it chooses by.
    """

    def __init__(self, given: Tensor | None, keeps_scores: bool) -> None:
        self.given = given
        self.keeps_scores = keeps_scores
        self.chosen: dict[int, Tensor] = {}
        self.scores: dict[int, Tensor] = {}

    def packed(self) -> Tensor | None:
        """Return the experts that routers chose as small integers (N, K, k); None if no router is watched."""
        if not self.chosen:
            return None
        return small(torch.stack([self.chosen[layer] for layer in sorted(self.chosen)], 1))

    def flips(self) -> Tensor:
        """Return for each token (N,) the share of layers whose router would choose other experts than given."""
        assert self.given is not None
        chosen = torch.stack([self.chosen[layer] for layer in sorted(self.chosen)])  # (K, N, k)
        other = (chosen.sort(-1).values != self.given.sort(-1).values).any(-1)
        return (other & (self.given >= 0).all(-1)).float().mean(0)

    def imbalance(self, at: Tensor, sequence: Tensor) -> Tensor:
        """Return for some tokens (n,) the loss `E sum_e f_e p_e` that keeps the use of E experts even.

        It is averaged over layers: 1 = even, E / k = always the same. p_e is the router's probability of expert e,
        which has a gradient, and f_e the share of the choices in the token's sequence that fall on e. Source:
        DeepSeek-V3 (arXiv 2412.19437), eq. 17-20.

        Args:
            at: (n,) which of the N tokens.
            sequence: (n,) the sequence of each.

        Raises:
            UserError: the routers do not choose by probabilities.
        """
        sums = [p.detach()[at].float().sum(-1) for p in self.scores.values()]
        if not sums or not all(torch.allclose(total, total.new_ones(()), atol=1e-2) for total in sums):
            raise UserError("model.loss.balance_coef: the model's routers do not choose by a softmax; leave it at 0")
        chosen = torch.stack([self.chosen[layer] for layer in sorted(self.chosen)])[:, at]  # (K, n, k)
        p = torch.stack([self.scores[layer] for layer in sorted(self.scores)])[:, at].float()  # (K, n, E)
        count = p.new_zeros(len(p), int(sequence.max()) + 1 if len(sequence) else 0, p.shape[-1])
        count.index_add_(1, sequence, torch.zeros_like(p).scatter_(-1, chosen, 1.0))
        share = count / count.sum(-1, keepdim=True).clamp(min=1)
        return p.shape[-1] * (share[:, sequence] * p).sum(-1).mean(0)


def small(experts: Tensor) -> Tensor:
    """Return indices of experts on the CPU in 8 bits if they fit, else in 16."""
    return experts.to("cpu", torch.uint8 if int(experts.max()) < 256 else torch.int16)


_ROUTING: ContextVar[Routing | None] = ContextVar("routing", default=None)


@contextmanager
def routing(given: Tensor | Routing | None = None, keeps_scores: bool = False) -> Iterator[Routing]:
    """Record, within this context, what the watched routers choose, and replace it by given experts (K, N, k)."""
    if not isinstance(given, Routing):
        given = Routing(given, keeps_scores)
    token = _ROUTING.set(given)
    try:
        yield given
    finally:
        _ROUTING.reset(token)


def same_routing() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Return the contexts of a checkpointed layer: it recomputes with the experts of its forward pass."""
    current = _ROUTING.get()
    return nullcontext(), nullcontext() if current is None else routing(current)


def routers(model: nn.Module) -> dict[int, nn.Module]:
    """Return the routers of a mixture of experts by the number of their layer; transformers' class names end alike."""
    routers = {}
    for name, module in language_modules(model):
        if type(module).__name__.endswith("Router"):
            routers[int(re.findall(r"layers\.(\d+)\.", name)[-1])] = module
    return routers


def watch_routers(model: Any, option: str) -> None:
    """Let `routing` see and replace what a model's routers choose, in place.

    Args:
        model: the model.
        option: which needs that, for the error.

    Raises:
        UserError: it has no routers, or none of a known form.
    """
    text = model.config.get_text_config()
    sizes = first_of(text, EXPERTS), first_of(text, CHOSEN)
    routers_of_model = routers(model)
    if not routers_of_model or not all(sizes):
        raise UserError(f"{option}: {type(model).__name__} has no routers of a known form; leave it out")
    for layer, router in enumerate(routers_of_model.values()):
        router.forward = partial(_forward, router, layer, sizes)


def _forward(router: nn.Module, layer: int, sizes: tuple[int, int], *args: Any, **kwargs: Any) -> Any:
    current = _ROUTING.get()
    with nullcontext() if current is None else _Choice(current, layer, sizes):
        return type(router).forward(router, *args, **kwargs)


class _Choice(TorchFunctionMode):
    """Replaces the result of a router's top-k over all experts.

    The model's own code then makes their weights of its own logits: normalised or not, scaled, of softmax or sigmoid.

    Args:
        now: what is recorded or replayed.
        layer: the index of the router's layer.
        sizes: number of experts, and of those that a token uses.
    """

    def __init__(self, now: Routing, layer: int, sizes: tuple[int, int]) -> None:
        super().__init__()
        self.now = now
        self.layer = layer
        self.sizes = sizes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        is_top_k = func in (torch.topk, Tensor.topk)
        if not is_top_k or (args[0].shape[1:], result.indices.shape[1:]) != tuple((n,) for n in self.sizes):
            return result  # something else, or the top-k of a group of experts
        self.now.chosen[self.layer] = result.indices
        if self.now.keeps_scores:
            self.now.scores[self.layer] = args[0]
        if self.now.given is None:
            return result
        given = self.now.given[self.layer]  # (N, k)
        indices = torch.where(given < 0, result.indices, given)
        return torch.return_types.topk((args[0].gather(-1, indices), indices))
