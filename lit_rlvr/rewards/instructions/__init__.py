"""Verifiers of instructions: constraints on a text, such as a number of words, each checked by a function."""
