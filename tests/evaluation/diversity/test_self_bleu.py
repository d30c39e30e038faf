"""Self-BLEU against values by hand, sacrebleu pair by pair, and a slow loop written from BLEU's definition."""

import math
import random
from collections.abc import Sequence

import pytest
from sacrebleu.metrics import BLEU

from lit_rlvr.evaluation.diversity import SelfBLEU4


def measured(*groups: Sequence[str], tokenize: str = "13a") -> float:
    metric = SelfBLEU4(tokenize)
    metric.update(groups)
    return float(metric.compute()["self_bleu_4"])


def slow_self_bleu(completions: Sequence[str]) -> float:
    """Papineni et al. 2002 for each completion against the others, on white space, with exp smoothing."""
    total = 0.0
    for i, text in enumerate(completions):
        words = text.split()
        others = [other.split() for j, other in enumerate(completions) if j != i]
        logs, halvings, matches = [], 0, 0
        for n in range(1, min(4, len(words)) + 1):
            grams = [words[k : k + n] for k in range(len(words) - n + 1)]
            found = 0
            for gram in {tuple(g) for g in grams}:
                most = max(sum(other[k : k + n] == list(gram) for k in range(len(other))) for other in others)
                found += min(grams.count(list(gram)), most)
            matches += found
            halvings += found == 0
            logs.append(math.log((found or 0.5**halvings) / len(grams)))
        closest = min((len(other) for other in others), key=lambda length: (abs(length - len(words)), length))
        if matches:
            total += min(1.0, math.exp(1 - closest / len(words))) * math.exp(sum(logs) / len(logs))
    return total / len(completions)


def random_group(seed: int) -> list[str]:
    generator = random.Random(seed)
    vocabulary = ["a", "b", "c", "d", "+", "="][: generator.randint(1, 6)]
    sizes = [generator.randint(0, 12) for _ in range(generator.randint(2, 6))]
    return [" ".join(generator.choices(vocabulary, k=size)) for size in sizes]


def test_identical_completions_have_one_and_disjoint_ones_zero() -> None:
    assert measured(["3 + 4 = 7, so \\boxed{7}."] * 3) == pytest.approx(1)
    assert measured(["7", "7"]) == pytest.approx(1), "shorter than four tokens"
    assert measured(["one two three four", "five six seven eight"]) == 0
    assert measured(["", ""]) == 0, "nothing is shared"


def test_self_bleu_is_the_hand_computed_one() -> None:
    # 5 of 6 words, 3 of 5 pairs, 2 of 4 triples and 1 of 3 quadruples are in the other one, in both directions
    alike = ["the cat sat on the mat", "the cat sat on a mat"]
    by_hand = (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert measured(alike) == pytest.approx(by_hand)
    # "a b": both orders match, two tokens too short for three; "a b c d": 2/4, 1/3, then 1/2 * 1/2, 1/4 * 1/1
    short = (math.exp(1 - 4 / 2) + (2 / 4 * 1 / 3 * 1 / 4 * 1 / 4) ** 0.25) / 2
    assert measured(["a b", "a b c d"]) == pytest.approx(short)
    assert measured(alike, ["a b", "a b c d"], ["7", "7"]) == pytest.approx((by_hand + short + 1) / 3)


@pytest.mark.parametrize("seed", range(40))
def test_it_is_sacrebleus_sentence_bleu_and_the_slow_loops(seed: int) -> None:
    group = random_group(seed)
    bleu = BLEU(effective_order=True, tokenize="none")
    each = [bleu.sentence_score(t, [o for j, o in enumerate(group) if j != i]).score for i, t in enumerate(group)]
    found = measured(group, tokenize="none")
    assert found == pytest.approx(sum(each) / len(each) / 100, abs=1e-12)
    assert found == pytest.approx(slow_self_bleu(group), abs=1e-9)
