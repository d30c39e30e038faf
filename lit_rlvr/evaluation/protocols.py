"""The sampling and prompts of a suite's questions: from a paper's protocol, the run, or the user's settings."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from lit_rlvr.common.arguments import MAX_SIZE, check_within, checks_arguments
from lit_rlvr.common.columns import lookup
from lit_rlvr.common.paths import expanded
from lit_rlvr.common.run_files import is_run
from lit_rlvr.configs import find_shipped, read_config, require_keys
from lit_rlvr.errors import UserError
from lit_rlvr.policy.loading import load_model_config
from lit_rlvr.policy.precision import compute_dtype
from lit_rlvr.run.saved_model import run_config
from lit_rlvr.sampling import AtBudget, Sampling

MAX_TOKENS = 2048
"""Default completion length for models without a run."""

ValueAndOrigin = tuple[Any, str]
"""A value and its origin."""


def find_dtype(requested: str, model: str, folder: str) -> ValueAndOrigin:
    """Return the data type to compute in: the requested one, else the run's, else that of the model's weights.

    Args:
        requested: float32, bfloat16 or auto.
        model: the model as the user named it.
        folder: the folder of its weights.
    """
    if requested != "auto":
        return getattr(torch, requested), "--dtype"
    if is_run(model):
        return compute_dtype(str(lookup(_config_of(model), "trainer.precision"))), "the run's precision"
    config = load_model_config(folder)
    dtype = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    if not isinstance(dtype, torch.dtype):
        return torch.float32, "by default"
    return torch.float32 if dtype.itemsize >= 4 else torch.bfloat16, f"its config.json: {dtype}"


def _config_of(model: str) -> dict[str, Any]:
    """Return the config of a run; {} for other models."""
    if is_run(model):
        return run_config(expanded(model))
    return {}


def _sampling_of(config: Mapping[str, Any], name: str) -> ValueAndOrigin:
    """Return a setting of a run's validation, or else of its training; None if the run sets it nowhere."""
    keys = (f"rollout.evaluation.sampling.{name}", f"rollout.sampling.{name}")
    return next(((value, key) for key in keys if (value := lookup(config, key)) is not None), (None, ""))


def find_limits(max_tokens: int, model: str) -> Sampling:
    """Return the limits of a completion; with a run, also those of its episodes and thoughts, and its stop texts."""
    config = _config_of(model)
    limits = {}
    for name in TURNS:
        value = _sampling_of(config, name)[0]
        if value is not None:
            limits[name] = value
    budget = _sampling_of(config, "max_thought_tokens")[0] or 0
    at_budget: AtBudget = "close"
    if budget:
        at_budget = _sampling_of(config, "at_budget")[0] or "close"
    sampling = Sampling(
        max_tokens=sys.maxsize,
        stop=tuple(_sampling_of(config, "stop")[0] or ()),
        max_thought_tokens=budget,
        at_budget=at_budget,
    )
    return replace(sampling.with_max_tokens(max_tokens), **limits)


def find_environment(model: str) -> Any:
    """Return the environment in a run's config; None if it has none."""
    return lookup(_config_of(model), "rollout.environment")


def find_max_tokens(requested: int | None, model: str) -> ValueAndOrigin:
    """Return the longest completion: the requested length, else the run's validation length, else `MAX_TOKENS`."""
    if requested is not None:
        return requested, "--max_tokens"
    max_tokens, key = _sampling_of(_config_of(model), "max_tokens")
    if max_tokens is None:
        return (MAX_TOKENS, "by default")
    return (max_tokens, f"the run's {key}")


TURNS = ("max_turns", "max_observation_tokens", "max_episode_tokens")
"""Settings of episodes, as in `Sampling`; by default those of the model's run."""
SAMPLING: dict[str, Any] = {
    "samples": 8,
    "greedy": True,
    "temperature": 0.6,
    "top_p": 0.95,
    "max_tokens": None,
    **dict.fromkeys(TURNS),
}
"""Settings of sampling with their defaults; the model's run or `MAX_TOKENS` replaces `max_tokens: null`."""
PROMPT_SETTINGS = ("system_prompt", "template", "prefill")
"""Settings of the prompt, which replace a suite's own."""


@checks_arguments("protocol")
@dataclass(frozen=True)
class Protocol:
    """The sampling and prompts for a suite's questions.

    Args:
        samples: sampled completions per question.
        greedy: answer each question once more, without sampling.
        temperature: temperature of the sampled completions.
        top_p: nucleus of the sampled completions.
        max_tokens: longest completion, in tokens; None = as in the model's run, or the default.
        max_turns: the most turns of an episode; None = as in the model's run.
        max_observation_tokens: longest observation, in tokens; None = as in the model's run.
        max_episode_tokens: longest episode, in tokens; None = as in the model's run.
        prompts: options of the DataModule that replace the suite's.
    """

    samples: int
    greedy: bool
    temperature: float
    top_p: float
    max_tokens: int | None
    max_turns: int | None
    max_observation_tokens: int | None
    max_episode_tokens: int | None
    prompts: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not (self.samples or self.greedy):
            raise UserError("samples: give a positive number, or 0 with greedy: true")
        check_within(f"[0, {MAX_SIZE}]", "protocol", samples=self.samples)
        limits = {}
        for name in ("max_tokens", *TURNS):
            limits[name] = getattr(self, name)
        check_within("[1, inf)", "protocol", **limits)
        Sampling(self.temperature, self.top_p)  # refuses impossible ones

    def parts(self, limits: Sampling) -> dict[str, tuple[Sampling, int]]:
        """Return part -> (its sampling, the number of completions per question).

        Args:
            limits: limits of a completion and an episode that the protocol does not set.
        """
        overrides = {}
        for name in ("max_tokens", *TURNS):
            value = getattr(self, name)
            if value is not None:
                overrides[name] = value
        limits = replace(limits, **overrides)
        sampled = replace(limits, temperature=self.temperature, top_p=self.top_p)
        parts = {"sampled": (sampled, self.samples)} if self.samples else {}
        return parts | ({"greedy": (replace(limits, temperature=0.0), 1)} if self.greedy else {})


def make_protocol(suite: str, suite_settings: Mapping[str, Any], shared_settings: Mapping[str, Any]) -> Protocol:
    """Build the protocol of one suite.

    The first of these that has a setting decides it: the suite, the suite's protocol, the command line, the protocol of
    the command line, the defaults.

    Args:
        suite: the suite's name; a protocol may have other settings for some suites.
        suite_settings: settings of this suite, which may include `protocol`.
        shared_settings: settings of all suites from the command line, in the same form; None = not given.
    """
    resolved: dict[str, Any] = dict(SAMPLING)
    for settings in (shared_settings, suite_settings):
        name = settings.get("protocol")
        if name:
            resolved |= read_protocol(name, suite)
        given = {}
        for key in (*SAMPLING, *PROMPT_SETTINGS):
            if settings.get(key) is not None:
                given[key] = settings[key]
        resolved |= given
    prompts = {}
    for key in PROMPT_SETTINGS:
        if key in resolved:
            prompts[key] = resolved.pop(key)
    return Protocol(**resolved, prompts=prompts)


def read_protocol(name: str, suite: str) -> dict[str, Any]:
    """Read a protocol's settings for a suite: a shipped protocol by name, or a YAML file.

    Raises:
        UserError: there is no such protocol, or it has an unknown setting.
    """
    path = find_shipped("protocols", name, "protocol", "protocol")
    values = read_config(path, (*SAMPLING, *PROMPT_SETTINGS, "suites"), "protocol")
    overrides = values.pop("suites", {}).get(suite, {})
    return {**values, **require_keys(overrides, (*SAMPLING, *PROMPT_SETTINGS), f"protocol: {path}")}
