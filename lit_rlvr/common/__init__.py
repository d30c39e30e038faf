"""What every package uses: files, terminal, seeds, optional packages, checks of returned values, settings."""
