"""Tools of every package: arguments, files, terminal, log, seeds, optional packages, returned values, settings."""
