"""Killable worker processes under limits, and the sandbox: shared by rewards, environments and evaluation."""
