"""Generated data sets: small tasks for tests, tutorials and studies."""
