"""Measures over prompts and ranks, and as options."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from lit_rlvr.evaluation.diversity import (
    CosineSimilarity,
    DiversityMeasure,
    Embedder,
    SelfBLEU4,
    measure_diversity,
)

GROUPS = [
    ["3 + 4 = 7 so 7", "4 + 3 = 7 so 7", "the answer is 7"],
    ["a b c d e", "a b c d f"],
    ["no", "no", "no", "no"],
    ["alone"],
    ["one two three", "four five six"],
    ["x y z", "x y", "z y x"],
]


class Letters(Embedder):
    """Counts of the letters."""

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[1.0 + text.count(letter) for letter in "abcdeno347"] for text in texts])


def measures() -> list[DiversityMeasure]:
    return [SelfBLEU4(), CosineSimilarity(Letters())]


def _rank_measures(rank: int, parts: list[list[list[list[str]]]], folder: Path) -> None:
    """One of two gloo processes: measures its part of each set of groups."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    metrics = measures()
    torch.save([measure_diversity(part, metrics) for part in parts[rank]], folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.exhaustive
def test_two_ranks_measure_what_one_does(tmp_path: Path) -> None:
    """Unequal parts, a rank without any prompt to measure, and no prompt at all."""
    sets = [(GROUPS[:1], GROUPS[1:]), (GROUPS, [["alone"]]), ([], [])]
    parts = [[pair[rank] for pair in sets] for rank in range(2)]
    torch.multiprocessing.spawn(_rank_measures, (parts, tmp_path), nprocs=2)
    one = measure_diversity(GROUPS, measures())
    assert one["self_bleu_4/prompts"] == one["cosine_similarity/prompts"] == 5
    for rank in range(2):
        first, second, nothing = torch.load(tmp_path / f"{rank}.pt")
        assert first == pytest.approx(one, rel=1e-12) and second == pytest.approx(one, rel=1e-12)
        assert math.isnan(nothing["self_bleu_4"]) and nothing["self_bleu_4/prompts"] == 0


def test_the_mean_is_over_prompts_of_all_updates() -> None:
    metric = SelfBLEU4()
    metric.update([["a", "a"]])
    metric.update([["a", "b"], ["c", "d"]])
    found = metric.compute()
    assert float(found["self_bleu_4"]) == pytest.approx(1 / 3) and int(found["self_bleu_4/prompts"]) == 3


def test_measuring_starts_anew_and_leaves_single_completions_out() -> None:
    metrics = [SelfBLEU4(), CosineSimilarity(Letters())]
    alone = measure_diversity([["a", "a"], ["b"], []], metrics)
    assert alone == pytest.approx(
        {
            "self_bleu_4": 1,
            "self_bleu_4/prompts": 1,
            "cosine_similarity": 1,
            "cosine_similarity/prompts": 1,
        }
    )
    assert measure_diversity([["a", "b"]], metrics)["self_bleu_4"] == 0, "the same measures again"


def test_measures_are_options(tiny_model_folder: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--diversity", type=list[DiversityMeasure])
    options: list[Any] = [
        "SelfBLEU4",
        {"class_path": "CosineSimilarity", "init_args": {"embedder": str(tiny_model_folder)}},
        {"class_path": "CosineSimilarity", "init_args": {"embedder": {"class_path": f"{__name__}.Letters"}}},
    ]
    made = parser.instantiate_classes(parser.parse_object({"diversity": options})).diversity
    assert [type(measure) for measure in made] == [SelfBLEU4, CosineSimilarity, CosineSimilarity]
    assert made[1].embedder.model == str(tiny_model_folder) and type(made[2].embedder).__name__ == "Letters"
