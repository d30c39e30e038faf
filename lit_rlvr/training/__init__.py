"""The second half of the loop, from scored groups to optimizer steps; shared by all algorithms."""
