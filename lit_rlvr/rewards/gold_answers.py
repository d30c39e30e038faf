"""Checks of a data set's references with the rewards of a run, before the first rollout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import chdir
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from lit_rlvr.common.columns import as_object
from lit_rlvr.common.log import log
from lit_rlvr.errors import UserError, refuse_all
from lit_rlvr.rewards.base import REWARD_COLUMNS, Reward, named_rewards, names_in, own_weights, reward_weights_of
from lit_rlvr.rewards.combine import score_rollout
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Completion, Prompt, Sample

GOLD_SAMPLES = 32
"""Most samples whose references are judged as answers."""
GOLD_FORMS = {
    "the plain answer": ("", ""),
    "\\boxed{}": ("\\boxed{", "}"),
    "<answer> tags": ("<answer>", "</answer>"),
    "after ####": ("#### ", ""),
    "a thought and <answer> tags": ("<think>\nI work it out.\n</think>\n<answer>", "</answer>"),
    "a ```python block": ("```python\n", "\n```"),
    "a ```sql block": ("```sql\n", "\n```"),
}
"""Form of a completion, for a reward without `gold_completion` -> the text before and after the answer."""
GOLD_LENGTHS, GOLD_TRIED = 1000, 4
"""Most samples whose gold answers' lengths are measured, and on how many of them the rewards are tried."""
NEARLY_NONE = 0.05
"""The share of gold answers that fit into `max_tokens` up to which a run is refused."""


def check_references(rewards: Sequence[Reward], samples: Sequence[Sample]) -> None:
    """Refuse samples that name unknown rewards, or whose reference a reward cannot read that judges them.

    Raises:
        UserError: a message for each reward, with the first such sample and the number of all.
    """
    weights = own_weights(rewards)
    known = f"the rewards are {', '.join(weights)} (rollout.rewards)"
    chosen: dict[tuple[str, str, bool], Sample] = {}  # a row of each set whose column names a reward, or none
    for sample in samples:
        unknown = sorted(dict(sample.rewards or {}).keys() - weights.keys())
        if unknown:
            raise UserError(f"{sample.source or sample.id}: reward: there is no {unknown[0]!r}; {known}")
        _check_parallel_answers(sample, weights)
        for column in REWARD_COLUMNS if sample.rewards is None else ():
            named = {name.casefold() for name in named_rewards(sample, column, weights)}
            for name in names_in(sample, column):
                chosen.setdefault((sample.dataset, column, name.casefold() in named), sample)
    problems = []
    for (dataset, column, matches), sample in chosen.items():
        if not matches and (dataset, column, True) in chosen:
            problems.append(
                f"{sample.source or sample.id}: {column}: there is no reward {sample.row[column]!r}, but one for other "
                f"rows; name the reward of each row in a column of its own (data.columns.reward); {known}"
            )
    refuse_all(problems)
    judging = [(sample, reward_weights_of(sample, weights)) for sample in samples]
    counts = Counter(name for _, names in judging for name in names)
    unused = [name for name in weights if judging and not counts[name]]
    if unused:
        log.warning("rollout.rewards: no row has the reward %s, so it judges nothing", ", ".join(unused))
    if any(matches for _, _, matches in chosen):
        log.info("rows choose their reward by the column data_source or dataset: %s", dict(counts))
    problems = []
    for reward in rewards:
        problem = _unreadable(reward, [sample for sample, names in judging if reward.name in names])
        if problem:
            problems.append(problem)
    refuse_all(problems)


def _check_parallel_answers(sample: Sample, weights: Iterable[str]) -> None:
    """Refuse a row of open-instruct's with an answer for each of several rewards.

    Raises:
        UserError: it has a list of rewards and one of as many answers, all of which would be right for each reward.
    """
    names = as_object(sample.row.get("dataset"))
    answers = as_object(sample.row.get("ground_truth"))
    if not isinstance(names, list) or not isinstance(answers, list) or not 1 < len(names) == len(answers):
        return
    named = named_rewards(sample, "dataset", weights)
    if len(named) > 1 and len(sample.references) > 1:
        raise UserError(
            f"{sample.source or sample.id}: dataset and ground_truth have {len(names)} entries, an answer for each of "
            f"the rewards {', '.join(named)}, and rewards judge by all answers of a row; make a row for each reward, "
            "or map a column with the answer of one (data.columns.answer)"
        )


def _unreadable(reward: Reward, samples: Sequence[Sample]) -> str:
    """Return what is wrong with the first reference that a reward cannot read, and how many there are; "" = none."""
    problems = []
    for sample in samples:
        try:
            reward.check_reference(sample)
        except UserError as error:
            where = sample.source or sample.id
            text = " ".join(error.messages)
            if where in text:
                problems.append(text)
            else:
                problems.append(f"{where}: {text}")
    if problems:
        return f"{problems[0]} ({reward.name}: {len(problems)} of {len(samples)} rows)"
    return ""


def warn_of_gold_answers(rewards: Sequence[Reward], samples: Sequence[Sample]) -> None:
    """Judge the references of some samples as answers; warn of each reward by which not all of them are right."""
    chosen = _spread([sample for sample in samples if sample.answer], GOLD_SAMPLES)
    weights = own_weights(rewards)
    for reward in rewards:
        row_samples = [sample for sample in chosen if reward.name in reward_weights_of(sample, weights)]
        texts = [(reward.gold_completion(sample), sample) for sample in row_samples]
        pairs = [(Completion(text, (), "stop"), sample) for text, sample in texts if text is not None]
        results = zip(pairs, reward.score(pairs) if pairs else [], strict=True)
        failures = []
        for pair, result in results:
            if result.correct is False or result.status in ("unjudged", "error"):
                failures.append(pair)
        if failures:
            completion, sample = failures[0]
            log.warning(
                "reward %s: %d of %d references are not right when they are given as the answer; first, %s: %r; no "
                "completion may be right there",
                reward.name,
                len(failures),
                len(pairs),
                sample.source or sample.id,
                completion.text[:200],
            )


def warn_of_other_lengths(rewards: Sequence[Reward], max_tokens: int) -> None:
    """Warn of rewards whose settings are for completions of another length than those of training.

    Args:
        rewards: the rewards of the run.
        max_tokens: tokens of the longest completion.
    """
    for reward in rewards:
        assumed = reward.assumed_max_tokens
        if assumed is not None and assumed != max_tokens:
            log.warning(
                "reward %s: it is set to completions of up to %d tokens, and those of training have up to %d "
                "(rollout.sampling.max_tokens); give both the same length",
                reward.name,
                assumed,
                max_tokens,
            )


_T = TypeVar("_T")


def _spread(items: Sequence[_T], count: int) -> Sequence[_T]:
    """Return at most `count` items from all parts of a sequence."""
    return items[:: max(1, len(items) // count)][:count]


@dataclass(frozen=True)
class LongAnswers:
    """Gold answers of a set that are longer than a completion can be.

    Args:
        count: how many there are.
        rows: how many gold answers were measured.
        needed: tokens of the longest one, EOS included.
        limit: the most tokens of a completion.
        option: the option that sets it.
        is_hopeless: nearly all are too long, and the rewards pay nothing for their beginnings.
        kind: what the texts are.
    """

    count: int
    rows: int
    needed: int
    limit: int
    option: str
    is_hopeless: bool
    kind: str = "answers"

    @classmethod
    def among(cls, lengths: Sequence[int], limit: int, option: str, kind: str = "answers") -> LongAnswers | None:
        """Return the texts that are too long by their tokens, hopeless if they are nearly all; None if all fit.

        Args:
            lengths: tokens of each text.
            limit: the most tokens of a completion.
            option: the option that sets the limit.
            kind: what the texts are, for messages.
        """
        count = sum(length > limit for length in lengths)
        is_hopeless = len(lengths) - count <= NEARLY_NONE * len(lengths)
        if count:
            return cls(count, len(lengths), max(lengths), limit, option, is_hopeless, kind)
        return None

    def __str__(self) -> str:
        """Say how many there are, and what to do."""
        return (
            f"{self.option}: {self.limit} tokens are too few for the {self.kind} of {self.count} of {self.rows} rows, "
            f"which take up to {self.needed}, EOS included; raise it to {self.needed} or more"
        )


def find_long_answers(
    rewards: Sequence[Reward], prompts: Sequence[Prompt], tokenizer: Any, sampling: Sampling, option: str
) -> LongAnswers | None:
    """Measure the gold answers of prompts, in the shortest form of completion that the rewards pay.

    Args:
        rewards: the rewards of the run.
        prompts: the prompts of a set.
        tokenizer: the model's tokenizer.
        sampling: the settings of the completions.
        option: the option of its `max_tokens`.

    Returns:
        None: all gold answers fit, or the rewards pay no known form.
    """
    limit = sampling.max_tokens
    chosen = _spread([prompt for prompt in prompts if prompt.sample.answer], GOLD_LENGTHS)
    samples = [prompt.sample for prompt in chosen]

    def measured(forms: Sequence[AnswerForm]) -> list[tuple[AnswerForm, list[int]]]:
        lengths_of_forms = []
        for form in forms:
            lengths_of_forms.append((form, completion_lengths(form, samples, tokenizer, sampling)))
        return lengths_of_forms

    plain, *framed = (partial(_framed, *frame) for frame in GOLD_FORMS.values())
    plain_pair, *reward_pairs = measured([plain, *(reward.gold_completion for reward in rewards)])
    if all(length <= limit for _, lengths in (plain_pair, *reward_pairs) for length in lengths):
        return None  # the user's code, which may count its calls, is not asked
    for form, lengths in sorted([plain_pair, *measured(framed), *reward_pairs], key=lambda pair: sum(pair[1])):
        if not earns_reward(rewards, form, chosen):
            continue
        too_long = LongAnswers.among(lengths, limit, option)
        if too_long is None or not too_long.is_hopeless:
            return too_long
        is_part_paid = earns_reward(rewards, partial(_beginning, form, tokenizer, limit - 1), chosen)
        return replace(too_long, is_hopeless=not is_part_paid)
    return None


AnswerForm = Callable[[Sample], str | None]


def _framed(before: str, after: str, sample: Sample) -> str:
    return f"{before}{min(sample.references, key=len)}{after}"


def _beginning(form: AnswerForm, tokenizer: Any, tokens: int, sample: Sample) -> str:
    """Return the first tokens of a sample's completion in a form."""
    return str(tokenizer.decode(tokenizer(form(sample) or "", add_special_tokens=False).input_ids[:tokens]))


def completion_lengths(
    form: Callable[[Sample], str | None], samples: Sequence[Sample], tokenizer: Any, sampling: Sampling
) -> list[int]:
    """Return the tokens of each sample's completion in a form, with EOS where no `stop` text ends it.

    Args:
        form: writes a sample's completion; None if it knows none.
        samples: the samples.
        tokenizer: the model's tokenizer.
        sampling: the settings of the completions.
    """
    texts = []
    for sample in samples:
        text = form(sample)
        if text:
            texts.append(text)
    if texts:
        encoded = tokenizer(texts, add_special_tokens=False).input_ids
    else:
        encoded = []
    return [len(ids) + (not text.endswith(sampling.stop)) for ids, text in zip(encoded, texts, strict=True)]


def earns_reward(rewards: Sequence[Reward], form: AnswerForm, prompts: Sequence[Prompt]) -> bool:
    """Return whether most completions in a form get more than an empty one, tried on some prompts."""
    judges = [reward for reward in rewards if not reward.whole_rollout]
    groups = []
    samples = []
    for prompt in _spread(prompts, GOLD_TRIED):
        text = form(prompt.sample)
        if text:
            groups.append(prompt.for_rewards([Completion(text, (), "stop"), Completion("", (), "stop")]))
            samples.append(prompt.sample)
    if not judges or not groups:
        return False
    with chdir(Path.cwd()):  # a reward may leave it
        paid = score_rollout(judges, groups, samples).rewards
    return float((paid[:, 0] > paid[:, 1]).float().mean()) > 0.5
