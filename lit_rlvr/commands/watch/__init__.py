"""`lit-rlvr watch`: follows runs while they train, in a browser or in the terminal."""

from lit_rlvr.commands.watch.command import run, watch

__all__ = ["run", "watch"]
