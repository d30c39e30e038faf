"""Derived seeds never change: checkpoints of today must go on tomorrow."""

import pytest

from lit_rlvr.common.seeds import derive_seed, run_seed


def test_seeds_stay_what_they_were() -> None:
    assert (derive_seed(), derive_seed(0)) == (4101707308206065413, 1848396733534264378)
    assert derive_seed(0, "rollout", 3, "1+2", 5) == 1091388689767637970


def test_every_part_its_type_and_its_place_count() -> None:
    seeds = {
        derive_seed(*parts) for parts in [(1, 2), (2, 1), (12,), ("1", 2), (1, "2"), ("12",), (1, 2, 0), (1, "", 2), ()]
    }
    assert len(seeds) == 9


def test_seeds_fit_every_generator() -> None:
    seeds = [derive_seed("range", i) for i in range(2000)]
    assert len(set(seeds)) == 2000
    assert min(seeds) >= 0 and 2**61 < max(seeds) < 2**62


def test_the_runs_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert run_seed() == 7
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert run_seed() == 0
