"""A project's own folder `datamodules/` next to ours: theirs first, ours where theirs has no such name."""

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
import logging, os, sys
import lit_rlvr.datamodules.geometry  # for the libraries that it imports, once
for name in [name for name in sys.modules if name.startswith("lit_rlvr")]:
    del sys.modules[name]
from lit_rlvr.cli.user_modules import add_user_modules, report_namesake
from jsonargparse._util import import_object
logging.basicConfig(format="%(message)s", stream=sys.stdout)
for folder in sys.argv[1:]:
    if os.fork():
        os.wait()
        continue
    os.chdir(folder)
    add_user_modules()
    for name in ("TextMath", "Geometry", "text_math.TextMath", "theirs.TheirData"):
        try:
            found = import_object(f"datamodules.{name}")
        except AttributeError as error:
            print(error)
        else:
            print(f"{found.__module__}.{found.__name__}")
            report_namesake(found)
    import datamodules.base, lit_rlvr.datamodules.base
    print("one package" if datamodules.base is lit_rlvr.datamodules.base else "two")
    sys.exit()
"""
"""Imports data modules in each of some folders, in a process of its own without the time to import the library."""
OURS = ["lit_rlvr.datamodules.geometry.Geometry", "lit_rlvr.datamodules.text_math.TextMath"]


@pytest.mark.slow
def test_datamodules_in_a_config_are_theirs_or_else_ours(tmp_path: Path) -> None:
    """With no folder of theirs, with one, with a class of the same name in it; and in a checkout of ours."""
    none, other, same = (tmp_path / name for name in ("none", "other", "same"))
    none.mkdir()
    for folder, exports in ((other, ""), (same, "from datamodules.theirs import TextMath")):
        (folder / "datamodules").mkdir(parents=True)
        (folder / "datamodules/theirs.py").write_text(THEIRS)
        if exports:
            (folder / "datamodules/__init__.py").write_text(exports)
    folders = [none, other, same, Path(__file__).parents[2]]
    done = subprocess.run([sys.executable, "-c", FIND, *folders], capture_output=True, text=True, check=True)
    ours, theirs = "lit_rlvr.datamodules.text_math.TextMath", "datamodules.theirs.TheirData"
    missing = "module 'lit_rlvr.datamodules' has no attribute 'theirs'"
    said = [line for line in done.stdout.splitlines() if "TextMath is yours" in line]
    assert len(said) == 1
    assert [line for line in done.stdout.splitlines() if line not in said] == [
        *(ours, *OURS, missing, "one package"),
        *(ours, *OURS, theirs, "one package"),
        *("datamodules.theirs.TextMath", *OURS, theirs, "one package"),
        *(ours, *OURS, missing, "one package"),
    ]
