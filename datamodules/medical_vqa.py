"""Questions on medical images, read in the layouts they are published in and split by modality."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from string import ascii_uppercase
from typing import Any

from lit_rlvr.datamodules.base import PromptDataModule, Split
from lit_rlvr.datamodules.modality import modality
from lit_rlvr.datamodules.reading.choices import as_options, letter_of, listed
from lit_rlvr.datamodules.reading.layouts import Layouts, Row
from lit_rlvr.datamodules.reading.modality_split import Disjoint, apart, draw_counts, evaluation_pool
from lit_rlvr.datamodules.reading.options import at_least_one
from lit_rlvr.datamodules.reading.rows import BadRow, as_images, as_text
from lit_rlvr.datamodules.reading.split import draw
from lit_rlvr.types import Sample


class MedicalVQA(PromptDataModule):
    """Medical images with closed and open questions: HuatuoGPT-Vision's evaluation data, MedVLM-R1, OmniMedVQA,
    VQA-RAD, PathVQA, SLAKE (its English questions), PMC-VQA.

    Each file's layout is recognised by the columns of the first row that fits a known one; for any other file give
    `columns`. The category is the modality, if the data name one. The answer of a multiple-choice question is its
    letter: the reward `Choice` judges letters, "yes" and "no", and `OpenAnswer` judges the rest.

    Args:
        train_modalities: number of training rows per modality, such as {MRI: 600}, drawn by `seed`; None = all.
        eval_modalities: number of validation (and test) rows per modality, drawn by `seed`; None = all. Without
            `validation` they are taken from `train`.
        disjoint: leave out training rows that share an image (`image`), or an image or the words of a question
            (`question`), with a validation or test row.
    """

    def __init__(
        self,
        train_modalities: dict[str, int] | None = None,
        eval_modalities: dict[str, int] | None = None,
        disjoint: Disjoint = "question",
        **kwargs: Any,
    ) -> None:
        super().__init__(validation_split=None, **kwargs)
        for counts in (train_modalities, eval_modalities):
            at_least_one(**counts or {})
        self.train_modalities, self.eval_modalities = _named(train_modalities), _named(eval_modalities)
        self.disjoint: Disjoint = disjoint
        self._layouts = Layouts(LAYOUTS)

    def sample(self, row: dict[str, Any], index: int, source: str) -> Sample:
        if self.columns:
            sample = super().sample(row, index, source)
            return replace(sample, category=modality(sample.category))
        fields = {"id": f"{self.name}:{index + 1}", **self._layouts.read(row, source)}
        return Sample(**fields, row=row, source=source)

    def rows(self, split: Split) -> Iterator[Sample | BadRow]:
        """The English rows of the requested modalities."""
        wanted = self.train_modalities if split == "train" else self.eval_modalities
        if split == "train" and wanted is not None and self.locations["validation"] is None:
            wanted = wanted | (self.eval_modalities or {})
        for row in super().rows(split):
            if isinstance(row, BadRow) or (
                (wanted is None or row.category in wanted) and row.row.get("q_lang", "en") == "en"
            ):
                yield row

    def load(self, split: Split) -> list[Sample]:
        """The rows of a split; training rows share nothing with validation and test rows (see `disjoint`)."""
        if split != "train":
            return draw(self._evaluation(split), self.eval_limit, self.seed)
        others = self._evaluation("validation") + self._evaluation("test")
        left = apart(self._read("train"), others, self.disjoint)
        option = f"train_modalities, without what evaluation has (disjoint={self.disjoint})"
        return draw(draw_counts(left, self.train_modalities, self.seed, option), self.limit, self.seed)

    def _evaluation(self, split: Split) -> list[Sample]:
        """The rows of a validation or test set, before `eval_limit`."""
        rows = self._read(split)
        if not rows and split == "validation" and self.eval_modalities is not None:
            rows = self._read("train")
            if self.disjoint == "question":
                rows = evaluation_pool(rows, self.eval_modalities, self.train_modalities or {}, self.seed)
        return draw_counts(rows, self.eval_modalities if rows else None, self.seed, "eval_modalities")


def _named(counts: dict[str, int] | None) -> dict[str, int] | None:
    return None if counts is None else {modality(name): count for name, count in counts.items()}


def read_huatuo(row: Row) -> dict[str, Any]:
    """HuatuoGPT-Vision's evaluation data: the answer is an option's text, or "?" if there is none."""
    answer, options = as_text(row["answer"], "answer"), as_options(row["options"])
    letter = letter_of(answer, options)
    if letter is None:
        raise BadRow(f"{answer!r} is not one of the options", "answer")
    return _closed(row["question"], options, letter, row["image"], row.get("subset") or row.get("dataset"))


def read_medvlm(row: Row) -> dict[str, Any]:
    """MedVLM-R1: `problem` lists the options, `solution` is the letter."""
    fields = _closed(row["problem"], as_options(row["options"]), row["solution"], row["image"], row.get("subset"))
    return fields | {"prompt": as_text(row["problem"], "problem")}


def read_omnimed(row: Row) -> dict[str, Any]:
    """OmniMedVQA: each option has its own column, and the answer is an option's text."""
    options = tuple(str(row[f"option_{x}"]).strip() for x in "ABCD" if row.get(f"option_{x}"))
    letter = letter_of(as_text(row["gt_answer"], "gt_answer"), options)
    if letter is None:
        raise BadRow(f"{row['gt_answer']!r} is not one of the options", "gt_answer")
    kind = row.get("modality_type") or row.get("modality")
    return _closed(row["question"], options, letter, row["image_path"], kind)


def read_pmc(row: Row) -> dict[str, Any]:
    """PMC-VQA: "Choice A" to "Choice D" ("A:text") and the letter in `Answer_label`."""
    options = tuple(str(row[f"Choice {x}"]).strip().removeprefix(f"{x}:").strip() for x in "ABCD")
    return _closed(row["Question"], options, row["Answer_label"], row["Figure_path"], "PMC-VQA")


def read_slake(row: Row) -> dict[str, Any]:
    """SLAKE: image files are in `imgs/`; closed questions name their options, which can be other than yes and no."""
    fields = _open(row["question"], row["answer"], f"imgs/{as_text(row['img_name'], 'img_name')}")
    return fields | {"id": as_text(row["qid"], "qid"), "category": modality(as_text(row["modality"], "modality"))}


def read_plain(row: Row) -> dict[str, Any]:
    """VQA-RAD and PathVQA: a closed question is one answered by yes or no."""
    return _open(row["question"], row["answer"], row["image"])


def _open(question: Any, answer: Any, image: Any) -> dict[str, Any]:
    return {"prompt": as_text(question, "question"), "answer": as_text(answer, "answer"), "images": as_images(image)}


def _closed(question: Any, options: tuple[str, ...], letter: Any, image: Any, kind: Any) -> dict[str, Any]:
    letter = as_text(letter, "answer").strip()
    if letter not in list(ascii_uppercase[: len(options)]):
        raise BadRow(f"{letter!r} is not the letter of one of {len(options)} options", "answer")
    fields = _open(question, letter, image)
    prompt = f"{fields['prompt']}\n{listed(options)}"
    return fields | {"prompt": prompt, "options": options, "category": modality(str(kind or ""))}


LAYOUTS = (
    ({"image", "problem", "solution", "options"}, read_medvlm),
    ({"image", "question", "options", "answer"}, read_huatuo),
    ({"image_path", "question", "gt_answer", "option_A"}, read_omnimed),
    ({"Figure_path", "Question", "Answer_label", "Choice A"}, read_pmc),
    ({"img_name", "question", "answer", "modality", "qid"}, read_slake),
    ({"image", "question", "answer"}, read_plain),
)
"""Columns that a layout needs -> its reader; the first layout that fits is used."""
