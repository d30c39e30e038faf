"""`lit-rlvr preview`: shows prompts exactly as the model sees them, before training."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rich.rule import Rule

from lit_rlvr.errors import UserError
from lit_rlvr.terminal import Terminal
from lit_rlvr.types import Prompt

if TYPE_CHECKING:
    from datamodules import PromptDataModule
    from datamodules.base import Split


MADE_BY = "lit-rlvr preview"
"""Mark in our pictures, so that a later preview may replace them."""


def show_prompts(data: PromptDataModule, split: Split, count: int, folder: Path) -> None:
    """Print the first prompts of a set with their token counts and answers, save their images, and summarise the set.

    Args:
        count: number of prompts.
        folder: folder for the images; created if there are any.

    Raises:
        UserError: there is no such set, or `count` is not positive.
    """
    if count < 1:
        raise UserError(f"--prompts: {count} is not positive")
    data.setup("test" if split == "test" else "fit")
    prompts = data.prompts[split]
    if not prompts:
        raise UserError(f"--split: there is no {split} set")
    console = Terminal()
    for number, prompt in enumerate(prompts[:count], 1):
        sample = prompt.sample
        console.print(Rule(f"{split} {number} of {len(prompts)}: {sample.id}", align="left", characters="-"))
        console.print(data.render(sample), soft_wrap=True)
        console.print(Rule(characters="-"))
        images = [save_image(data, prompt, i, folder) for i in range(len(sample.images))]
        facts = [f"{len(prompt.token_ids)} tokens", f"answer {sample.answer!r}"]
        facts += [f"options {list(sample.options)}"] * bool(sample.options)
        facts += [f"category {sample.category!r}"] * bool(sample.category)
        console.print("; ".join([*facts, *images]), soft_wrap=True)
    console.print(about(data, split), soft_wrap=True)


def save_image(data: PromptDataModule, prompt: Prompt, number: int, folder: Path) -> str:
    """Save an image of a prompt in the size that the model sees; returns a line with its path and token count."""
    pixels = data.prepare(prompt).pixels
    assert pixels is not None, "the prompt has images"
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^\w.-]+", "_", prompt.sample.id)
    path = folder / f"{name}-{number + 1}.png"
    image = pixels.images[number]
    if path.exists() and Image.open(path).info.get("Software") != MADE_BY:
        raise UserError(f"--out: {path} exists and is not a picture of `lit-rlvr preview`; choose another folder")
    made_by = PngInfo()
    made_by.add_text("Software", MADE_BY)
    image.save(path, pnginfo=made_by)
    tokens = data.image_processor.features(pixels.grid[number].tolist())
    return f"image {number + 1}: {tokens} tokens, {image.width} x {image.height} pixels, {path}"


def about(data: PromptDataModule, split: Split) -> str:
    """A line with the number and lengths of the prompts, and the number of rows left out."""
    lengths = sorted(len(prompt.token_ids) for prompt in data.prompts[split])
    left_out = f"{len(data.bad_rows[split])} rows could not be used, {len(data.too_long[split])} prompts were too long"
    spread = f"{lengths[0]} to {lengths[-1]} tokens, median {median(lengths):g}"
    return f"{data.name} {split}: {len(lengths)} prompts of {spread}; {left_out}"
