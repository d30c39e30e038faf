"""Python imports this at the start of processes whose PYTHONPATH names this folder (see `packages.repair_children`)."""

from lit_rlvr.packages import repair

repair()
