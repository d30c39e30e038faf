"""Several processes: sums over them, weights and checkpoints split among them."""
