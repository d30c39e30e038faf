"""Broken configs and checkpoints on the command line: it works, or one line says why not; never a traceback."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzing import examples
from hypothesis import given, strategies as st
from tiny_runs import FIT, fit, tiny_config

pytestmark = pytest.mark.slow

CLI = Callable[..., Any]
ODD = st.sampled_from([
    None, True, -1, 0, 1e308, float("nan"), float("inf"), "", "x", "\x00", "${oc.env:HOME}", "!!python/name:os.system",
    [], {}, [1], {"class_path": "os.system"}, {"class_path": "GRPO"}, {"a": {"b": 1}}, "9" * 400, "../..",
    "1e-3", "ü" * 50,
])  # fmt: skip
"""Values that are wrong in most places; where one is right, training takes one step."""


def places(config: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every key of a config but the one that says when to stop."""
    if not isinstance(config, dict):
        return []
    found = [p for key, value in config.items() for p in ((*path, key), *places(value, (*path, key)))]
    return [place for place in found if place[-1] != "max_steps"]


def assert_said_in_one_line(result: Any) -> None:
    assert "Traceback" not in result.err and (result.status == 0 or len(result.refusal) < 2000), result.err


@examples(6)
@given(data=st.data())
def test_odd_configs_end_in_one_line(
    run_folder: Path, tiny_model_folder: Path, lit_rlvr: CLI, data: st.DataObject
) -> None:
    config = copy.deepcopy(tiny_config(tiny_model_folder))
    config["trainer"]["max_steps"] = 1
    config["trainer"]["limit_val_batches"] = 0
    for _ in range(data.draw(st.integers(1, 2))):
        *outer, last = data.draw(st.sampled_from(places(config)))
        within = config
        for key in outer:
            within = within[key]
        action = data.draw(st.sampled_from(["change", "change", "change", "drop", "misspell"]))
        if action == "change":
            within[last] = data.draw(ODD)
        elif action == "drop":
            within.pop(last)
        else:
            within[last + "s"] = within.pop(last)
    (run_folder / "odd.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
    assert_said_in_one_line(lit_rlvr("fit", "--config", "odd.yaml", "--overwrite", "true"))


@examples(5)
@given(content=st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode(errors="replace")))
def test_config_files_of_any_bytes_end_in_one_line(run_folder: Path, lit_rlvr: CLI, content: bytes) -> None:
    (run_folder / "odd.yaml").write_bytes(content)
    assert_said_in_one_line(lit_rlvr(*FIT, "--trainer.max_steps", 1, "--config", "odd.yaml", "--overwrite", "true"))


@pytest.fixture
def checkpoint(run_folder: Path, lit_rlvr: CLI) -> bytes:
    fit(lit_rlvr, "--trainer.max_steps", 1, "--trainer.limit_val_batches", 0)
    return (run_folder / "run/checkpoints/step-000001.ckpt").read_bytes()


@examples(8)
@given(data=st.data())
def test_broken_checkpoints_resume_exactly_or_not_at_all(
    run_folder: Path, lit_rlvr: CLI, checkpoint: bytes, data: st.DataObject
) -> None:
    """A run goes on from what was written, bit for bit, or not at all."""
    content = bytearray(checkpoint)
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    end = data.draw(st.just(len(content)) | st.integers(0, len(content)))
    path = run_folder / "run/checkpoints/step-000001.ckpt"
    path.write_bytes(content[:end])
    result = lit_rlvr("export", "run", "--to", "out")
    shutil.rmtree("out", ignore_errors=True)
    assert_said_in_one_line(result)
    assert (result.status == 0) >= (bytes(content[:end]) == checkpoint)
    path.write_bytes(checkpoint)
