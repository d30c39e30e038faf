"""Questions on medical images, read in the layouts they are published in and split by modality."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from lit_rlvr.common.arguments import check_within
from lit_rlvr.common.seeds import derive_seed
from lit_rlvr.datamodules.base import PromptDataModule
from lit_rlvr.datamodules.reading.cells import BadRow, as_text, without_tags
from lit_rlvr.datamodules.reading.choices import Options, find_label, find_letter, format_options, read_options
from lit_rlvr.datamodules.reading.images import as_images
from lit_rlvr.datamodules.reading.rows import DataRow
from lit_rlvr.datamodules.reading.split import Split, subsample
from lit_rlvr.errors import UserError
from lit_rlvr.types import Sample

SPELLINGS = {
    "MRI": re.compile(r"(?i)mri?\b|magnetic resonance"),  # "MR (Mag-netic Resonance Imaging)"
    "CT": re.compile(r"(?i)ct\b|computed tomography"),  # "CT(Computed Tomography)"; not "OCT (Optical ...)"
    "X-ray": re.compile(r"(?i)x-?\s?ray\b|radiograph"),  # "X-Ray"
}


def modality(text: str) -> str:
    """Return MRI, CT or X-ray for any known spelling; return any other text unchanged."""
    for name, spelling in SPELLINGS.items():
        if spelling.match(text.strip()):
            return name
    return text.strip()


Counts = Mapping[str, int]
Disjoint = Literal["image", "question"]


def draw_counts(samples: Sequence[Sample], counts: Counts | None, seed: int, option: str) -> list[Sample]:
    """Draw `counts[category]` samples of each category by seed, in file order; return all samples without counts.

    Args:
        samples: the samples.
        counts: category -> number of samples; None = all samples.
        seed: the seed of the draw.
        option: the option that the counts come from.

    Raises:
        UserError: a category has too few samples.
    """
    if counts is None:
        return list(samples)
    drawn: set[str] = set()
    for name, count in counts.items():
        rows = []
        for sample in samples:
            if sample.category == name:
                rows.append(sample)
        if len(rows) < count:
            raise UserError(f"{option}: {count} rows of {name} are wanted, {len(rows)} are left")
        drawn |= {sample.id for sample in subsample(rows, count, derive_seed(seed, name))}
    return [sample for sample in samples if sample.id in drawn]


def evaluation_pool(samples: Sequence[Sample], evaluation: Counts, training: Counts, seed: int) -> list[Sample]:
    """Return the rows to draw evaluation from, chosen so that enough questions are left to train on.

    Whole questions, in an order drawn by seed, join the pool until it has enough rows of each modality. If a modality
    is also trained on, the pool gets evaluation's share of it. Questions that training cannot use join first.

    Args:
        samples: the samples.
        evaluation: modality -> number of rows for evaluation.
        training: modality -> number of rows for training.
        seed: the seed of the order.
    """
    total = Counter(sample.category for sample in samples)
    needed = {}
    for name, count in evaluation.items():
        needed[name] = max(count, total[name] * count // (count + training[name]) if name in training else 0)
    rows_of: dict[str, Counter[str]] = {}
    for sample in samples:
        rows_of.setdefault(question_words(sample), Counter())[sample.category] += 1
    order = sorted(rows_of)
    random.Random(derive_seed("questions", seed)).shuffle(order)
    order.sort(key=lambda text: bool(rows_of[text].keys() & training.keys()))  # stable; unusable for training first
    pool: set[str] = set()
    have: Counter[str] = Counter()
    for text in order:
        lacks = any(have[name] < count and rows_of[text][name] for name, count in needed.items())
        if lacks or not rows_of[text].keys() & training.keys():
            pool.add(text)
            have += rows_of[text]
    kept = []
    for sample in samples:
        if question_words(sample) in pool:
            kept.append(sample)
    return kept


def without_overlap(samples: Sequence[Sample], evaluation: Sequence[Sample], disjoint: Disjoint) -> list[Sample]:
    """Return the samples that share no image with the evaluation and, for `question`, no question either."""
    images: set[str] = set()
    for sample in evaluation:
        images.update(image_hashes(sample))
    if disjoint == "question":
        questions = {question_words(sample) for sample in evaluation}
    else:
        questions = set()
    unseen = []
    for s in samples:
        if images.isdisjoint(image_hashes(s)) and question_words(s) not in questions:
            unseen.append(s)
    return unseen


def image_hashes(sample: Sample) -> Sequence[str]:
    """Return the content hashes of the sample's images."""
    return getattr(sample.images, "keys", ())


def question_words(sample: Sample) -> str:
    """Return the words of the question, without its options, case and punctuation."""
    text = sample.row.get("question") or sample.row.get("Question") or sample.prompt
    return " ".join(re.findall(r"\w+", str(text).lower()))


def _by_modality(counts: dict[str, int] | None) -> dict[str, int] | None:
    if counts is None:
        return None
    return {modality(name): count for name, count in counts.items()}


def read_huatuo(row: DataRow) -> dict[str, Any]:
    """Read HuatuoGPT-Vision's evaluation data: the answer is an option's text, or "?" if there is none."""
    answer = as_text(row["answer"], "answer")
    options = read_options(row["options"]).texts
    letter = find_letter(answer, options)
    if letter is None:
        raise BadRow(f"{answer!r} is not one of the options", "answer")
    return _closed(row["question"], options, letter, row["image"], row.get("subset") or row.get("dataset"))


def read_medvlm(row: DataRow) -> dict[str, Any]:
    """Read MedVLM-R1: `problem` lists the options, `solution` is the letter."""
    options = read_options(row["options"]).texts
    letter = _letter(row["solution"], options)
    fields = _closed(row["problem"], options, letter, row["image"], row.get("subset"))
    return fields | {"prompt": as_text(row["problem"], "problem")}


def read_omnimed(row: DataRow) -> dict[str, Any]:
    """Read OmniMedVQA: each option has its own column, and the answer is an option's text."""
    options = tuple(str(row[f"option_{x}"]).strip() for x in "ABCD" if row.get(f"option_{x}"))
    letter = find_letter(as_text(row["gt_answer"], "gt_answer"), options)
    if letter is None:
        raise BadRow(f"{row['gt_answer']!r} is not one of the options", "gt_answer")
    return _closed(row["question"], options, letter, row["image_path"], row.get("modality_type") or row.get("modality"))


def read_pmc(row: DataRow) -> dict[str, Any]:
    """Read PMC-VQA: "Choice A" to "Choice D" ("A:text") and the letter in `Answer_label`."""
    options = tuple(str(row[f"Choice {x}"]).strip().removeprefix(f"{x}:").strip() for x in "ABCD")
    return _closed(row["Question"], options, _letter(row["Answer_label"], options), row["Figure_path"], "PMC-VQA")


def read_slake(row: DataRow) -> dict[str, Any]:
    """Read SLAKE: image files are in `imgs/`; closed questions name their options, which need not be yes and no."""
    fields = _open(row["question"], row["answer"], f"imgs/{as_text(row['img_name'], 'img_name')}")
    return fields | {"id": as_text(row["qid"], "qid"), "category": modality(as_text(row["modality"], "modality"))}


def read_plain(row: DataRow) -> dict[str, Any]:
    """Read VQA-RAD and PathVQA: the answer to a closed question is yes or no."""
    return _open(row["question"], row["answer"], row["image"])


def _open(question: Any, answer: Any, image: Any) -> dict[str, Any]:
    return {"prompt": as_text(question, "question"), "answer": answer, "images": as_images(image)}


def _letter(answer: Any, options: tuple[str, ...]) -> str:
    """Return the letter that an answer names: "B", "(B)", "B) liver"."""
    letter = find_label(without_tags(as_text(answer, "answer"), "answer"), Options(options))
    if letter is None:
        raise BadRow(f"{answer!r} is not the letter of one of {len(options)} options", "answer")
    return letter


def _closed(question: Any, options: tuple[str, ...], letter: str, image: Any, kind: Any) -> dict[str, Any]:
    fields = _open(question, letter, image)
    prompt = f"{fields['prompt']}\n{format_options(options)}"
    return fields | {"prompt": prompt, "options": options, "category": modality("" if kind is None else str(kind))}


MEDICAL_LAYOUTS = (
    ({"image", "problem", "solution", "options"}, read_medvlm),
    ({"image", "question", "options", "answer"}, read_huatuo),
    ({"image_path", "question", "gt_answer", "option_A"}, read_omnimed),
    ({"Figure_path", "Question", "Answer_label", "Choice A"}, read_pmc),
    ({"img_name", "question", "answer", "modality", "qid"}, read_slake),
    ({"image", "question", "answer"}, read_plain),
)
"""(columns that a layout needs, its reader); the first layout that fits applies."""


class MedicalVQA(PromptDataModule):
    """Medical images with closed and open questions, such as OmniMedVQA, VQA-RAD, PathVQA and SLAKE.

    The known layouts are HuatuoGPT-Vision's evaluation data, MedVLM-R1, OmniMedVQA, VQA-RAD, PathVQA, SLAKE (its
    English questions) and PMC-VQA. Each file's layout is recognised by the columns of the first row that fits a known
    one; for any other file give `columns`. The category is the modality, if the data name one. The answer of a
    multiple-choice question is its letter: the reward `Choice` judges letters, "yes" and "no", and `OpenAnswer` judges
    the rest.

    Args:
        train_modalities: number of training rows per modality, such as {MRI: 600}, drawn by `seed`; None = all.
        eval_modalities: number of validation (and test) rows per modality, drawn by `seed`; None = all. Without
            `validation` they are taken from `train`.
        disjoint: leave out training rows that share an image (`image`), or an image or the words of a question
            (`question`), with a validation or test row.
    """

    layouts = MEDICAL_LAYOUTS

    def __init__(
        self,
        train_modalities: dict[str, int] | None = None,
        eval_modalities: dict[str, int] | None = None,
        disjoint: Disjoint = "question",
        **kwargs: Any,
    ) -> None:
        super().__init__(validation_split=None, **kwargs)
        check_within("[1, inf)", "data.train_modalities", **train_modalities or {})
        check_within("[1, inf)", "data.eval_modalities", **eval_modalities or {})
        self.train_modalities = _by_modality(train_modalities)
        self.eval_modalities = _by_modality(eval_modalities)
        self.disjoint: Disjoint = disjoint

    def sample(self, row: dict[str, Any], index: int, source: str) -> Sample:
        sample = super().sample(row, index, source)
        return replace(sample, category=modality(sample.category))

    def rows(self, split: Split) -> Iterator[Sample | BadRow]:
        """Yield the English rows of the requested modalities."""
        if split != "train":
            wanted = self.eval_modalities
        elif self.train_modalities is not None and self.locations["validation"] is None:
            wanted = self.train_modalities | (self.eval_modalities or {})
        else:
            wanted = self.train_modalities
        for row in super().rows(split):
            if isinstance(row, BadRow) or (
                (wanted is None or row.category in wanted) and row.row.get("q_lang", "en") == "en"
            ):
                yield row

    def load(self, split: Split) -> list[Sample]:
        """Return the rows of a split; training rows share nothing with validation and test rows (see `disjoint`)."""
        if split != "train":
            return self._draw_rows(self._evaluation(split), split)
        others = self._evaluation("validation") + self._evaluation("test")
        left = without_overlap(self._read("train"), others, self.disjoint)
        option = f"train_modalities, without what evaluation has (disjoint={self.disjoint})"
        return self._draw_rows(draw_counts(left, self.train_modalities, self.seed, option), split)

    def _evaluation(self, split: Split) -> list[Sample]:
        """Return the rows of a validation or test set, before `evaluation.limit`."""
        rows = self._read(split)
        if not rows and split == "validation" and self.eval_modalities is not None:
            rows = self._read("train")
            if self.disjoint == "question":
                rows = evaluation_pool(rows, self.eval_modalities, self.train_modalities or {}, self.seed)
        return draw_counts(rows, self.eval_modalities if rows else None, self.seed, "eval_modalities")
