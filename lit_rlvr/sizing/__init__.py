"""The memory and the time of a run, computed before it starts, and the strategies that fit."""
