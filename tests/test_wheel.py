"""The wheel works from any folder: its commands, configs, templates and data sets come with it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOUND = """
import lit_rlvr
from datamodules.reading.readers import read_rows
from lit_rlvr.configs import shipped_configs
print(lit_rlvr.__file__, len(list(read_rows("package:svamp/train.jsonl", "train"))), len(shipped_configs()), sep="\\n")
"""


@pytest.mark.slow
def test_an_installed_wheel_trains_from_an_empty_folder(tmp_path: Path) -> None:
    """In an environment of its own, to which the packages that lit-rlvr needs are lent."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=300)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    configs = [file.relative_to(ROOT / "configs") for file in (ROOT / "configs").rglob("*.yaml")]
    templates = [file.relative_to(ROOT) for file in (ROOT / "lit_rlvr/templates").iterdir()]
    assert {*(f"lit_rlvr/_configs/{path}" for path in configs), *map(str, templates)} <= packed
    assert not any(name.startswith(("tests/", "docs/", "benchmarks/")) for name in packed)

    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    python = home / "bin/python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True, timeout=300)
    own = home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (own / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")

    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["LIT_RLVR_CACHE"] = str(tmp_path / "cache")

    def shell(*command: str) -> str:
        done = subprocess.run(
            command, cwd=empty, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    where, rows, count = shell(str(python), "-c", FOUND).split("\n")[:3]
    assert Path(where).is_relative_to(home)
    assert int(rows) == sum(1 for _ in (ROOT / "datamodules/data/svamp/train.jsonl").open())
    assert int(count) == len(configs)
    command = str(home / "bin/lit-rlvr")
    shell(command, "fit", "--config", "smoke/sums", "--trainer.max_steps", "2", "--warm_start.steps", "0",
          "--trainer.default_root_dir", "run")  # fmt: skip
    shell(command, "explain", "run")
    shell(command, "report", "run")
    assert "<html" in (empty / "run/explain.html").read_text()
    assert (empty / "run/summary.json").is_file() and (empty / "run/report.html").is_file()
