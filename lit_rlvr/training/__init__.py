"""From scored groups to optimizer steps: the second half of the loop, the same for every algorithm."""
