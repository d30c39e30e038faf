"""The options of pytest for the kit: `pytest -p lit_rlvr.conformance.plugin --pyargs lit_rlvr.conformance --loss ...`.

pytest reads options before it looks for packages, so it has to be named; no other run of pytest loads it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_rlvr.common.packages import import_path
from lit_rlvr.conformance.functions import check_estimator, check_loss
from lit_rlvr.conformance.properties import Finding
from lit_rlvr.errors import UserError, type_text, user_line, with_user_line

FINDINGS = pytest.StashKey[list[Finding]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance", "conformance of a loss or an advantage")
    group.addoption("--loss", metavar="MODULE:FUNCTION", help="the loss to check")
    group.addoption("--advantage", metavar="MODULE:FUNCTION", help="the advantage to check")
    group.addoption("--expect", metavar="NAME", help="the published loss or advantage whose values it must have")
    group.addoption("--stops-gradient", action="store_true", help="the loss detaches values on purpose")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Measure the function before pytest collects tests, so that bad options end the run with one line."""
    try:
        session.config.stash[FINDINGS] = measure(session.config)
    except UserError as error:
        raise pytest.UsageError(str(error)) from error
    except (Exception, SystemExit) as error:
        if not user_line(error):
            raise
        raise pytest.UsageError(with_user_line(error)) from error


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of each property."""
    if metafunc.module.__name__ == "lit_rlvr.conformance.test_conformance":
        findings = metafunc.config.stash[FINDINGS]
        metafunc.parametrize("finding", findings, ids=[finding.name for finding in findings])


def measure(config: pytest.Config) -> list[Finding]:
    """Measure the function that the options name.

    Raises:
        UserError: they name none or both, or it cannot be imported or called.
    """
    loss, advantage, expect = (config.getoption(name) for name in ("loss", "advantage", "expect"))
    if (loss is None) == (advantage is None):
        raise UserError("give --loss MODULE:FUNCTION or --advantage MODULE:FUNCTION")
    if loss is not None:
        return check_loss(import_function(loss, "--loss"), expect, config.getoption("stops_gradient"))
    return check_estimator(import_function(advantage, "--advantage"), expect)


def import_function(path: str, option: str) -> Callable[..., Any]:
    """Import a function by `module:name` or its dotted path; modules of the current folder are found.

    Raises:
        UserError: there is no such function, or it is something else.
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    found = import_path(option, path)
    if not callable(found) or inspect.isclass(found):
        raise UserError(f"{option}: {path!r} is {type_text(found)}, not a function")
    return found
