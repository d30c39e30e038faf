"""What the metrics of a run say of it: what it has learnt (progress), what fell (falls), what is wrong (findings)."""
