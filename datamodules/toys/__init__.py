"""Data sets that are generated or drawn: small tasks for tests, tutorials and studies."""
