"""What a run leaves behind: logs, samples, pictures, checkpoints, and its summary."""
