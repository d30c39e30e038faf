"""The strategy for sharded weights, under the name that configs use."""

from lit_rlvr.distributed.strategy import FSDP2

__all__ = ["FSDP2"]
