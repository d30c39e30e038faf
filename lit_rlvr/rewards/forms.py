"""The forms of reward functions: the arguments with which each library calls one, and the values that it returns."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from lit_rlvr.common.arguments import given_text
from lit_rlvr.errors import UserError
from lit_rlvr.rewards.base import as_result
from lit_rlvr.speech.calls import as_dicts, split_calls
from lit_rlvr.speech.prompts import content_text
from lit_rlvr.speech.thoughts import thoughts_in, without_thoughts
from lit_rlvr.types import Completion, Pair, RewardResult, Sample, Turn

ANSWER_COLUMNS = ("answer", "solution", "ground_truth")
"""Columns that hold the reference answer, for functions of TRL and data without such a column."""

SCORE_KEYS, ACCURACY_KEYS = ("score", "overall", "reward"), ("acc", "accuracy")
"""The keys of a reward and of what says whether the answer is right in the dicts of verl and EasyR1."""

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Form:
    """A form of reward functions.

    Args:
        library: whose functions have it.
        parameters: names of the arguments of a call.
        marks: names of which one is enough to tell the form.
        arguments: makes the arguments for one completion, or with `is_batch` for all, of the function.
        is_batch: one call judges all completions.
        takes_columns: the data's columns are arguments, too.
    """

    library: str
    parameters: tuple[str, ...]
    marks: frozenset[str]
    arguments: Callable[[Sequence[Pair], Any], Arguments]
    is_batch: bool = False
    takes_columns: bool = False


def own_arguments(pairs: Sequence[Pair], function: Any) -> Arguments:
    """Return the arguments of our own form, (completion, sample)."""
    return dict(zip(("completion", "sample"), pairs[0], strict=True))


def trl_arguments(pairs: Sequence[Pair], function: Any) -> Arguments:
    """Return the arguments that TRL's GRPOTrainer gives to a reward function: prompts, completions, tokens, columns.

    A completion is a list of messages if the data set's prompt is one or the function's annotation says so, else text.
    """
    annotated = parameters_of(function).get("completions")
    messages = annotated is not None and re.search(r"[Ll]ist\[(typing\.)?[Ll]ist\b", str(annotated.annotation))
    chats = []
    for _, sample in pairs:
        chats.append(bool(messages) or not isinstance(sample.prompt, str))
    rows = [sample.row for _, sample in pairs]
    names = dict.fromkeys(name for row in rows for name in row if name not in NEVER_COLUMNS)
    answers = [sample.label for _, sample in pairs]
    arguments: Arguments = {name: answers for name in ANSWER_COLUMNS}
    for name in names:
        arguments[name] = [row.get(name) for row in rows]
    prompts: list[Any] = []
    completions: list[Any] = []
    for is_chat, (completion, sample) in zip(chats, pairs, strict=True):
        if is_chat:
            prompts.append(as_messages(sample.prompt))
            completions.append(completion_messages(completion))
        else:
            prompts.append(sample.prompt)
            completions.append(completion.text)
    arguments["prompts"] = prompts
    arguments["completions"] = completions
    arguments["completion_ids"] = [list(completion.token_ids) for completion, _ in pairs]
    return arguments


def verl_arguments(pairs: Sequence[Pair], function: Any) -> Arguments:
    """Return the arguments that verl gives to `compute_score`.

    Without verl's columns, the reference is the answer, an object if `data.reading.answers` says so.
    """
    completion, sample = pairs[0]
    if sample.answer_object is None:
        truth = mapping_in(sample, "reward_model").get("ground_truth")
    else:
        truth = None
    return {
        "data_source": sample.row.get("data_source", ""),
        "solution_str": completion.text,
        "predict_str": completion.text,
        "ground_truth": sample.label if truth is None else truth,
        "extra_info": mapping_in(sample, "extra_info"),
    }


def mapping_in(sample: Sample, column: str) -> dict[str, Any]:
    """Return the mapping in a column, also in JSON text; an empty one if the column is missing or empty.

    Raises:
        UserError: it holds anything else.
    """
    value = sample.row.get(column) or {}
    with suppress(ValueError):
        if isinstance(value, str):
            value = json.loads(value)
    if not isinstance(value, Mapping):
        raise UserError(f"{sample.source or sample.id}: {column}: {given_text(value)} is no mapping, nor JSON of one")
    return dict(value)


def verl_batch_arguments(pairs: Sequence[Pair], function: Any) -> Arguments:
    """Return the arguments that verl's batch reward manager gives."""
    calls = []
    for pair in pairs:
        calls.append(verl_arguments([pair], function))
    names = zip(VERL.parameters, VERL_BATCH.parameters, strict=True)
    arguments: Arguments = {}
    for singular, plural in names:
        arguments[plural] = [call[singular] for call in calls]
    return arguments


def easyr1_arguments(pairs: Sequence[Pair], function: Any) -> Arguments:
    """Return the argument that EasyR1 gives: a dict for the completion."""
    completion, _ = pairs[0]
    truth = verl_arguments(pairs, function)["ground_truth"]
    return {"reward_input": {"response": completion.text, "response_length": completion.length, "ground_truth": truth}}


def easyr1_batch_arguments(pairs: Sequence[Pair], function: Any) -> Arguments:
    """Return the arguments that EasyR1 gives to a function of a batch."""
    inputs = []
    for pair in pairs:
        inputs.append(easyr1_arguments([pair], function)["reward_input"])
    return {"reward_inputs": inputs}


def openrlhf_arguments(pairs: Sequence[Pair], function: Any) -> Arguments:
    """Return the arguments that OpenRLHF gives, without the chat template: a query is a prompt and its completion.

    Images and videos in a prompt are `<image>` and `<video>` in the text.
    """
    prompts = []
    for _, sample in pairs:
        texts = []
        for message in as_messages(sample.prompt):
            texts.append(content_text(message["content"]))
        prompts.append("\n\n".join(texts))
    return {
        "queries": [p + c.full_text for p, (c, _) in zip(prompts, pairs, strict=True)],
        "prompts": prompts,
        "labels": [sample.label for _, sample in pairs],
    }


def slime_arguments(pairs: Sequence[Pair], function: Any) -> Arguments:
    """Return the argument that slime gives besides `args`: the fields of its `Sample` that reward functions read."""
    completion, sample = pairs[0]
    slime_sample = SimpleNamespace(
        prompt=sample.prompt,
        response=completion.text,
        response_length=completion.length,
        label=sample.label,
        status="truncated" if completion.truncated else "completed",
        metadata=mapping_in(sample, "metadata"),
    )
    return {"sample": slime_sample}


OWN = Form("lit-rlvr", ("completion", "sample"), frozenset({"completion sample"}), own_arguments)
TRL = Form(
    "TRL",
    ("prompts", "completions", "completion_ids"),
    frozenset({"completions", "completion_ids", "environments", "prompts kwargs"}),
    trl_arguments,
    is_batch=True,
    takes_columns=True,
)
VERL = Form(
    "verl",
    ("data_source", "solution_str", "ground_truth", "extra_info"),
    frozenset({"solution_str", "predict_str"}),
    verl_arguments,
)
VERL_BATCH = Form(
    "verl",
    ("data_sources", "solution_strs", "ground_truths", "extra_infos"),
    frozenset({"solution_strs"}),
    verl_batch_arguments,
    is_batch=True,
)
EASYR1 = Form("EasyR1", ("reward_input",), frozenset({"reward_input"}), easyr1_arguments)
EASYR1_BATCH = Form("EasyR1", ("reward_inputs",), frozenset({"reward_inputs"}), easyr1_batch_arguments, is_batch=True)
OPENRLHF = Form("OpenRLHF", ("queries", "prompts", "labels"), frozenset({"queries"}), openrlhf_arguments, is_batch=True)
SLIME = Form("slime", ("args", "sample"), frozenset({"args sample"}), slime_arguments)
FORMS = (OWN, OPENRLHF, EASYR1, EASYR1_BATCH, VERL, VERL_BATCH, SLIME, TRL)
"""The known forms; the first that fits counts, since functions of OpenRLHF have `prompts`, too."""

KNOWN = ", ".join(f"{form.library} ({', '.join(form.parameters)})" for form in FORMS)
"""The known forms, for messages."""

NEVER_COLUMNS = ("prompt", "completion", "prompt_ids")
"""Names that TRL's functions do not get, though the data may have such columns."""
TRL_HELPERS = ("trainer_state", "log_extra", "log_metric")
"""Names that TRL's functions get besides the columns."""


def form_of(function: Any) -> Form | None:
    """Return the form of a function by the names of its parameters; None = it has no known form."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # it is written in C
        return OWN
    kinds = {parameter.kind for parameter in parameters.values()}
    if kinds == {inspect.Parameter.VAR_POSITIONAL}:
        return OWN
    if kinds == {inspect.Parameter.VAR_KEYWORD}:
        return TRL
    names = parameters.keys() | {f"{a} {b}" for a in parameters for b in parameters}
    match = next((form for form in FORMS if form.marks & names), None)
    if match is TRL and set(required(parameters)) & {*NEVER_COLUMNS}:
        return None
    return match


def required(parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    """Return the names of the parameters without a default."""
    variable = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    required_names = []
    for name, p in parameters.items():
        if p.default is p.empty and p.kind not in variable:
            required_names.append(name)
    return required_names


def parameters_of(function: Any) -> dict[str, inspect.Parameter]:
    """Return the parameters of a callable; none if Python does not know them."""
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return {}


def accepted_arguments(function: Any, arguments: Mapping[str, Any]) -> Arguments:
    """Return those arguments that a function has parameters for; all, if it has a `**kwargs`."""
    parameters = parameters_of(function)
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    taken = {}
    for name, value in arguments.items():
        if takes_all or name in parameters:
            taken[name] = value
    return taken


def as_messages(prompt: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a prompt as chat messages."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return prompt


def completion_messages(completion: Completion) -> list[dict[str, Any]]:
    """Return a completion as chat messages; of an episode, its turns and what the environment answered."""
    if not completion.turns:
        return [{"role": "assistant", "content": completion.text}]
    messages = []
    for turn in completion.turns:
        messages.append(turn_message(turn))
        if turn.observation is not None:
            messages.append({"role": "tool", "content": turn.observation})
    return messages


def turn_message(turn: Turn) -> dict[str, Any]:
    """Return a turn as TRL's functions with tools get it: its text, thoughts (`reasoning_content`) and calls apart."""
    content, calls = split_calls(turn.raw or turn.text)
    read = as_dicts(calls)
    parts = {
        "reasoning_content": thoughts_in(turn.raw or turn.text).strip(),
        "tool_calls": [{"type": "function", "function": call} for call in read],
    }
    if not read:
        content = without_thoughts(turn.text)
    given_parts = {}
    for name, part in parts.items():
        if part:
            given_parts[name] = part
    return {"role": "assistant", "content": content} | given_parts


def read_result(value: Any) -> Any:
    """Return a function's result as one of ours: of a dict, the reward and `correct`.

    Raises:
        TypeError: it is of no known kind, or a dict without a reward.
    """
    if isinstance(value, Mapping):
        score = next((name for name in SCORE_KEYS if name in value), None)
        right = next((name for name in ACCURACY_KEYS if name in value), None)
        if score is None:
            raise TypeError(
                f"a dict must have the reward as {', '.join(SCORE_KEYS[:-1])} or {SCORE_KEYS[-1]}; its keys are "
                f"{', '.join(map(str, value)) or 'none'}"
            )
        details = []
        for name, part in value.items():
            if name not in (score, right):
                details.append(f"{name}: {part}")
        detail = "; ".join(details)
        if right is None:
            correct = None
        else:
            correct = bool(value[right] == 1)
        return replace(as_result(value[score]), correct=correct, detail=detail)
    if value is None or isinstance(value, RewardResult) or hasattr(value, "__float__"):
        return value
    raise TypeError(
        "a reward function must return a number, a bool, a RewardResult, None, or a dict with "
        f"{', '.join(SCORE_KEYS[:-1])} or {SCORE_KEYS[-1]} (and {' or '.join(ACCURACY_KEYS)}); it returned "
        f"{type(value).__name__}"
    )


def rows_of_columns(columns: Mapping[str, Any]) -> Any:
    """Return OpenRLHF's dict of columns as dicts of one completion each: `rewards` and, as their accuracy, `scores`.

    Raises:
        TypeError: there are no `rewards`.
    """
    if "rewards" not in columns:
        raise TypeError(f"a dict of all completions must have `rewards`; its keys are {', '.join(map(str, columns))}")
    names = {SCORE_KEYS[0]: "rewards"} | ({ACCURACY_KEYS[0]: "scores"} if columns.get("scores") is not None else {})
    lists = []
    for name in names.values():
        lists.append(as_list(columns[name]))
    return [dict(zip(names, row, strict=True)) for row in zip(*lists, strict=True)]


def as_list(values: Any) -> Any:
    """Return a tensor or an array, also one of shape (B, 1), as a list; anything else unchanged."""
    if hasattr(values, "tolist") and hasattr(values, "reshape"):
        return values.reshape(-1).tolist()
    return values


def numbers_of(value: Any) -> dict[str, list[float]]:
    """Return the further numbers of a dict, such as EasyR1's `format` and OpenRLHF's `extra_logs`, by name."""
    if not isinstance(value, Mapping):
        return {}
    logs = value.get("extra_logs")
    if isinstance(logs, Mapping):
        parts = logs
    else:
        parts = {}
        for n, part in value.items():
            if n not in SCORE_KEYS:
                parts[n] = part
    numbers = {}
    for name, part in parts.items():
        values = as_list(part)
        if not isinstance(values, list):
            values = [values]
        if all(isinstance(x, (bool, int, float)) or hasattr(x, "item") for x in values):
            numbers[str(name)] = [float(x) for x in values]
    return numbers
