"""The metrics of an evaluated set: pass@k, accuracy and its error, the best constant guess."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from statistics import fmean, stdev

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from lit_rlvr.common.terminal import one_line
from lit_rlvr.distributed.collectives import gather_objects
from lit_rlvr.errors import UserError
from lit_rlvr.types import Prompt, Rollout


class PassAtK(Metric):
    """Unbiased pass@k: the probability that at least one of k completions drawn without replacement is correct.

    `1 - C(n - c, k) / C(n, k)`, for c correct completions of n, computed as a product so that it never overflows.
    Source: Chen et al. 2021 (Codex), eq. 1.

    Args:
        k: completions drawn, at least 1.
    """

    total: Tensor
    questions: Tensor

    def __init__(self, k: int) -> None:
        super().__init__()
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        self.k = k
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("questions", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, correct: Tensor, counted: Tensor | None = None) -> None:
        """Add questions; those with fewer than k completions that count are left out.

        Args:
            correct: (P, n) in {0, 1}: n >= k completions of each of P questions.
            counted: (P, n) bool: the completions that count, None = all.

        Raises:
            ValueError: n < k.
        """
        if correct.shape[1] < self.k:
            raise ValueError(f"pass@{self.k} needs at least {self.k} completions per question, got {correct.shape[1]}")
        values = pass_at_k(correct, self.k, counted)
        self.total += values.nansum()
        self.questions += (~values.isnan()).sum()

    def compute(self) -> Tensor:
        return self.total / self.questions


def powers_up_to(n: int) -> list[int]:
    """Return the powers of two up to n: the k of pass@k for n completions of a question."""
    return [1 << i for i in range(n.bit_length())]


def pass_at_k(correct: Tensor, k: int, counted: Tensor | None = None) -> Tensor:
    """Return unbiased pass@k of each question (P,), float64, from completions (P, n) in {0, 1}.

    Args:
        correct: (P, n) in {0, 1}.
        k: completions drawn, at least 1.
        counted: (P, n) bool: the completions that count, None = all. Fewer than k make a question's value NaN.
    """
    if counted is None:
        counted = torch.ones_like(correct, dtype=torch.bool)
    n = counted.double().sum(1, keepdim=True)  # (P, 1)
    c = (correct.double() * counted).sum(1, keepdim=True)  # (P, 1)
    j = torch.arange(k, dtype=torch.float64, device=correct.device)
    miss = ((n - c - j) / (n - j).clamp(min=1)).clamp(min=0)  # (P, k): the j-th draw is wrong too
    return torch.where(n[:, 0] < k, torch.nan, 1 - miss.prod(1))


def constant_guess(answers: Counter[str]) -> float:
    """Return the accuracy of always giving the most frequent reference answer; 0 if there is only one, because then the
    references are not what answers are compared with.

    Args:
        answers: reference answer -> questions.
    """
    if len(answers) > 1:
        return max(answers.values()) / answers.total()
    return 0.0


ENDING = 200
"""Characters at the end of a completion by which its answer is known."""


def by_length(references: Iterable[str]) -> dict[int, set[str]]:
    """Return references without what surrounds them, by their length, the longest first; empty ones are left out."""
    found: dict[int, set[str]] = {}
    for bare in sorted(map(_bare, references), key=len, reverse=True):
        if bare:
            found.setdefault(len(bare), set()).add(bare)
    return found


def given_answer(ending: str, references: Mapping[int, Collection[str]]) -> str:
    """Return the answer that a completion gives: the longest reference that it ends with as a word, else its end.

    Args:
        ending: the end of the completion.
        references: the reference answers of the set, as `by_length` returns them.
    """
    bare = _bare(ending)
    for length, same_length in references.items():
        start = len(bare) - length
        if start >= 0 and bare[start:] in same_length and not bare[:start][-1:].isalnum():
            return bare[start:]
    return bare


def _bare(text: str) -> str:
    """Return a text without what surrounds an answer: spaces, full stops, brackets, marks of markup."""
    return text.strip(" \n\t.*_`$()[]{}<>\"'")


class ValidationMetrics(nn.Module):
    """Metrics of one evaluated set: accuracy (also per category) with its standard error over the questions, the share
    of the most frequent reference answer, which is the accuracy of a constant guess, pass@k for powers of two up to n,
    response length in tokens, the truncated share, the mean reward, the share of the most frequent answer and the mean
    reward that it earns, and, if completions are sampled, their entropy in nats per token (estimated as in training,
    from the sampled tokens).

    Args:
        samples: completions per question, n.
        greedy: there is a greedy completion of each question too, whose accuracy is `greedy`.
    """

    def __init__(self, samples: int, greedy: bool = False) -> None:
        super().__init__()
        self.greedy = MeanMetric() if greedy else None
        self.entropy = MeanMetric()
        self.sampled = False
        self.accuracy = MeanMetric()
        self.length = MeanMetric()
        self.truncated = MeanMetric()
        self.correct_in: Counter[str] = Counter()  # category -> correct completions of this rank
        self.counted_in: Counter[str] = Counter()  # category -> completions of this rank that count
        # Question -> correct completions and those that count; of this rank, after `compute` of all ranks.
        self.questions: dict[str, tuple[int, int]] = {}
        self.answers: Counter[str] = Counter()  # reference answer -> questions, as `questions`
        self.rewards: dict[str, list[float]] = {}  # end of a completion -> the rewards of those that end so
        ks = powers_up_to(samples) if samples > 1 else []
        self.pass_at = nn.ModuleDict({str(k): PassAtK(k) for k in ks})

    def update(self, rollout: Rollout, greedy: Rollout | None = None) -> None:
        """Add a scored batch, with its greedy completions if there are any; a failed check counts as incorrect, but not
        what no reward calls right or wrong."""
        device = self.accuracy.device
        correct = rollout.known_correct.to(device)  # (P, G)
        counted = rollout.in_accuracy.to(device)  # (P, G)
        self.accuracy.update(correct, counted)
        self.length.update(rollout.lengths.to(device))
        if rollout.sampling.temperature > 0:
            self.sampled = True
            tokens = rollout.lengths.sum()
            self.entropy.update((-rollout.rollout_logprobs.sum() / tokens.clamp(min=1)).to(device), tokens.to(device))
        self.truncated.update(rollout.truncated.to(device))
        for metric in self._pass_at():
            metric.update(correct, counted)
        if self.greedy is not None and greedy is not None:
            self.greedy.update(greedy.known_correct.to(device), greedy.in_accuracy.to(device))
        for p, prompt in enumerate(rollout.prompts):
            number = int(rollout.in_accuracy[p].sum())
            if not number:
                continue
            self.questions[prompt.sample.id] = int(correct[p].sum()), number
            self.answers[str(prompt.sample.answer)] += 1
            for g, completion in enumerate(rollout.completions[p]):
                if rollout.has_reward[p, g]:
                    self.rewards.setdefault(completion.answer[-ENDING:], []).append(float(rollout.rewards[p, g]))
            if prompt.sample.category:
                category = one_line(prompt.sample.category)  # it becomes part of a metric's name
                self.correct_in[category] += int(correct[p].sum())
                self.counted_in[category] += number

    def names(self, prompts: Iterable[Prompt], sampled: bool) -> set[str]:
        """Return the name of every metric that `compute` can return for a set, whose completions may be sampled."""
        names = {"accuracy", "accuracy_error", "guess", "length", "truncated"}
        names |= {"reward", "same_answer", "same_answer_reward"}
        names |= {f"pass@{metric.k}" for metric in self._pass_at()}
        names |= ({"greedy"} if self.greedy is not None else set()) | ({"entropy"} if sampled else set())
        categories = set()
        for p in prompts:
            if p.sample.category:
                categories.add(f"accuracy/{one_line(p.sample.category)}")
        return names | categories

    def compute(self) -> dict[str, float]:
        """Return the metrics over all ranks; those of nothing are left out.

        Collective: call it on every rank.

        Raises:
            UserError: no completion is known to be right or wrong.
        """
        values = {"accuracy": self.accuracy, "length": self.length, "truncated": self.truncated}
        values |= {} if self.greedy is None else {"greedy": self.greedy}
        correct_in = Counter[str]()
        counted_in = Counter[str]()
        answers = Counter[str]()
        sampled = False
        state = self.correct_in, self.counted_in, self.sampled, self.questions, self.answers
        everywhere = gather_objects((state, self.rewards))
        for (correct_there, counted_there, sampled_there, questions_there, answers_there), _ in everywhere:
            answers.update(answers_there)
            correct_in.update(correct_there)
            counted_in.update(counted_there)
            sampled |= sampled_there
            self.questions = self.questions | questions_there
        values |= {"entropy": self.entropy} if sampled else {}
        metrics = {name: float(m.compute()) for name, m in values.items()}
        if math.isnan(metrics["accuracy"]):
            raise UserError(
                "rollout.rewards: no reward says of any completion of a validation or test set whether it is right; "
                "return a bool or a RewardResult with `correct` (None leaves a completion out)"
            )
        shares = [correct / counted for correct, counted in self.questions.values()]
        if len(shares) > 1:
            metrics["accuracy_error"] = stdev(shares) / math.sqrt(len(shares))
        guess = constant_guess(answers)
        if guess:
            metrics["guess"] = guess
        metrics |= _rewards_by_answer([rewards for _, rewards in everywhere], answers)
        metrics |= {f"pass@{m.k}": float(m.compute()) for m in self._pass_at()}
        for name in sorted(counted_in):
            metrics[f"accuracy/{name}"] = correct_in[name] / counted_in[name]
        return {name: value for name, value in metrics.items() if not math.isnan(value)}

    def _pass_at(self) -> list[PassAtK]:
        found = []
        for metric in self.pass_at.values():
            if isinstance(metric, PassAtK):
                found.append(metric)
        return found


def _rewards_by_answer(rewards: Iterable[dict[str, list[float]]], references: Collection[str]) -> dict[str, float]:
    """Return the mean reward, the share of the most frequent answer and its mean reward.

    Args:
        rewards: of each rank, the end of a completion -> the rewards of those that end so.
        references: the reference answers of the set.
    """
    by_answer: dict[str, list[float]] = {}
    prepared = by_length(references)
    for of_rank in rewards:
        for ending, values in of_rank.items():
            by_answer.setdefault(given_answer(ending, prepared), []).extend(values)
    if not by_answer:
        return {}
    most = max(by_answer.values(), key=len)
    everything = []
    for values in by_answer.values():
        everything.extend(values)
    return {
        "reward": fmean(everything),
        "same_answer": len(most) / len(everything),
        "same_answer_reward": fmean(most),
    }
