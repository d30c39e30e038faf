"""Self-BLEU against values by hand, and sacrebleu pair by pair."""

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
def test_it_is_sacrebleus_sentence_bleu(seed: int) -> None:
    group = random_group(seed)
    bleu = BLEU(effective_order=True, tokenize="none")
    each = [bleu.sentence_score(t, [o for j, o in enumerate(group) if j != i]).score for i, t in enumerate(group)]
    assert measured(group, tokenize="none") == pytest.approx(sum(each) / len(each) / 100, abs=1e-12)
