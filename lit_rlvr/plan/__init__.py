"""`lit-rlvr plan`: what a run needs of each GPU's memory, before any weights are loaded."""
