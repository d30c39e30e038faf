"""One optimizer step: what is planned, run, measured and taken, and what happens when a part of it fails."""
