"""Runs made_up_device_cases.py."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import child_environment

CASES = Path(__file__).with_name("made_up_device_cases.py")


@pytest.mark.parametrize(
    "cases", [pytest.param("not slow", marks=pytest.mark.slow), pytest.param("slow", marks=pytest.mark.exhaustive)]
)
def test_iterations_on_a_made_up_device(cases: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-m", cases, "-o", "faulthandler_timeout=300", str(CASES)]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
