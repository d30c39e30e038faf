"""The transfer of weights to vLLM servers, whatever the way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_rlvr.common.resuming import how_to_resume
from lit_rlvr.distributed.collectives import world_size
from lit_rlvr.engines.client import VLLMServer
from lit_rlvr.errors import UserError, first_line

Weights = Callable[[bool], Iterable[tuple[str, Tensor]]]
"""Starts a new pass over the (name, tensor) pairs: of all weights, or of those that training changes (False).

The latter may be adapters. Collective if the weights are sharded; call it on every rank."""
Settings = dict[str, Any]
"""The settings of adapters, as peft saves them."""


class WeightTransfer(ABC):
    """Sends weights to servers. Each version has a label, which a server can be asked for.

    Attributes:
        sends_adapters: it can send adapters in place of weights.
        restores_alone: one rank can send the last weights again, without the others.
        restores_current: what it sends again are the policy's current weights, which training may have changed.
    """

    sends_adapters = False
    restores_alone = True
    restores_current = False

    def check_urls(self, urls: Sequence[str]) -> None:  # noqa: B027  # most transfers reach any server
        """Refuse servers that cannot be reached; called before any model loads.

        Raises:
            UserError: the transfer does not reach one of them.
        """

    @abstractmethod
    def send(
        self,
        servers: Sequence[VLLMServer],
        weights: Weights,
        dtype: torch.dtype,
        version: str,
        frozen: bool = False,
        adapter: Settings | None = None,
    ) -> None:
        """Send weights to all servers from the first rank.

        Collective: call it on every rank.

        Args:
            servers: all servers.
            weights: yields full tensors by name.
            dtype: what they are cast to.
            version: the name of these weights.
            frozen: some of the weights never change, so that later versions can leave them out.
            adapter: the settings of the adapters that `weights(False)` yields; None = it yields weights.
        """

    @abstractmethod
    def restore(self, server: VLLMServer, version: str) -> None:
        """Send the last weights again, to a restarted server; called on one rank alone."""

    @abstractmethod
    def close(self) -> None:
        """Remove files and end connections."""


def weights_or_exit(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights, and end the run if one cannot be gathered: the other ranks wait for it, and for all after it.

    Raises:
        UserError: an error came out of `weights`, and there are other ranks.
    """
    try:
        yield from weights
    except Exception as error:
        if world_size() == 1 or isinstance(error, UserError):
            raise
        raise UserError(f"a weight cannot be gathered: {first_line(error)}; {how_to_resume()}") from error
