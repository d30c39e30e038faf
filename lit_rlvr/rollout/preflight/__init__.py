"""Checks before weights load: a run whose parts do not fit each other is refused."""
