"""The check of one completion's instructions, strictly and loosely, which runs in a reward worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lit_rlvr.rewards.instructions.rows import Instruction


class Followed(NamedTuple):
    """Whether a text follows an instruction: as it is, and in one of its loose variants."""

    strict: bool
    loose: bool


def check_instructions(text: str, instructions: Sequence[Instruction]) -> list[Followed]:
    """Check a text by each instruction; an empty text follows none."""
    results = []
    for instruction in instructions:
        follows = []
        for variant in loose_variants(text):
            follows.append(_follows(variant, instruction))
        results.append(Followed(follows[0], any(follows)))
    return results


def _follows(text: str, instruction: Instruction) -> bool:
    if not text.strip():
        return False
    return bool(instruction.find_check()(text, **instruction.arguments))


def loose_variants(text: str) -> list[str]:
    """Return a text, then its variants in IFEval's loose accuracy.

    They are the text without its first line, its last line or both, and each of these without its asterisks.
    """
    lines = text.split("\n")
    cut = [text]
    for part in (lines[1:], lines[:-1], lines[1:-1]):
        cut.append("\n".join(part).strip())
    return [*cut, *(variant.replace("*", "") for variant in cut)]
