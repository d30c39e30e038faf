"""The 58 instructions of IFBench (Pyatkin et al. 2025), checked by the package `if-verifiable`, which has its code."""

from __future__ import annotations

from functools import cache
from typing import Any

from lit_rlvr.common.packages import installer, is_installed
from lit_rlvr.errors import UserError
from lit_rlvr.rewards.instructions.ifeval import Check

NEEDS = "emoji immutabledict nltk syllapy"
"""The packages that IFBench's part of if-verifiable needs; all of if-verifiable needs a package without a wheel."""
CORPORA = {"punkt_tab": "tokenizers", "stopwords": "corpora", "averaged_perceptron_tagger_eng": "taggers"}
"""Data of nltk that IFBench reads -> the folder where nltk has them."""


def find_ifbench_check(name: str, hint: str) -> Check:
    """Return the check of an instruction of IFBench.

    Args:
        name: the instruction's name in the data.
        hint: what it may be instead, for the message.

    Raises:
        UserError: IFBench has none of this name, or its package or data are not installed.
    """
    if not is_installed("if_verifiable"):
        raise UserError(
            f"the instruction {name!r} is not of IFEval, IFTrain or Tulu 3{hint}; for those of "
            f"IFBench: {installer()} --no-deps if-verifiable, and {installer()} {NEEDS}"
        )
    if name not in _registry():
        instead = f"; {hint}" if hint else ""
        raise UserError(f"the instruction {name!r} is not of IFEval, IFTrain, Tulu 3 or IFBench{instead}")
    missing = []
    for data, folder in CORPORA.items():
        if not _has_data(f"{folder}/{data}"):
            missing.append(data)
    if missing:
        raise UserError(
            f"the instruction {name!r} is checked with nltk's data, of which {', '.join(missing)} are not there; "
            f"python -m nltk.downloader {' '.join(missing)}"
        )

    def check(text: str, **arguments: Any) -> bool:
        instruction = _registry()[name](name)
        instruction.build_description(**arguments)
        return bool(instruction.check_following(text))

    return check


@cache
def _registry() -> dict[str, Any]:
    from if_verifiable.ifbench.instructions_registry import INSTRUCTION_DICT

    return dict(INSTRUCTION_DICT)


@cache
def _has_data(path: str) -> bool:
    import nltk

    try:
        nltk.data.find(path)
    except LookupError:
        return False
    return True
