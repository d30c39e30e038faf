"""The order of prompts: an endless shuffled stream, its loaders, and the fingerprint of its data."""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import MappingProxyType

from lit_rlvr.common.arguments import given_text
from lit_rlvr.common.columns import is_missing, lookup, single
from lit_rlvr.common.seeds import derive_seed
from lit_rlvr.distributed.checkpoints import NEW_RUN
from lit_rlvr.errors import UserError
from lit_rlvr.types import Prompt, PromptBatch, Sample

Cursor = dict[str, int]

START_CURSOR: Cursor = {"epoch": 0, "position": 0}


class PromptStream:
    """An endless stream of prompts: every epoch is a new permutation of all of them, without retired ones.

    Args:
        prompts: the training prompts, in file order.
        seed: the data seed.
        run_seed: the run's seed (seed_everything); the order depends on both.
        keys: sample id -> key. In every epoch, prompts come by rising key, and those with equal keys are shuffled.
        is_retired: returns whether a sample id is left out of an epoch; its answers change only between iterations.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        seed: int,
        run_seed: int = 0,
        keys: Mapping[str, float] = MappingProxyType({}),
        is_retired: Callable[[str, int], bool] = lambda sample_id, epoch: False,
    ) -> None:
        if not prompts:
            raise UserError("there is no training prompt")
        self.prompts = list(prompts)
        self.by_id = {prompt.sample.id: prompt for prompt in prompts}
        self.seed = seed
        self.run_seed = run_seed
        self.keys = keys
        self.is_retired = is_retired
        self._latest: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        """Return the number of prompts in one epoch."""
        return len(self.prompts)

    def order(self, epoch: int) -> list[int]:
        """Return the permutation of an epoch, which depends on (run seed, data seed, epoch) and the keys alone."""
        if self._latest[0] != epoch:
            order = list(range(len(self.prompts)))
            random.Random(derive_seed(self.run_seed, "order", self.seed, epoch)).shuffle(order)
            order.sort(key=lambda i: self.keys.get(self.prompts[i].sample.id, 0.0))
            self._latest = (epoch, order)
        return self._latest[1]

    def take(self, count: int, cursor: Cursor) -> tuple[list[Prompt], Cursor]:
        """Return the next `count` prompts from `cursor`, across epoch boundaries, and the cursor after them.

        If all prompts are retired, epochs pass until the first comes back.
        """
        epoch = cursor["epoch"]
        position = cursor["position"]
        prompts: list[Prompt] = []
        while len(prompts) < count:
            prompt = self.prompts[self.order(epoch)[position]]
            if not self.is_retired(prompt.sample.id, epoch):
                prompts.append(prompt)
            position += 1
            if position >= len(self.prompts):
                epoch = epoch + 1
                position = 0
        return prompts, {"epoch": epoch, "position": position}

    def epoch_of(self, sample_id: str, cursor: Cursor) -> int:
        """Return the epoch of a prompt's set at a cursor."""
        return cursor["epoch"]

    def retired_share(self, cursor: Cursor) -> float:
        """Return the share of prompts that are retired at a cursor."""
        return sum(self.is_retired(name, self.epoch_of(name, cursor)) for name in self.by_id) / len(self)


NUMBER = re.compile(
    r"(?<![\w.])[+-]?(?:\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
    r"|\d+(?:\.\d+)?"
)
"""A number in a text, with its sign, thousands and exponent; behind a letter, as in `level3`, its digits."""


def difficulty_of(sample: Sample, column: str) -> float:
    """Return the number in a column of a sample's row, or the last number in its text, such as 3 in "Level 3".

    Raises:
        UserError: there is none.
    """
    cell = lookup(sample.row, column)
    cell = single(cell)
    numbers = [] if is_missing(cell) else NUMBER.findall(str(cell))
    if not numbers:
        raise UserError(
            f"{sample.source or sample.id}: data.order: difficulty needs a number in the column {column!r}, not "
            f"{given_text(cell)}; name the column with `columns: {{difficulty: COLUMN}}`"
        )
    return float(numbers[-1].replace(",", ""))


def order_keys(samples: Sequence[Sample], order: str, difficulty: Callable[[Sample], float]) -> dict[str, float]:
    """Return sample id -> the key by which an epoch is sorted; {} = an epoch is shuffled.

    Args:
        samples: the training samples, in file order.
        order: "shuffled", "given" or "difficulty".
        difficulty: returns the difficulty of a sample.
    """
    keys: dict[str, float] = {}
    for number, sample in enumerate(samples):
        if order == "given":
            keys[sample.id] = number
        elif order == "difficulty":
            keys[sample.id] = difficulty(sample)
    return keys


Prepare = Callable[[Prompt], Prompt]


class TrainLoader:
    """Batches of one epoch, starting at the DataModule's committed cursor.

    Each rank gets a contiguous slice of every global batch; `cursor` counts global prompts, so it is the same on all
    ranks. Prompts left over at the end of an epoch go into the first batch of the next one. With `covers_all` they make
    one more batch, which the first prompts of the next epoch fill.

    Args:
        stream: all training prompts.
        prompts_per_rollout: size of the global batch.
        committed: returns the cursor of the next unseen prompt; if training took more prompts than the batch held
            (dynamic sampling), the next batch starts after them.
        rank: this process's rank.
        world: number of processes.
        name: the set's name.
        prepare: makes a prompt ready for a batch.
        covers_all: whether one epoch has every prompt.
    """

    def __init__(
        self,
        stream: PromptStream,
        prompts_per_rollout: int,
        committed: Callable[[], Cursor],
        rank: int = 0,
        world: int = 1,
        name: str = "",
        prepare: Prepare = lambda prompt: prompt,
        covers_all: bool = False,
    ) -> None:
        if prompts_per_rollout % world:
            raise UserError(f"prompts_per_rollout={prompts_per_rollout} is not divisible by the {world} processes")
        if len(stream) < prompts_per_rollout:
            raise UserError(
                f"there are {len(stream)} training prompts, fewer than prompts_per_rollout={prompts_per_rollout}: "
                "lower it, or give more data"
            )
        self.stream = stream
        self.prompts_per_rollout = prompts_per_rollout
        self.committed = committed
        self.rank = rank
        self.world = world
        self.name = name
        self.prepare = prepare
        self.covers_all = covers_all

    def __len__(self) -> int:
        """Return the number of batches in one epoch."""
        batches, left = divmod(len(self.stream), self.prompts_per_rollout)
        return batches + (self.covers_all and left > 0)

    def __iter__(self) -> Iterator[PromptBatch]:
        cursor = self.committed()
        for _ in range(len(self)):
            cursor = max(cursor, self.committed(), key=lambda c: (c["epoch"], c["position"]))
            batch = self.take(cursor)
            cursor = batch.cursor
            yield batch

    def take(self, cursor: Cursor) -> PromptBatch:
        """Return this rank's slice of the global batch that begins at `cursor`."""
        prompts, after = self.prompts_at(cursor)
        ready = [self.prepare(prompt) for prompt in prompts]
        return PromptBatch(ready, cursor=after, name=self.name)

    def prompts_at(self, cursor: Cursor) -> tuple[list[Prompt], Cursor]:
        """Return this rank's prompts of the global batch that begins at `cursor`, and the cursor after the batch."""
        share = self.prompts_per_rollout // self.world
        prompts, after = self.stream.take(self.prompts_per_rollout, cursor)
        return prompts[self.rank * share :][:share], after


class PreparesAhead:
    """Prepares prompts for batches; those with images ahead of time, as far as they are known.

    What it returns depends on the prompt alone, so a prompt that was not begun, or is never asked for, changes nothing.

    Args:
        prepare: makes a prompt ready for a batch.
    """

    def __init__(self, prepare: Prepare) -> None:
        self._prepare = prepare
        self._begun: dict[str, Future[Prompt]] = {}  # by sample id
        self._thread: ThreadPoolExecutor | None = None

    def begin(self, prompts: Iterable[Prompt]) -> None:
        """Begin to prepare the prompts with images, in order, and drop those begun before."""
        self.drop()
        for prompt in prompts:
            if prompt.sample.images:
                if self._thread is None:
                    self._thread = ThreadPoolExecutor(1, "lit-rlvr-ahead")
                self._begun[prompt.sample.id] = self._thread.submit(self._prepare, prompt)

    def __call__(self, prompt: Prompt) -> Prompt:
        """Return a prompt ready for a batch; wait for it, or prepare it now.

        Raises:
            UserError: an image cannot be read any more.
        """
        begun = self._begun.pop(prompt.sample.id, None)
        if begun is None:
            return self._prepare(prompt)
        return begun.result()

    def drop(self) -> None:
        """Prepare no further prompts."""
        for begun in self._begun.values():
            begun.cancel()
        self._begun.clear()


class EvalLoader:
    """Batches with every prompt of a set once, in file order: rank r takes prompts[r::world].

    All ranks yield the same number of batches, so that collectives (sharded weights) cannot hang; the last batch may be
    empty on some ranks.

    Args:
        prompts: the whole set.
        prompts_per_batch: prompts in one batch over all ranks, rounded up to a multiple of `world`.
        name: the set's name in metrics.
        rank: this process's rank.
        world: number of processes.
        prepare: makes a prompt ready for a batch.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        prompts_per_batch: int,
        name: str,
        rank: int = 0,
        world: int = 1,
        prepare: Prepare = lambda prompt: prompt,
    ) -> None:
        self.name = name
        self.prepare = prepare
        self.share = math.ceil(prompts_per_batch / world)
        self.prompts = list(prompts[rank::world])
        self.batches = math.ceil(len(prompts) / (self.share * world))

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[PromptBatch]:
        for i in range(self.batches):
            prompts = self.prompts[i * self.share :][: self.share]
            yield PromptBatch([self.prepare(prompt) for prompt in prompts], name=self.name)


PART_NAMES = {
    "count": "the number of training prompts",
    "ids": "the prompts' ids or their order in the file",
    "tokens": "the prompts' text or tokens",
    "images": "the images",
    "answers": "the reference answers",
    "seeds": "the seeds of the order (data seed, seed_everything)",
}
"""Names of a fingerprint's parts in messages."""


def fingerprint(stream: PromptStream) -> dict[str, str]:
    """Return all that determines the order and content of the training prompts: a short hash or number per part."""
    return prompt_hashes(stream.prompts) | {"seeds": f"{stream.seed}, {stream.run_seed}"}


def prompt_hashes(prompts: Sequence[Prompt]) -> dict[str, str]:
    """Return the number of prompts, and a short hash of each of their parts."""
    return {
        "count": str(len(prompts)),
        "ids": _digest(prompt.sample.id for prompt in prompts),
        "tokens": _digest(" ".join(map(str, prompt.token_ids)) for prompt in prompts),
        "images": _digest(" ".join(getattr(prompt.sample.images, "keys", ())) for prompt in prompts),
        "answers": _digest("\0".join(prompt.sample.references) for prompt in prompts),
    }


def difference(saved: Mapping[str, str], current: Mapping[str, str]) -> str:
    """Describe the differences between two fingerprints; "" if there are none."""
    parts = []
    for part in PART_NAMES:
        if saved.get(part) != current.get(part):
            parts.append(part)
    if "count" in parts:  # then all hashes differ, too
        parts = [part for part in parts if part in ("count", "seeds")]
    differences = []
    for p in parts:
        difference = PART_NAMES[p]
        if p in ("count", "seeds"):
            difference += f" was {saved.get(p)}, is {current[p]}"
        differences.append(difference)
    return "; ".join(differences)


def check_fingerprint(saved: Mapping[str, str] | None, current: Mapping[str, str] | None) -> None:
    """Refuse to resume on different training data.

    Args:
        saved: the checkpoint's fingerprint; None: no checkpoint.
        current: the fingerprint of the current data; None: not read yet.
    """
    if saved and current and (changed := difference(saved, current)):
        raise UserError(
            f"ckpt_path: the training data are not those of the checkpoint: {changed}; restore them, {NEW_RUN}"
        )


def _digest(texts: Iterable[str]) -> str:
    """Hash a sequence of texts, so that moving text from one item to the next changes the hash."""
    return hashlib.sha256(b"".join(hashlib.sha256(text.encode()).digest() for text in texts)).hexdigest()[:16]
