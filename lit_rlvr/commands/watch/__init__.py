"""`lit-rlvr watch`: follows runs in a browser while they train."""

from lit_rlvr.commands.watch.command import run, watch

__all__ = ["run", "watch"]
