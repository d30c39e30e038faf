"""Runs as the command line builds them, without training."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lit_rlvr.cli.lightning_cli import RLVRCLI
from lit_rlvr.configs import find_configs


class Built(RLVRCLI):
    """`lit-rlvr fit` up to the moment it would train."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def build_here(config: str | Path, model: Path, root: Path, **more: Any) -> Built:
    """A config with another model, on this machine.

    Args:
        root: the run folder. more: further options by their dotted names.
    """
    swapped = {
        "model.init_args.model": model,
        "rollout.engine": "hf",
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        "trainer.strategy": "auto",
        "trainer.precision": "32-true",
        "trainer.logger": "false",
        "trainer.default_root_dir": root,
        **more,
    }
    options = [f"--{key}={value}" for key, value in swapped.items()]
    with ExitStack() as until_end:
        return Built(["fit", *find_configs(["--config", str(config), *options])], until_end)
