"""`python -m lit_rlvr`: the console script."""

from lit_rlvr.main import main

main()
