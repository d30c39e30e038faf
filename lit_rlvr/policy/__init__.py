"""The trained model: loading it, laying out its inputs, scoring tokens, and checking the result."""
