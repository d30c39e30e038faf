"""A test of each property of the function that `--loss` or `--advantage` names; see `plugin.py`."""

import pytest

from lit_rlvr.conformance.properties import Finding


@pytest.fixture
def finding() -> Finding:
    """Fail where the plugin, which parametrizes the test, is not loaded."""
    return pytest.fail("run it by `python -m lit_rlvr.conformance --loss MODULE:FUNCTION`", pytrace=False)


def test_property(finding: Finding) -> None:
    if not finding.ok:
        pytest.fail(str(finding), pytrace=False)
