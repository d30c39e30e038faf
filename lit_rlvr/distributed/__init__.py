"""Distributed training: collectives, sharded weights and sharded checkpoints."""
