"""`lit-rlvr init`: a folder to start from, with a config, code and tests that run at once.

Each kind is a folder of `projects/`, whose files `init` copies, with the project's name in place of `my_task`. All
kinds share one README.
"""
