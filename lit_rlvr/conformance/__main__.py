"""`python -m lit_rlvr.conformance --loss MODULE:FUNCTION --expect GRPO`: the kit by pytest, with any of its options."""

import sys

import pytest

if __name__ == "__main__":
    sys.exit(pytest.main(["-p", "lit_rlvr.conformance.plugin", "--pyargs", "lit_rlvr.conformance", *sys.argv[1:]]))
