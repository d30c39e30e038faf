"""`lit-rlvr watch`: follows runs in a browser while they train."""
