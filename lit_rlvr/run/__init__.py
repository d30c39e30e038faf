"""What a run writes: logs, samples, plots, checkpoints, and its summary."""
