"""Comparison of algorithms over tasks and seeds on an equal budget, with an ordinary `fit` for each cell.

`study.py` reads a study; `study_folder.py` keeps its progress and lists what remains; `cells.py` runs it, here or on a
cluster; `study_results.py` and `significance.py` compute the results; `study_tables.py` and `figures.py` show them;
`reproduce.py` compares them with a paper's.
"""
