"""`benchmarks/gpu.py` and `pytest --device cuda` where only torch, transformers, lightning, peft and jsonargparse (and
pytest) are installed, with what these require.

A GPU machine may have no more; here every other package cannot be imported.
"""

import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from tiny_runs import child_environment

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"
PACKAGES = ("torch", "transformers", "lightning", "peft", "jsonargparse")
HIDE = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {names!r} else super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, *context):
        return (d for d in super().find_distributions(*context) if d.name.lower().replace("_", "-") in {kept!r})

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _required(roots: tuple[str, ...]) -> set[str]:
    """These distributions and all that they cannot do without."""
    found: set[str] = set()
    left = [*roots]
    while left:
        if (name := _plain(left.pop())) in found:
            continue
        found.add(name)
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            continue
        left += [re.match(r"[\w.-]+", line)[0] for line in lines if "extra ==" not in line]  # type: ignore[index]
    return found


@pytest.mark.slow
def test_a_step_runs_with_five_packages(tmp_path: Path) -> None:
    command = [str(SCRIPT), "--part", "step", "--shape", "text", "--engine", "hf", "--tiny"]
    command += ["--ours", "compute.gradient_checkpointing=true"]
    done = _run_with(PACKAGES, command, tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert len(result["rows"]) == 2
    assert all(row["budget_used"] == row["budget"] and row["seconds"] > 0 for row in result["rows"])


@pytest.mark.slow
def test_the_tests_for_a_gpu_are_found_with_six_packages(tmp_path: Path) -> None:
    tests = SCRIPT.parent.parent / "tests"
    files = [str(path) for path in tests.rglob("test_*.py") if "device: torch.device" in path.read_text()]
    command = ["-m", "pytest", "-q", "--collect-only", "--device", "cuda", "-p", "no:cacheprovider", *files]
    done = _run_with((*PACKAGES, "pytest"), command, tmp_path)
    assert done.returncode == 0, done.stdout
    assert len(files) > 5 and "test_spans.py" in done.stdout


def _installed() -> dict[str, list[str]]:
    """Module -> distributions, as a fresh process sees them: setuptools puts what it bundles on the path."""
    question = "import json, importlib.metadata as m; print(json.dumps(m.packages_distributions()))"
    found: dict[str, list[str]] = json.loads(subprocess.check_output([sys.executable, "-c", question]))
    return found


def _run_with(packages: tuple[str, ...], command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in a process that can import nothing but these packages, what they require, and ours."""
    kept = _required(packages)
    others = {
        module
        for module, owners in _installed().items()
        if not {_plain(owner) for owner in owners} & kept and module not in ("lit_rlvr", "datamodules")
    }
    assert {"vllm", "math_verify", "datasets"} <= others
    (folder / "sitecustomize.py").write_text(HIDE.format(names=others, kept=kept))
    environment = child_environment()
    environment["PYTHONPATH"] = f"{folder}:{SCRIPT.parent.parent}"
    return subprocess.run([sys.executable, *command], env=environment, cwd=folder, capture_output=True, text=True)
