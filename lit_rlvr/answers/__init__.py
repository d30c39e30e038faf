"""A checker of final answers: numbers, units, sets, intervals, matrices, equations, options and words.

```python
from lit_rlvr.answers import check

check("So there are 3/4, or 75%, left.", "0.75").correct  # True
```

It needs neither torch nor a run. A check goes through four stages: `find` looks for the answer in a completion,
`characters` replaces characters that look alike, `parse` returns every value that a text can mean, and `compare`
decides whether two values are equal. `verdict` puts them together. Each stage is pure.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

__all__ = ["Verdict", "check", "explain_check", "second_opinion"]


class Verdict(NamedTuple):
    """The verdict of `check` on a completion.

    Args:
        correct: its final answer equals a reference.
        status: "ok", or "parse_fail" if there is no answer.
        answer: the answer as it stands in the completion; "" if there is none.
    """

    correct: bool
    status: str
    answer: str


def __getattr__(name: str) -> Any:
    if name in __all__:  # the functions need sympy, which takes a second to load
        return getattr(import_module("lit_rlvr.answers.verdict"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
