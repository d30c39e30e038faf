"""Self-BLEU: the overlap of each completion's wording with the others'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from lit_rlvr.common.packages import require
from lit_rlvr.evaluation.diversity.base import CompletionGroup, DiversityMeasure

NGRAM_ORDER = 4


class SelfBLEU4(DiversityMeasure):
    """Mean sentence BLEU-4 of each of a prompt's completions against all others, in [0, 1]; low is diverse.

    BLEU is sacrebleu's: clipped n-gram precisions for n = 1..4, the closest reference length, "exp" smoothing of orders
    without a match, and only the orders that a completion is long enough for. Identical completions score 1,
    completions without a common token 0; an empty completion scores 0.
    Source: Zhu et al. 2018 (Texygen); APMPO, K.6.

    Args:
        tokenize: sacrebleu's tokenisation: 13a, intl (Unicode punctuation), zh (Chinese), char, or none (white space).

    Raises:
        UserError: sacrebleu is not installed.
    """

    name = "self_bleu_4"
    higher_is_better = False

    def __init__(self, tokenize: Literal["13a", "intl", "zh", "char", "none"] = "13a") -> None:
        super().__init__()
        require("sacrebleu", "SelfBLEU4")
        from sacrebleu.metrics import BLEU

        self.tokenizer: Callable[[str], str] = BLEU(tokenize=tokenize).tokenizer

    def score(self, groups: Sequence[CompletionGroup]) -> list[float | None]:
        return [self_bleu(group, self.tokenizer) for group in groups]


def self_bleu(completions: CompletionGroup, tokenizer: Callable[[str], str]) -> float:
    """Return the mean sentence BLEU-4 of each of at least two completions against the others, in [0, 1].

    It counts n-grams once per completion, not once per pair: the clip of a completion's n-gram is its largest count in
    the others, which is the group's largest count, or its second largest if this completion has the largest.
    """
    from sacrebleu.metrics import BLEU
    from sacrebleu.metrics.helpers import extract_all_word_ngrams

    counts = []
    for text in completions:
        counts.append(extract_all_word_ngrams(tokenizer(text.rstrip()), 1, NGRAM_ORDER))
    largest: dict[tuple[str, ...], tuple[int, int]] = {}  # the two largest counts in one completion
    for ngrams, _ in counts:
        for ngram, count in ngrams.items():
            first, second = largest.get(ngram, (0, 0))
            if count > first:
                largest[ngram] = (count, first)
            else:
                largest[ngram] = (first, max(second, count))
    total = 0.0
    for i, (ngrams, length) in enumerate(counts):
        clipped = [0] * NGRAM_ORDER
        totals = [0] * NGRAM_ORDER
        for ngram, count in ngrams.items():
            first, second = largest[ngram]
            clipped[len(ngram) - 1] += second if count == first else count
            totals[len(ngram) - 1] += count
        others = []
        for j, (_, other) in enumerate(counts):
            if j != i:
                others.append(other)
        closest = min(others, key=lambda other: (abs(other - length), other))
        bleu = BLEU.compute_bleu(clipped, totals, length, closest, smooth_method="exp", effective_order=True)
        total += bleu.score
    return total / len(counts) / 100
