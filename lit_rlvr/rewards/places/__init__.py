"""Rewards of places in an image: boxes and points, written as each family of models writes them."""
