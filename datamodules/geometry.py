"""Geometry and visual mathematics, read in the layouts that the data sets are published in."""

from __future__ import annotations

import re
from string import ascii_uppercase
from typing import Any

from lit_rlvr.datamodules.base import PromptDataModule
from lit_rlvr.datamodules.reading.cells import as_answers, as_text
from lit_rlvr.datamodules.reading.choices import find_letter, format_options, read_options
from lit_rlvr.datamodules.reading.images import PLACEHOLDER, as_images
from lit_rlvr.datamodules.reading.rows import DataRow

MATHVERSE_CHOICE = re.compile(r"^\s*\(?([A-H])\)?\s*[:.)]\s*(.*?)\s*$", re.MULTILINE)
"""One of MathVerse's choices, on a line of its own: "A:145°", "(B) 35°"."""

MATHVISION_MARK = re.compile(r"<image\d+>")
"""MathVision's marker of its one picture, "<image1>"; higher numbers mark parts of that picture."""

DEGREES = re.compile(r"\s*(?:°|\^\s*\{?\s*\\circ\s*\}?|\\degree|\bdegrees?\b)\s*\.?$")


def read_geometry3k(row: DataRow) -> dict[str, Any]:
    """Read `images`, a `problem` with `<image>`, and the value as `answer`, without its degree sign.

    The file's `choices` are not part of the problem's text, so it is not a multiple-choice question.
    """
    return {
        "prompt": as_text(row["problem"], "problem"),
        "answer": [DEGREES.sub("", answer) for answer in as_answers(row["answer"])],
        "images": as_images(row["images"]),
    }


def read_mathverse(row: DataRow) -> dict[str, Any]:
    """Read `question`, `image` ("" in the text-only version), `problem_version`, and a letter or value as `answer`."""
    question = as_text(row["question"], "question")
    if "Choices:" in question:
        choices = dict(MATHVERSE_CHOICE.findall(question.rpartition("Choices:")[2]))
    else:
        choices = {}
    return {
        "id": as_text(row["sample_index"], "sample_index"),
        "prompt": question,
        "answer": row["answer"],
        "images": as_images(row.get("image")),
        "category": as_text(row["problem_version"], "problem_version"),
        "options": tuple(choices.values()) if "".join(choices) == ascii_uppercase[: len(choices)] else (),
    }


def read_mathvision(row: DataRow) -> dict[str, Any]:
    """Read `question` with "<image1>", `options`, `level`, and a letter or value as `answer`.

    The picture is `decoded_image`, or the file that `image` names. If the options are only letters, the picture shows
    them, and the prompt does not list them.
    """
    question = as_text(row["question"], "question")
    options = read_options(row["options"]).texts
    question = MATHVISION_MARK.sub(PLACEHOLDER, question, count=1)
    in_picture = "".join(options) == ascii_uppercase[: len(options)]
    answer = as_text(row["answer"], "answer")
    return {
        "id": as_text(row["id"], "id"),
        "prompt": question if in_picture else f"{question}\n{format_options(options)}",
        "answer": answer if answer in ascii_uppercase[: len(options)] else find_letter(answer, options) or answer,
        "images": as_images(row.get("decoded_image") or row.get("image")),
        "category": f"level {as_text(row['level'], 'level')}",
        "options": options,
    }


GEOMETRY_LAYOUTS = (
    ({"images", "problem", "answer"}, read_geometry3k),
    ({"sample_index", "question", "answer", "problem_version"}, read_mathverse),
    ({"id", "question", "options", "answer", "level"}, read_mathvision),
)
"""(columns that a layout needs, its reader); the first layout that fits applies."""


class Geometry(PromptDataModule):
    """Problems with pictures and a final answer: Geometry3K, MathVerse, MathVision.

    Each file's layout is recognised by the columns of the first row that fits a known one; for any other file give
    `columns`. Categories are MathVerse's versions of a problem and MathVision's levels. The answer of a
    multiple-choice problem is its letter, which the reward `Choice` judges; `MathAnswer` judges all others.
    """

    layouts = GEOMETRY_LAYOUTS
