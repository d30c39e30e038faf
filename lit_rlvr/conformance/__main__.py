"""`python -m lit_rlvr.conformance --loss MODULE:FUNCTION --expect GRPO`: the kit by pytest, with any of its options."""

import importlib.util
import sys

if __name__ == "__main__":
    if importlib.util.find_spec("pytest") is None:
        sys.exit("lit_rlvr.conformance: error: pytest is not installed; pip install pytest")
    import pytest

    sys.exit(pytest.main(["-p", "lit_rlvr.conformance.plugin", "--pyargs", "lit_rlvr.conformance", *sys.argv[1:]]))
