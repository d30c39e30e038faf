"""The reading of final answers: find -> normalise characters -> parse by type -> compare by type.

`find` looks for the answer in a completion, `characters` replaces characters that look alike, `parse` returns every
value that a text can mean, and `compare` decides whether two values are equal. Each stage is pure: it takes text or
values and returns values. `lit_rlvr.answers.verdict` puts them together.
"""
