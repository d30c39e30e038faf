"""The console script's entry: sets what must be set before torch loads, then runs the command line."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run `lit-rlvr` with the process's arguments and exit with its status."""
    # Threads that spin while they wait would keep the cores from vLLM's and the reward workers' threads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from lit_rlvr.cli import run

    sys.exit(run(sys.argv[1:]))
