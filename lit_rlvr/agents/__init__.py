"""Agents: programs that play episodes by calling the run's HTTP endpoint, which keeps the exact tokens."""
