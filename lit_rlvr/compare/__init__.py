"""Comparison: a grid of algorithms x tasks x seeds on an equal budget, each cell an ordinary `fit`.

`study.py` reads a study; `cells.py` says what a cell still has to do, and `folder.py`, `processes.py` and `cluster.py`
do it; `numbers.py` and `significance.py` compute the results; `tables.py`, `tables.py`, `figures.py` and
`figures.py` show them; `reproduce.py` sets them beside a paper's.
"""

from lit_rlvr.compare.command import compare, run
from lit_rlvr.compare.study import Study, load_study

__all__ = ["Study", "compare", "load_study", "run"]
