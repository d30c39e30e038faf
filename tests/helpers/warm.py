"""Loaded by the server of forked.py: all that a command imports, and a parser, whose parts jsonargparse keeps."""
# ruff: noqa: F401

import matplotlib.pyplot
import torch.distributed.checkpoint
import torch.distributed.fsdp
import torch.utils.tensorboard
import transformers.models.llama.modeling_llama

import lit_rlvr.evaluation.sampler
import lit_rlvr.run.trackers
from lit_rlvr.cli.lightning_cli import ConfigCheck

MODEL, DATA = ({"class_path": name} for name in ("GRPO", "Arithmetic"))
ConfigCheck("fit").parser.parse_object({"subcommand": "fit", "fit": {"model": MODEL, "data": DATA}}, defaults=False)
