"""`lit-rlvr report`: shows run folders on one page, from the files that `fit` wrote."""
