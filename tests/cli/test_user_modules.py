"""A project's own folder `datamodules/` beside ours: theirs first, ours where theirs has no such name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

THEIRS = """
from lit_rlvr.datamodules import PromptDataModule
class TheirData(PromptDataModule): pass
class TextMath(PromptDataModule): pass
"""
FIND = """
import logging
logging.basicConfig(format="%(message)s")
from lit_rlvr.cli.user_modules import add_user_modules, report_namesake
add_user_modules()
from jsonargparse._util import import_object
for name in ("TextMath", "Geometry", "text_math.TextMath", "theirs.TheirData"):
    try:
        found = import_object(f"datamodules.{name}")
    except AttributeError as error:
        print(error)
    else:
        print(f"{found.__module__}.{found.__name__}")
        report_namesake(found)
"""


@pytest.mark.parametrize(
    ("exports", "expected"),
    [
        (None, ["lit_rlvr.datamodules.text_math.TextMath", "module 'lit_rlvr.datamodules' has no attribute 'theirs'"]),
        ("", ["lit_rlvr.datamodules.text_math.TextMath", "datamodules.theirs.TheirData"]),
        ("from datamodules.theirs import TextMath", ["datamodules.theirs.TextMath", "datamodules.theirs.TheirData"]),
    ],
    ids=["no folder of theirs", "a folder of theirs", "theirs has a class of the same name"],
)
def test_datamodules_in_a_config_are_theirs_or_else_ours(
    tmp_path: Path, exports: str | None, expected: list[str]
) -> None:
    if exports is not None:
        (tmp_path / "datamodules").mkdir()
        (tmp_path / "datamodules/theirs.py").write_text(THEIRS)
        if exports:
            (tmp_path / "datamodules/__init__.py").write_text(exports)
    done = subprocess.run([sys.executable, "-c", FIND], cwd=tmp_path, capture_output=True, text=True, check=True)
    ours = ["lit_rlvr.datamodules.geometry.Geometry", "lit_rlvr.datamodules.text_math.TextMath"]
    assert done.stdout.splitlines() == [expected[0], *ours, expected[1]]
    assert ("TextMath is yours" in done.stderr) == bool(exports)


def test_a_checkout_is_one_package_under_both_names() -> None:
    code = "from lit_rlvr.cli.user_modules import add_user_modules as add; add(); import datamodules.base as theirs"
    code += "; import lit_rlvr.datamodules.base as ours; assert theirs is ours"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
