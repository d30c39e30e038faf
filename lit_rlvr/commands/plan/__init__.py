"""`lit-rlvr plan`: estimates the memory per GPU that a run needs, without loading weights."""
