"""Tools of every package: files, terminal, seeds, optional packages, checks of returned values, settings."""
