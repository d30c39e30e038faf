"""Import this to make the short class names of all rewards known: only imported classes have one."""

from lit_rlvr.rewards import (  # noqa: F401
    choice,
    code,
    format,
    length,
    math,
    open_answer,
    sql,
)
