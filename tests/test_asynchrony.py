"""The simulation of `research/asynchrony.py`: steps counted by hand, and its rules at any time of a long run."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

CONSTANT = np.full((4, 2), 10)
"""Groups of two completions of 10 tokens; a token takes a second."""


@pytest.fixture(scope="module")
def simulation() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent.parent / "research")
        yield importlib.import_module("simulation")


@pytest.fixture
def tiny(simulation: ModuleType) -> Any:
    """One server runs both groups of a step at once: 10 s to generate, 40 tokens to train."""
    return simulation.Setting(
        staleness=0, quotas=(2,), capacity=((4,),), places=4, lengths=CONSTANT, decode=(1.0, 0.0), train=5 / 40
    )


@pytest.fixture
def busy(simulation: ModuleType) -> Any:
    """Two servers and log-normal lengths, which span several versions."""
    lengths = np.clip(np.ceil(np.random.default_rng(0).lognormal(3, 1.2, (500, 4))), 1, 400)
    return simulation.Setting(
        staleness=2, quotas=(6,), capacity=((16, 16),), places=16, lengths=lengths, decode=(0.5, 0.02), train=0.015,
        prompt=5, prefill=0.001, update=0.5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("staleness", "training", "seconds"),
    [(0, 5.0, 10 + 5 + 1), (1, 5.0, 10 + 1), (8, 5.0, 10 + 1), (0, 25.0, 10 + 25 + 1), (1, 25.0, 26), (8, 25.0, 26)],
)
def test_a_step_lasts_as_long_as_both_sides_or_as_the_busier_one(
    simulation: ModuleType, tiny: Any, staleness: int, training: float, seconds: float
) -> None:
    """k = 0: their sum; k > 0: the bound. The update stops both."""
    found = simulation.measure(replace(tiny, staleness=staleness, train=training / 40, update=1.0), 20, 10)
    assert found["seconds"] == pytest.approx(seconds)
    assert found["bound"] == pytest.approx(max(10, training) + 1)
    assert found["trainer_idle"] == pytest.approx(1 - (training + 1) / seconds, abs=1e-9)
    assert found["servers_idle"] == pytest.approx(1 - 10 / seconds)
    assert found["max_staleness"] <= staleness and found["length_trained"] == found["length_sampled"] == 10


@pytest.mark.parametrize("staleness", [0, 1, 2, 5])
@pytest.mark.parametrize("partial", [True, False])
@pytest.mark.parametrize("processes", [1, 3])
def test_no_group_is_lost_too_old_or_too_early(
    simulation: ModuleType, busy: Any, staleness: int, partial: bool, processes: int
) -> None:
    setting = replace(busy, staleness=staleness, partial=partial)
    if processes > 1:
        setting = simulation.without_shared_queue(setting, processes)
    run = simulation.Simulation(setting).run(25)
    per_queue = {queue: [g for g in run.started if g.queue == queue] for queue in range(processes)}
    for queue, groups in per_queue.items():
        for earlier, group in enumerate(groups):
            assert earlier < (staleness + group.version + 1) * setting.quotas[queue]
    ages = [version - group.version for version, group in run.trained]
    assert min(ages) >= 0 and max(ages) == staleness
    trained = {id(group) for _, group in run.trained}
    left = {id(group) for groups in run.finished for group in groups}
    running = {id(group) for server in run.servers for *_, group in [*server.running, *server.waiting]}
    assert len(trained) == len(run.trained) == 25 * 6 and not trained & left and not (trained | left) & running
    assert trained | left | running == {id(group) for group in run.started}
    for version, group in run.trained:  # a token is as old as its group at most, and as new as the step
        assert group.version * group.lengths.sum() - 1e-6 <= group.versions <= version * group.lengths.sum() + 1e-6


def test_a_step_leaves_no_more_old_groups_than_the_next_ones_take(simulation: ModuleType, tiny: Any) -> None:
    """Two long groups end together: at k = 2 the second step waits for them, or the fourth would train one of age 3."""
    lengths = np.full((40, 2), 10)
    lengths[:2] = 100
    setting = replace(tiny, staleness=2, quotas=(1,), capacity=((8,),), places=8, lengths=lengths, train=0.0)
    run = simulation.Simulation(setting).run(4)
    assert [group.lengths[0] for _, group in run.trained] == [10, 100, 100, 10]
    assert max(version - group.version for version, group in run.trained) == 2 and run.seconds["rule"] > 79
