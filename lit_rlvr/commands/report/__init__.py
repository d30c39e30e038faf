"""`lit-rlvr report`: shows run folders on one page, from the files that `fit` wrote."""

from lit_rlvr.commands.report.page import run, write_report

__all__ = ["run", "write_report"]
