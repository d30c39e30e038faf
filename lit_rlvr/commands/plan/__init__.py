"""`lit-rlvr plan`: estimates the memory per GPU that a run needs, and its time, without loading weights."""
