"""Fingerprints of the training data, so that a checkpoint resumes only on the data it was trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from lit_rlvr.datamodules.reading.stream import PromptStream
from lit_rlvr.errors import UserError

MEANING = {
    "count": "the number of training prompts",
    "ids": "the prompts' ids or their order in the file",
    "tokens": "the prompts' text or tokens",
    "images": "the images",
    "answers": "the reference answers",
    "seeds": "the seeds of the order (data seed, seed_everything)",
}
"""Part of a fingerprint -> its name in messages."""


def fingerprint(stream: PromptStream) -> dict[str, str]:
    """Everything that determines the order and content of the training prompts, one short hash or number per part."""
    prompts = stream.prompts
    return {
        "count": str(len(prompts)),
        "ids": _digest(prompt.sample.id for prompt in prompts),
        "tokens": _digest(" ".join(map(str, prompt.token_ids)) for prompt in prompts),
        "images": _digest(" ".join(getattr(prompt.sample.images, "keys", ())) for prompt in prompts),
        "answers": _digest(prompt.sample.answer for prompt in prompts),
        "seeds": f"{stream.seed}, {stream.run_seed}",
    }


def difference(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """The differences between two fingerprints, in words; "" if there are none."""
    parts = [part for part in MEANING if then.get(part) != now.get(part)]
    if "count" in parts:  # then all hashes differ, which says nothing
        parts = [part for part in parts if part in ("count", "seeds")]
    shown = {"count", "seeds"}
    return "; ".join(f"{MEANING[p]}" + (f" was {then.get(p)}, is {now[p]}" if p in shown else "") for p in parts)


def check_same(then: Mapping[str, str] | None, now: Mapping[str, str] | None) -> None:
    """Refuse to resume on different training data.

    Args:
        then: the checkpoint's fingerprint; None: nothing was restored.
        now: the fingerprint of the current data; None: not read yet.
    """
    changed = difference(then, now) if then and now else ""
    if changed:
        raise UserError(f"the training data are not those of the checkpoint, it cannot be resumed with them: {changed}")


def _digest(texts: Iterable[str]) -> str:
    """A hash of a sequence of texts; moving text from one item to the next changes it."""
    total = hashlib.sha256()
    for text in texts:
        total.update(hashlib.sha256(text.encode()).digest())
    return total.hexdigest()[:16]
