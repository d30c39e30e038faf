"""`lit-rlvr report`: run folders as one page. Nothing is computed anew; it shows what `fit` left."""

from lit_rlvr.report.command import run, write_report

__all__ = ["run", "write_report"]
