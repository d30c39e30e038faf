"""Transfers weights to vLLM servers: through files that both sides can access, or over NCCL."""

from lit_rlvr.engines.transfer.base import WeightTransfer
from lit_rlvr.engines.transfer.files import FileTransfer
from lit_rlvr.engines.transfer.nccl import NCCLTransfer

__all__ = ["FileTransfer", "NCCLTransfer", "WeightTransfer"]
