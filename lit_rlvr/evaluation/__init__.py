"""Sampling and judging completions without training: `lit-rlvr evaluate` and `lit-rlvr filter`."""
