"""Comparison: a grid of algorithms x tasks x seeds on an equal budget, each cell an ordinary `fit`.

`study.py` reads what is to be compared, `folder.py` and `processes.py` run it, `numbers.py` and `significance.py` say
what came out, `tables.py` and `figures.py` show it.
"""

from lit_rlvr.compare.command import compare, run
from lit_rlvr.compare.study import Study, load_study

__all__ = ["Study", "compare", "load_study", "run"]
