"""The files of a run and its life: folder, checkpoints, loggers, progress, signals, and the summary."""
