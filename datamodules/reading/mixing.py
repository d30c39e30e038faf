"""Several sets in one stream of prompts: their names, their weights, and the draw of the set of each prompt."""

from __future__ import annotations

import math
import os
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_rlvr.common.arguments import check_within, given_text
from lit_rlvr.common.seeds import derive_seed
from lit_rlvr.datamodules.reading.readers import GIVE_ROWS, HUB_NAME
from lit_rlvr.datamodules.reading.rows import rank_zero_warn
from lit_rlvr.datamodules.reading.stream import Cursor, PromptStream
from lit_rlvr.errors import UserError, refuse_all
from lit_rlvr.types import Prompt


def named_files(train: Any) -> tuple[dict[str, str], dict[str, float]]:
    """Return the files and weights that a list of files, or {file: weight}, names, both by the names of the sets.

    A list has no weights; other values have no files either. A set is called like its file, without folder and ending:
    `math` of `data/math.jsonl.gz`. If two would be called the same, all are called by what tells them apart: the whole
    stem (`a.v1`), the folder (`gsm8k` of `gsm8k/train.jsonl`), both (`gsm8k_train`), or the file's name.

    Raises:
        UserError: two files have the same name.
    """
    weights = train if isinstance(train, Mapping) else {}
    is_text = isinstance(train, Sequence | Mapping) and not isinstance(train, str)
    has_weights = all(isinstance(weight, int | float) for weight in weights.values())  # else it is a `DatasetDict`
    if not (is_text and train and has_weights and all(isinstance(file, str | os.PathLike) for file in train)):
        return {}, {}
    files = [os.fspath(file) for file in train]
    words = next((file for file in files if not _may_be_file(file)), "")
    if words:
        raise UserError(f"data.train: {given_text(words)} is no file and no hub name; {GIVE_ROWS}")
    names = [_short_name(file) for file in files]
    for longer in (_stem, _folder, _folder_and_stem, _file_name):
        if len(set(names)) == len(names):
            break
        if len({*map(longer, files)}) == len(files):
            names = []
            for file in files:
                names.append(re.sub(r"[@:]", "_", longer(file)))
    refuse_twice(
        names, "data.train", "files are", "rename one, or give data modules with a `name` each (data: Mixture)"
    )
    return dict(zip(names, files, strict=True)), dict(zip(names, weights.values(), strict=False))


_FORMAT = re.compile(r"\.(jsonl|json|csv|tsv|parquet|arrow)(\.gz)?$")
"""The ending that says how to read a file."""


def _may_be_file(text: str) -> bool:
    """Return False for a prompt in the place of a row: no such file exists, and it is no path and no hub name."""
    if _FORMAT.search(text) or os.path.exists(text):  # Path.exists raises where a text is too long for a path
        return True
    return len(text.split()) < 2 and ("/" in text or HUB_NAME.fullmatch(text) is not None)


def _short_name(file: str) -> str:
    return re.sub(r"[@:].*$|(\.\w+)+$", "", Path(file).name)


def _stem(file: str) -> str:
    return _FORMAT.sub("", Path(file).name)


def _folder(file: str) -> str:
    return Path(file).parent.name


def _folder_and_stem(file: str) -> str:
    return "_".join(filter(None, (_folder(file), _stem(file))))


def _file_name(file: str) -> str:
    return Path(file).name


def refuse_twice(names: Sequence[str], option: str, what: str, remedy: str) -> None:
    """Refuse two parts of the same name.

    Args:
        names: names of the parts.
        option: the option that has them.
        what: what the parts are, for the message.
        remedy: what to do, for the message.
    """
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"{option}: two {what} called {twice}; {remedy}")


def check_weights(weights: Mapping[str, float], known: Sequence[str], option: str) -> None:
    """Refuse weights that are negative or all 0, that name no set, or that leave out a set.

    Args:
        weights: name of a set -> its weight.
        known: the names of the sets.
        option: the option that the weights come from.
    """
    check_within("[0, inf)", option, **weights)
    problems = []
    for name in weights:
        if name not in known:
            problems.append(
                f"{option}: there is no set {name!r} with training prompts; the sets are {', '.join(known)} (each file "
                "of a list is one)"
            )
    refuse_all(problems)
    missing = [name for name in known if name not in weights]
    if missing:
        raise UserError(f"{option}: {', '.join(missing)} has no weight; give one, 0 if it is not to be drawn")
    total = sum(weights.values())
    if not total:
        raise UserError(f"{option}: all weights are 0, so there is no set to draw from; raise one")
    if not math.isfinite(total):
        raise UserError(f"{option}: the weights sum to infinity; give smaller ones, of which only the ratios count")
    looks_like_shares = all(weight <= 1 for weight in weights.values()) and not set(weights.values()) <= {0, 1}
    if looks_like_shares and not math.isclose(total, 1, abs_tol=0.005):
        drawn = ", ".join(f"{name} {weight / total:.1%}" for name, weight in weights.items())
        rank_zero_warn(f"{option}: the shares sum to {total:.3g} and not to 1; only their ratios count: {drawn}")


class MixedStream(PromptStream):
    """An endless stream of several sets: each prompt's set is drawn at random, and then that set's own next prompt.

    The draw depends on (run seed, data seed, number of the prompt) alone. A cursor counts all prompts as `epoch` and
    `position`, and those of each set as `set/<name>`. A fixed pattern of sets would put each of them into minibatches
    of its own, because these are split by position.

    Args:
        weights: name of a set -> how often it is drawn, in relation to the others.
        prompts: the prompts of all sets.
        seed: the data's seed.
        run_seed: the run's seed.
        options: further arguments of `PromptStream`, for all sets.
    """

    def __init__(
        self, weights: Mapping[str, float], prompts: Sequence[Prompt], seed: int, run_seed: int, *options: Any
    ) -> None:
        super().__init__(prompts, seed, run_seed, *options)
        self.weights = dict(weights)
        self.streams = {}
        for name in weights:
            of_set = []
            for prompt in prompts:
                if prompt.sample.dataset == name:
                    of_set.append(prompt)
            self.streams[name] = PromptStream(of_set, derive_seed(seed, name), run_seed, *options)

    def take(self, count: int, cursor: Cursor) -> tuple[list[Prompt], Cursor]:
        number = cursor["epoch"] * len(self) + cursor["position"]
        after = dict(cursor)
        prompts_taken = []
        for n in range(number, number + count):
            draw = random.Random(derive_seed(self.run_seed, "mixture", self.seed, n))
            (name,) = draw.choices([*self.weights], [*self.weights.values()])
            prompts, place = self.streams[name].take(1, self.place(name, after))
            after[f"set/{name}"] = place["epoch"] * len(self.streams[name]) + place["position"]
            prompts_taken += prompts
        epoch, position = divmod(number + count, len(self))
        return prompts_taken, after | {"epoch": epoch, "position": position}

    def place(self, name: str, cursor: Cursor) -> Cursor:
        """Return the cursor of a set's own stream."""
        epoch, position = divmod(cursor.get(f"set/{name}", 0), len(self.streams[name]))
        return {"epoch": epoch, "position": position}

    def epoch_of(self, sample_id: str, cursor: Cursor) -> int:
        return self.place(self.by_id[sample_id].sample.dataset, cursor)["epoch"]
