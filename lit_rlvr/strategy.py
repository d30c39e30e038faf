"""The strategy for sharded weights, under the name that configs use."""

from lit_rlvr.distributed.fsdp2 import FSDP2

__all__ = ["FSDP2"]
