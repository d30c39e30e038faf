"""Comparison: a grid of algorithms x tasks x seeds on an equal budget, each cell an ordinary `fit`.

`study.py` reads a study, `folder.py` and `processes.py` run it, `numbers.py` and `significance.py` compute the results,
`tables.py` and `figures.py` show them.
"""

from lit_rlvr.compare.command import compare, run
from lit_rlvr.compare.study import Study, load_study

__all__ = ["Study", "compare", "load_study", "run"]
