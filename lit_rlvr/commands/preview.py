"""`lit-rlvr preview`: shows prompts exactly as the model sees them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rich.rule import Rule

from lit_rlvr.commands.filter import open_sampler, prompts_to_sample
from lit_rlvr.commands.report.explain import CALL_COLUMNS, call_rows
from lit_rlvr.common.terminal import Terminal, table_of
from lit_rlvr.datamodules.reading.images import film_strip
from lit_rlvr.errors import UserError
from lit_rlvr.media import Video
from lit_rlvr.rewards.combine import score_rollout
from lit_rlvr.rollout.preflight.data import read_demonstrations
from lit_rlvr.training.trace import calls_of
from lit_rlvr.types import Completion, Prompt, RewardResult

if TYPE_CHECKING:
    import torch

    from lit_rlvr.algorithms import RLVRModule
    from lit_rlvr.datamodules import PromptDataModule
    from lit_rlvr.datamodules.reading.split import Split
    from lit_rlvr.rollout.callback import RolloutCallback

IMAGE_SOFTWARE = "lit-rlvr preview"
"""Mark in the pictures of `preview`, which a later preview may replace."""


def _add_demonstration(description: dict[str, Any], pairs: Sequence[tuple[Prompt, Completion]], tokenizer: Any) -> None:
    """Add to the description of a prompt the completion that `SFT` trains on.

    Args:
        description: of the prompt.
        pairs: the prompt and its completion, for each sequence of a conversation.
        tokenizer: the model's.
    """
    (start, completion), *others = pairs
    description["completion"] = describe_completion(completion, tokenizer)
    # Earlier turns are in the loss, or the prompt ends with empty thoughts.
    if len(start.token_ids) != description["tokens"]:
        description |= {"text": tokenizer.decode(start.token_ids), "tokens": len(start.token_ids)}
    for number, (start, completion) in enumerate(others, 2):
        read = {"in_loss": False, "tokens": len(start.token_ids), "text": tokenizer.decode(start.token_ids)}
        parts = [read, *describe_completion(completion, tokenizer)]
        description["completion"] += [part | {"sequence": number} for part in parts]


def describe_prompts(
    data: PromptDataModule, split: Split, count: int, folder: Path | None, module: RLVRModule, rollout: RolloutCallback
) -> dict[str, Any]:
    """Return the first prompts of a set with their token counts and answers, and a summary of the set.

    For the training set, it also returns what a teacher sees, and the completions that `SFT` trains on: all parts after
    the first prompt. Those of further sequences of a conversation have their number.

    Args:
        data: set up, and checked by the module's teachers.
        split: the set.
        count: number of prompts.
        folder: folder for their images, created if there are any; None = save none.
        module: the algorithm, which may have teachers.
        rollout: the sampling settings and the rewards.

    Raises:
        UserError: there is no such set, or rows lack what `SFT` trains on.
    """
    prompts = data.prompts[split]
    if not prompts:
        raise UserError(f"--split: there is no {split} set")
    descriptions = []
    for prompt in prompts[:count]:
        descriptions.append(_describe_prompt(data, prompt, folder))
    if split == "train" and module.demonstrates:
        read_demonstrations(rollout, module, data, rollout.demonstrations)
        demonstrations = rollout.demonstrations.by_name[data.name]
        for description, prompt in zip(descriptions, prompts, strict=False):
            _add_demonstration(description, demonstrations.pairs([prompt]), data.tokenizer)
        demonstrations.close()
    if split == "train" and module.teachers.options is not None and module.teachers.options.prompt is not None:
        for description, p in zip(descriptions, map(module.teachers.asked, prompts), strict=False):
            description["teacher"] = {"text": data.render(p.sample), "tokens": len(p.token_ids)}
    return {
        "set": f"{data.name} {split}",
        "count": len(prompts),
        "prompts": descriptions,
        "summary": describe_set(data, split),
    }


def _describe_prompt(data: PromptDataModule, prompt: Prompt, folder: Path | None) -> dict[str, Any]:
    sample = prompt.sample
    images = []
    for i in range(len(sample.images)):
        images.append(describe_image(data, prompt, i, folder))
    return {
        "id": sample.id,
        "text": data.render(sample),
        "tokens": len(prompt.token_ids),
        "answer": sample.answer,
        "aliases": list(sample.aliases),
        "options": list(sample.options),
        "category": sample.category,
        "images": images,
    }


def describe_completion(completion: Completion, tokenizer: Any) -> list[dict[str, Any]]:
    """Return a completion's texts in their order, each with whether it is in the loss and its number of tokens."""
    in_loss = completion.sampled or (True,) * len(completion.token_ids)
    parts = []
    for is_trained, part in groupby(zip(completion.token_ids, in_loss, strict=True), key=itemgetter(1)):
        ids = [token for token, _ in part]
        parts.append({"in_loss": is_trained, "tokens": len(ids), "text": tokenizer.decode(ids)})
    return parts


def play_episodes(
    data: PromptDataModule,
    split: Split,
    count: int,
    module: RLVRModule,
    rollout: RolloutCallback,
    dtype: torch.dtype,
) -> list[dict[str, Any]]:
    """Play an episode of each of the first prompts with the model; return what of it is in the loss, and its reward.

    Args:
        data: the data.
        split: the set.
        count: number of prompts.
        module: the algorithm with the model.
        rollout: the engine, the environment and the rewards.
        dtype: the engine's data type.

    Raises:
        UserError: there is no environment.
    """
    environment = rollout.environment
    if environment is None:
        raise UserError("--episodes: there is no rollout.environment to play with; leave it out")
    prompts = prompts_to_sample(module, data, rollout, split)[:count]
    sampler = open_sampler(module, data, rollout, dtype, prompts, rollout.sampling.max_tokens, split)
    try:
        starts, rows = sampler.play(prompts, rollout.sampling, "preview", data, environment)
        judged = []
        for start, group in zip(starts, rows, strict=True):
            judged.append(start.for_rewards(group))
        scores = score_rollout(rollout.rewards, judged, [prompt.sample for prompt in prompts])
    finally:
        sampler.close()
    episodes = []
    for p, (start, (row,)) in enumerate(zip(starts, rows, strict=True)):
        (results,) = scores.details[p]
        verdicts = {}
        for name, result in results.items():
            verdicts[name] = _describe_result(result)
        calls = call_rows({0: calls_of(row) | {"turn_rewards": [turn.reward for turn in row.turns]}})
        named_calls = []
        for call in calls:
            named_calls.append(dict(zip(CALL_COLUMNS[1:], call[1:], strict=True)))
        episodes.append(
            {
                "id": start.sample.id,
                "prompt": {"tokens": len(start.token_ids), "text": data.tokenizer.decode(start.token_ids)},
                "completion": describe_completion(row, data.tokenizer),
                "calls": named_calls,
                "reward": float(scores.rewards[p, 0]),
                "rewards": verdicts,
            }
        )
    return episodes


def _describe_result(result: RewardResult) -> dict[str, Any]:
    return {"value": result.value, "correct": result.correct, "status": result.status, "detail": result.detail}


def print_episodes(episodes: Sequence[dict[str, Any]]) -> None:
    """Print the result of `play_episodes`."""
    console = Terminal()
    for episode in episodes:
        prompt = episode["prompt"]
        console.print(
            Rule(f"an episode of {episode['id']}: {prompt['tokens']} tokens of prompt", align="left", characters="-")
        )
        console.print(prompt["text"], soft_wrap=True, style="dim")
        print_completion(episode["completion"], console)
        if episode["calls"]:
            rows = []
            for call in episode["calls"]:
                rows.append(tuple(call.values()))
            console.print_table(table_of(CALL_COLUMNS[1:], rows, title="\nCalls of the agent, in their order"))
        for name, result in episode["rewards"].items():
            console.print(f"{name}: {result['value']:g}, {result['status']} {result['detail']}", soft_wrap=True)
        console.print(f"reward {episode['reward']:g}")


def print_completion(parts: Sequence[dict[str, Any]], console: Terminal) -> None:
    """Print the result of `describe_completion`: what is in the loss in green, and the rest dimmed."""
    for part in parts:
        place = "not in the loss"
        style = "dim"
        if part["in_loss"]:
            place = "in the loss"
            style = "green"
        sequence = ""
        if "sequence" in part:
            sequence = f" (sequence {part['sequence']})"
        console.print(Rule(f"{part['tokens']} tokens {place}{sequence}", align="left", characters="-"))
        console.print(part["text"], soft_wrap=True, style=style)


def print_prompts(preview: dict[str, Any]) -> None:
    """Print the result of `describe_prompts`."""
    console = Terminal()
    split = preview["set"].rpartition(" ")[2]
    for number, prompt in enumerate(preview["prompts"], 1):
        console.print(Rule(f"{split} {number} of {preview['count']}: {prompt['id']}", align="left", characters="-"))
        console.print(prompt["text"], soft_wrap=True)
        console.print(Rule(characters="-"))
        facts = [
            f"{prompt['tokens']} tokens",
            f"answer {prompt['answer']!r}" if prompt["answer"] else "no answer",
        ]
        if prompt["aliases"]:
            facts.append(f"or {' or '.join(map(repr, prompt['aliases']))}")
        if prompt["options"]:
            facts.append(f"options {prompt['options']}")
        if prompt["category"]:
            facts.append(f"category {prompt['category']!r}")
        for k, image in enumerate(prompt["images"], 1):
            place = f", {image['file']}" if image["file"] else ""
            frames = f"{image['frames']} frames of " if "frames" in image else ""
            size = f"{frames}{image['width']} x {image['height']} pixels"
            facts.append(f"{'video' if frames else 'image'} {k}: {image['tokens']} tokens, {size}{place}")
        console.print("; ".join(facts), soft_wrap=True)
        print_completion(prompt.get("completion", ()), console)
        teacher = prompt.get("teacher")
        if teacher:
            console.print(Rule(f"the teacher sees {teacher['tokens']} tokens", align="left", characters="-"))
            console.print(teacher["text"], soft_wrap=True)
    console.print(preview["summary"], soft_wrap=True)


def describe_image(data: PromptDataModule, prompt: Prompt, number: int, folder: Path | None) -> dict[str, Any]:
    """Save an image of a prompt to `folder`; return its size as the model sees it, and the file.

    Of a video it saves some frames in a row, and also returns the number of frames.

    Args:
        data: the DataModule of the prompt.
        prompt: a prompt with images.
        number: number of the image in the prompt, from 0.
        folder: receives the image; None = save none.
    """
    pixels = data.prepare(prompt).pixels
    assert pixels is not None, "the prompt has images"
    image = pixels.images[number]
    if folder is None:
        path = None
    else:
        path = _save_image(film_strip(image), f"{prompt.sample.id}-{number + 1}", folder)
    if isinstance(image, Video):
        frames = image.frames
    else:
        frames = (image,)
    return {
        "tokens": len(pixels.placeholders[number]),
        "width": frames[0].width,
        "height": frames[0].height,
        "file": path and str(path),
        **({"frames": len(frames)} if isinstance(image, Video) else {}),
    }


def _save_image(image: Image.Image, name: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (re.sub(r"[^\w.-]+", "_", name) + ".png")
    if path.exists() and Image.open(path).info.get("Software") != IMAGE_SOFTWARE:
        raise UserError(f"--out: {path} exists and is not a picture of `lit-rlvr preview`; choose another folder")
    made_by = PngInfo()
    made_by.add_text("Software", IMAGE_SOFTWARE)
    image.save(path, pnginfo=made_by)
    return path


def describe_set(data: PromptDataModule, split: Split) -> str:
    """Return a line with the number and lengths of the prompts, and the number of rows left out."""
    lengths = sorted(len(prompt.token_ids) for prompt in data.prompts[split])
    left_out = f"{len(data.bad_rows[split])} rows could not be used, {len(data.too_long[split])} prompts were too long"
    spread = f"{lengths[0]} to {lengths[-1]} tokens, median {median(lengths):g}"
    return f"{data.name} {split}: {len(lengths)} prompts of {spread}; {left_out}"
