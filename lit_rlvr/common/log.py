"""The log of our messages."""

import logging

log = logging.getLogger("lit_rlvr")
"""The logger of our messages; `show_messages` of `run/rank_zero.py` prints them."""
