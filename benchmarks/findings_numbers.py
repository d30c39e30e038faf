"""The numbers in the prose of findings.md, from the studies' results: section -> field of `READINGS` -> text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

WORDS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")


def mean_of(task: Mapping[str, Any], cell: str, value: Callable[[Any], float]) -> float:
    """Return a cell's mean over its runs of a task."""
    runs = task["cells"][cell]["by_seed"].values()
    return sum(value(run) for run in runs) / len(runs)


def quarter(task: Mapping[str, Any], cell: str, metric: str, k: int = 3) -> float:
    """Return a cell's mean of a metric in quarter k of training; the default is the last."""
    return mean_of(task, cell, lambda run: float(run["quarters"][metric][k]))


def agrae_numbers(task: Mapping[str, Any]) -> dict[str, str]:
    def norms(cell: str, digits: int) -> str:
        return " to ".join(f"{quarter(task, cell, 'train/grad_norm', k):.{digits}f}" for k in (0, 3))

    return {
        "grpo_right": f"{quarter(task, 'grpo', 'rollout/accuracy'):.0%}".replace("%", " %"),
        "grpo_norms": norms("grpo", 1),
        "positive_norms": norms("positive_dominant", 0),
        "negative_norms": norms("negative_dominant", 1),
    }


def apmpo_numbers(task: Mapping[str, Any], readings: Iterable[str]) -> dict[str, str]:
    """Return APMPO's numbers.

    Args:
        readings: what is said now of each registered claim about accuracy.
    """
    cells = task["cells"]
    ends = [cell["mean"] for cell in cells.values()]
    said = [*readings]
    return {
        "spread": f"{max(ends) - min(ends):.3f}",
        "exponent": f"{quarter(task, 'apmpo', 'train/p'):.2f}",
        "upper_clip": f"{quarter(task, 'apmpo', 'train/eps_ada'):.2f}",
        "smaller": WORDS[sum(reading.startswith("smaller") for reading in said)],
        "accuracy_claims": WORDS[len(said)],
        "clipped_above": f"{100 * cells['grpo']['last']['train/clip_high']['mean']:.1f} %",
        "clipped_below": f"{100 * cells['grpo']['last']['train/clip_low']['mean']:.1f} %",
    }


def aapo_numbers(tasks: Mapping[str, Any]) -> dict[str, str]:
    small = tasks["g2"]
    step = max(small["cells"]["aapo"]["by_seed"]["0"]["validations"], key=int)

    def ahead_of(base: str) -> float:
        """Return AAPO's lead after as many steps as it took."""
        after = {cell: mean_of(small, cell, lambda run: float(run["validations"][step])) for cell in ("aapo", base)}
        return after["aapo"] - after[base]

    losses = [
        loss
        for task in tasks.values()
        for run in task["cells"]["aapo"]["by_seed"].values()
        for loss in run["quarters"]["train/loss"]
    ]
    no_signal = [f"{100 * quarter(task, 'aapo', 'train/no_signal'):.0f} %" for task in tasks.values()]
    return {
        "ahead_of_gpg": f"{ahead_of('gpg'):.3f}",
        "ahead_of_grpo": f"{ahead_of('grpo'):.3f}",
        "no_signal": "{}, {} and {}".format(*no_signal),
        "positive_losses": f"{sum(loss > 0 for loss in losses)} of {len(losses)}",
    }


def text_numbers(task: Mapping[str, Any]) -> dict[str, str]:
    close = [task["cells"][name]["mean"] for name in ("grpo", "dr_grpo", "apmpo", "gspo", "grpo_lead")]
    return {"spread": f"{max(close) - min(close):.3f}", "right_before": f"{100 * task['before']['mean']:.0f} %"}


def image_numbers(task: Mapping[str, Any]) -> dict[str, str]:
    def at_8(found: Mapping[str, Any]) -> float:
        return float(next(iter(found.values()))["8"]["mean"])

    own = task["cells"]["grpo"]["values"].values()
    above = sum(at_8(cell["pass_at_k"]) > at_8(task["before_pass_at_k"]) for cell in task["cells"].values())
    return {"grpo_runs": f"{min(own):.2f} and {max(own):.2f}", "above": WORDS[above]}


def mechanism_numbers(settings: Mapping[str, Any]) -> dict[str, str]:
    learns = [settings[name] for name in ("0.0001, 2", "0.0001, 4", "0.0002, 2")]  # where GRPO learns

    def least(loss: str, among: Iterable[Any]) -> float:
        return min(float(setting["losses"][loss]["cosine"]) for setting in among)

    def spread(loss: str, digits: int = 3, key: str = "cosine") -> str:
        values = [setting["losses"][loss][key] for setting in learns]
        return f"{min(values):.{digits}f} to {max(values):.{digits}f}"

    focused = [setting["losses"][name]["cosine"] for setting in learns for name in ("hard_focused", "easy_focused")]
    ends = sorted(float(setting["accuracy"]) for setting in settings.values())
    right = {f"right_{name}": f"{100 * of['accuracy']:.0f} %" for name, of in settings.items()}
    return {
        "right_first": f"{100 * learns[0]['first_accuracy']:.0f} %",
        **{name.replace("0.0001, ", "slow_").replace("0.0002, ", "fast_"): share for name, share in right.items()},
        "right_elsewhere": f"{100 * ends[-6]:.0f} %",
        "pmpo_where_it_learns": f"{least('pmpo', learns):.4f}",
        "pmpo_at_all": f"{least('pmpo', settings.values()):.4f}",
        "apmpo_at_all": f"{least('apmpo', settings.values()):.3f}",
        "group_level": spread("group_level", 2),
        "positive": spread("positive_dominant", 2),
        "negative": spread("negative_dominant", 2),
        "agrae": spread("agrae", 2),
        "focused": f"{min(focused):.3f} to {max(focused):.3f}",
        "sample_level_norm": spread("sample_level", 2, "norm"),
        **{name: spread(name) for name in ("apmpo", "dapo", "gmpo", "sample_level")},
        **{name: spread(name, 2) for name in ("gpg", "aapo")},
        "in_a_row": f"{max(setting['previous'] for setting in learns):.2f}",
    }
