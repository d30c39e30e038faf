"""`lit-rlvr preview`: shows prompts exactly as the model sees them, before training."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rich.rule import Rule

from lit_rlvr.errors import UserError
from lit_rlvr.terminal import Terminal
from lit_rlvr.types import Prompt

if TYPE_CHECKING:
    from lit_rlvr.datamodules import PromptDataModule
    from lit_rlvr.datamodules.base import Split


MADE_BY = "lit-rlvr preview"
"""Mark in our pictures, so that a later preview may replace them."""


def look(data: PromptDataModule, split: Split, count: int, folder: Path | None) -> dict[str, Any]:
    """The first prompts of a set with their token counts and answers, and a summary of the set.

    Args:
        count: number of prompts.
        folder: folder for their images, created if there are any; None = save none.

    Raises:
        UserError: there is no such set, or `count` is not positive.
    """
    if count < 1:
        raise UserError(f"--prompts: {count} is not positive")
    data.setup("test" if split == "test" else "fit")
    prompts = data.prompts[split]
    if not prompts:
        raise UserError(f"--split: there is no {split} set")
    return {
        "set": f"{data.name} {split}",
        "count": len(prompts),
        "prompts": [_described(data, prompt, folder) for prompt in prompts[:count]],
        "summary": about(data, split),
    }


def _described(data: PromptDataModule, prompt: Prompt, folder: Path | None) -> dict[str, Any]:
    sample = prompt.sample
    return {
        "id": sample.id,
        "text": data.render(sample),
        "tokens": len(prompt.token_ids),
        "answer": sample.answer,
        "options": list(sample.options),
        "category": sample.category,
        "images": [image_of(data, prompt, i, folder) for i in range(len(sample.images))],
    }


def print_prompts(found: dict[str, Any]) -> None:
    """Print what `look` found."""
    console = Terminal()
    split = found["set"].rpartition(" ")[2]
    for number, prompt in enumerate(found["prompts"], 1):
        console.print(Rule(f"{split} {number} of {found['count']}: {prompt['id']}", align="left", characters="-"))
        console.print(prompt["text"], soft_wrap=True)
        console.print(Rule(characters="-"))
        facts = [f"{prompt['tokens']} tokens", f"answer {prompt['answer']!r}"]
        facts += [f"options {prompt['options']}"] * bool(prompt["options"])
        facts += [f"category {prompt['category']!r}"] * bool(prompt["category"])
        for k, image in enumerate(prompt["images"], 1):
            place = f", {image['file']}" if image["file"] else ""
            facts.append(f"image {k}: {image['tokens']} tokens, {image['width']} x {image['height']} pixels{place}")
        console.print("; ".join(facts), soft_wrap=True)
    console.print(found["summary"], soft_wrap=True)


def image_of(data: PromptDataModule, prompt: Prompt, number: int, folder: Path | None) -> dict[str, Any]:
    """The size of an image of a prompt as the model sees it, and the file in `folder` that it is saved to."""
    pixels = data.prepare(prompt).pixels
    assert pixels is not None, "the prompt has images"
    image = pixels.images[number]
    path = None if folder is None else _saved(image, f"{prompt.sample.id}-{number + 1}", folder)
    tokens = data.image_processor.features(pixels.grid[number].tolist())
    return {"tokens": tokens, "width": image.width, "height": image.height, "file": path and str(path)}


def _saved(image: Image.Image, name: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (re.sub(r"[^\w.-]+", "_", name) + ".png")
    if path.exists() and Image.open(path).info.get("Software") != MADE_BY:
        raise UserError(f"--out: {path} exists and is not a picture of `lit-rlvr preview`; choose another folder")
    made_by = PngInfo()
    made_by.add_text("Software", MADE_BY)
    image.save(path, pnginfo=made_by)
    return path


def about(data: PromptDataModule, split: Split) -> str:
    """A line with the number and lengths of the prompts, and the number of rows left out."""
    lengths = sorted(len(prompt.token_ids) for prompt in data.prompts[split])
    left_out = f"{len(data.bad_rows[split])} rows could not be used, {len(data.too_long[split])} prompts were too long"
    spread = f"{lengths[0]} to {lengths[-1]} tokens, median {median(lengths):g}"
    return f"{data.name} {split}: {len(lengths)} prompts of {spread}; {left_out}"
