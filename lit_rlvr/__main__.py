"""`python -m lit_rlvr`: the console script."""

from lit_rlvr.cli.main import main

main()
