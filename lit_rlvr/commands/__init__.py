"""The commands that are not a run's own path: one folder or file each."""
