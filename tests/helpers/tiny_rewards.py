"""Rewards that a random model sometimes gets, so that there is something to learn."""

import time
from pathlib import Path
from typing import Any

from lit_rlvr.types import Completion, RewardResult, Sample


def judged_as_is(name: str) -> dict[str, Any]:
    """One of these as an item of `rewards` that also pays for cut-off completions, as most of a random model's are."""
    return {"class_path": "FunctionReward", "init_args": {"path": f"tiny_rewards.{name}", "truncated_is_wrong": False}}


def first_token(completion: Completion, sample: Sample) -> RewardResult:
    """1 when the first token's number is divisible by 3."""
    right = completion.token_ids[0] % 3 == 0
    return RewardResult(float(right), right)


def held(completion: Completion, sample: Sample) -> RewardResult:
    """As `first_token`; from the 200th on it waits while the file `hold` is in the current folder."""
    global judged
    judged += 1
    while judged > 200 and Path("hold").exists():
        Path("holding").touch()
        time.sleep(0.01)
    return first_token(completion, sample)


judged = 0


def in_steps(completions: list[str], completion_ids: list[list[int]], **kwargs: Any) -> list[float | None]:
    """A function for TRL: lengths, None for the first completion; it logs the number of completions and the step."""
    kwargs["log_metric"]("batch", len(completions))
    kwargs["log_metric"]("step", kwargs["trainer_state"].global_step)
    return [None if i == 0 else len(ids) / 10 for i, ids in enumerate(completion_ids)]


def dead(completion: Completion, sample: Sample) -> RewardResult:
    """The same for every completion."""
    return RewardResult(1.0, True)


def broken(completion: Completion, sample: Sample) -> RewardResult:
    """What a user's mistake looks like."""
    raise KeyError("no_such_column")


def broken_for_some(completion: Completion, sample: Sample) -> RewardResult:
    """As `first_token`, but the check of every fifth token fails."""
    if completion.token_ids[0] % 5 == 0:
        raise KeyError("no_such_column")
    return first_token(completion, sample)


def rare(completion: Completion, sample: Sample) -> RewardResult:
    """1 for one first token in sixteen, so that many groups have none."""
    right = completion.token_ids[0] % 16 == 0
    return RewardResult(float(right), right)


def graded(completion: Completion, sample: Sample) -> float:
    """Partial credit, and never all of it."""
    return (completion.token_ids[0] % 7) / 10


def opened(completion: Completion, sample: Sample) -> RewardResult:
    """Right if the text or its prefill begins with a tag, unreadable if only the prefill does."""
    with Path("opened").open("a") as file:
        file.write(f"{completion.prefill!r} {completion.text[:7]!r}\n")
    right = (completion.prefill + completion.text).startswith("<think>")
    return RewardResult(float(right), right, "parse_fail" if completion.prefill else "ok")


def always_wrong(completion: Completion, sample: Sample) -> RewardResult:
    """Nothing is right."""
    return RewardResult(0.0, False)


def whole_answer(completion: Completion, sample: Sample) -> bool:
    """Right if the text is the answer and nothing else."""
    return completion.text == sample.answer


def ends_right(completion: Completion, sample: Sample) -> bool:
    """Right if the text ends with the answer."""
    return completion.text.endswith(sample.answer)


def even_if_yes(completion: Completion, sample: Sample) -> bool:
    """Right for even first tokens where the answer is yes, so that the other prompts give no signal."""
    return sample.answer == "yes" and completion.token_ids[0] % 2 == 0
