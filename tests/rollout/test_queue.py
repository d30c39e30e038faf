"""Which groups a step trains on, how old their weights may be, and that none is lost or trained on twice."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from lightning.pytorch import LightningModule, Trainer
from tiny import make_rollout, random_ids
from tiny_engines import Streaming
from tiny_fit import Recorder, fit

from lit_rlvr.datamodules import PromptDataModule
from lit_rlvr.rollout.callback import rollout_of
from lit_rlvr.rollout.queue import GroupState, QueuedGroup, choose, in_time, versions_of, with_sampled
from lit_rlvr.types import Completion, Prompt

WAITS = float("inf")


def test_the_first_finished_are_taken_and_of_these_the_oldest() -> None:
    old, new, waits = GroupState(1, 4, 0, True), GroupState(2, 3, 0, True), GroupState(WAITS, 5, 0, False)
    runs = GroupState(1, 2, 0, False)
    assert (choose([new, waits, runs, old], 1), choose([new, waits, runs, old], 2)) == ([old], [old, new])
    assert choose([new, waits, runs, old], 3) is None


def test_what_is_left_must_be_trained_on_in_time() -> None:
    runs, waits = GroupState(0, 1, 1, False), GroupState(WAITS, 2, 0, False)
    assert not in_time([runs, waits], 4), "it would be too old after this step"
    one, two = (GroupState(1, number, 0, False) for number in (3, 4))
    assert in_time([one, two, waits], 2) and not in_time([one, two, waits], 1), "the next step takes only one"
    assert in_time([one, GroupState(2, 5, 0, True)], 1)
    assert in_time([GroupState(-1, 6, 0, True, has_no_signal=True), one], 1), "a group without a signal may be too old"


def test_a_step_takes_more_groups_where_others_would_be_too_old() -> None:
    states = [GroupState(1, number, 0, True, mixed=True) for number in range(6)]
    assert choose(states, 2, wanted=2, most=9) == states[:4], "the next step takes two"
    running = states[3]._replace(finished=False, mixed=False)
    assert choose([*states[:3], running, *states[4:]], 2, wanted=2, most=9) is None, "it waits for one that runs"


def test_a_step_does_not_wait_for_groups_that_are_replaced_for_ever() -> None:
    """All are dead, one after the other, and as many as are allowed run."""
    dead = [GroupState(2, number, 0, True, has_no_signal=True) for number in range(4)]
    running = [GroupState(2, 4 + number, 0, False) for number in range(6)]
    assert choose([*dead, *running], 2, wanted=2, most=4) == dead
    assert choose([*dead, *running, GroupState(0, 99, 0, False)], 2, wanted=2, most=4) is None, "the last chance"


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 4), st.integers(1, 3), st.data())
def test_no_group_becomes_too_old_and_no_step_waits_for_nothing(
    staleness: int, prompts: int, wanted: int, rounds: int, data: st.DataObject
) -> None:
    """Whatever ends when, with and without dynamic sampling, which needs at most as many mixed groups as prompts."""
    wanted = min(wanted, prompts)
    started: dict[int, int] = {}  # groups that began, and with which version
    finished: dict[int, bool] = {}  # those that ended, and whether they are mixed
    trained: set[int] = set()

    def end(number: int) -> None:
        finished[number] = data.draw(st.booleans())

    for version in range(8):
        while True:
            states = [
                GroupState(
                    staleness - (version - s),
                    number,
                    0,
                    number in finished,
                    mixed=wanted > 0 and finished.get(number, False),
                    has_no_signal=wanted > 0 and not finished.get(number, True),
                )
                for number, s in started.items()
                if number not in trained
            ]
            chosen = choose(states, prompts, wanted, rounds * prompts)
            if chosen is not None:
                break
            new = max(0, (staleness + 1) * prompts - sum(not state.has_no_signal for state in states))
            started |= dict.fromkeys(range(len(started), len(started) + new), version)
            running = sorted(started.keys() - finished)
            assert running, "it waits for something"
            assert len(states) < 200, "it ends"
            end(data.draw(st.sampled_from(running)))
        assert all(state.left >= 0 for state in states if not state.has_no_signal), "none is older than allowed"
        assert wanted or len(chosen) == prompts
        trained |= {state.number for state in chosen}
        for number in sorted(started.keys() - finished, reverse=True)[: data.draw(st.integers(0, 3))]:
            end(number)  # while it trains


def test_with_dynamic_sampling_a_step_takes_as_many_as_it_needs() -> None:
    dead, mixed = GroupState(0, 0, 0, True, has_no_signal=True), GroupState(1, 1, 0, True, mixed=True)
    more = [
        GroupState(1, 2, 0, True, has_no_signal=True),
        GroupState(1, 3, 0, True, mixed=True),
        GroupState(1, 4, 0, True, mixed=True),
    ]
    assert choose([dead, mixed, *more], 2, wanted=2, most=9) == [dead, mixed, *more[:2]]
    assert choose([dead, mixed, *more], 2, wanted=4, most=9) is None
    assert choose([dead, mixed, *more], 2, wanted=4, most=3) == [dead, mixed, more[0]], "the limit of rounds"
    assert choose([mixed, dead], 2, wanted=1, most=9) == [dead, mixed], "at least the step's prompts"
    assert choose([dead, mixed, *more], 2, wanted=1, most=9, ranks=3) == [dead, mixed, more[0]], "as many on each rank"


def test_in_order_a_later_group_never_overtakes() -> None:
    first, second, third = GroupState(0, 0, 0, True), GroupState(0, 1, 0, False), GroupState(0, 2, 0, True)
    assert choose([third, second, first], 1, in_order=True) == [first]
    assert choose([third, second, first], 2, in_order=True) is None


def test_each_token_has_the_version_of_the_weights_that_sampled_it() -> None:
    rollout = make_rollout([random_ids(3, 0)], [[random_ids(4, 1), random_ids(2, 2)]])
    episode = Completion(
        "",
        (1, 2, 3, 4),
        "stop",
        (0.0,) * 4,
        sampled=(True, False, True, True),
        labels=("5", "5", "6"),
        stale_cache=(False, False, True),
    )
    older = Completion("", (1, 2), "stop", (0.0,) * 2)
    group = QueuedGroup(0, rollout.prompts[0], [0, 1], started=4, completions=[episode, older])
    assert versions_of([group], rollout).tolist() == [[5, 4, 5, 6], [4, 4, 4, 4]]
    stale = with_sampled(torch.zeros(2, 4, dtype=torch.bool), [group], lambda completion: completion.stale_cache)
    assert stale.tolist() == [[False, False, False, True], [False] * 4]


class Late(Recorder):
    """Lets a held group end when two steps have overtaken it, and the third has nothing else to wait for.

    Args:
        name: the group's sample id.
    """

    def __init__(self, name: str, held: threading.Event) -> None:
        super().__init__()
        self.name, self.held, self.waits = name, held, 0

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        super().on_train_batch_end(trainer, *args)
        if len(self.rollouts) == 2:
            source: Any = rollout_of(trainer).source
            changed = source._changed.wait

            def wait(seconds: float) -> bool:
                self.waits += all(g.completions is not None for g in source._groups if g.prompt.sample.id != self.name)
                if self.waits == 3:
                    self.held.set()
                return bool(changed(seconds))

            source._changed.wait = wait


def test_no_token_is_older_than_allowed_and_each_group_is_trained_on_once(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    """One group ends late; steps overtake it until it would be too old, and then wait for it."""
    engine, steps, staleness, prompts = Streaming(), 6, 2, 4
    probe = fit(tiny_model_folder, tmp_path / "probe", prompts_per_rollout=prompts, engine=Streaming(), staleness=1)[1]
    late = probe.rollouts[0].prompts[0].sample.id
    seen = Late(late, threading.Event())
    engine.held[late] = seen.held
    fit(
        tiny_model_folder,
        tmp_path / "run",
        steps=steps,
        engine=engine,
        prompts_per_rollout=prompts,
        staleness=staleness,
        recorder=seen,
    )
    ages = []
    for step, rollout in enumerate(seen.rollouts):
        assert rollout.versions is not None and len(rollout.prompts) == prompts
        ages.append(step - rollout.versions[rollout.mask])
    found = torch.cat(ages)
    assert int(found.min()) == 0 and int(found.max()) == staleness
    names = [prompt.sample.id for rollout in seen.rollouts for prompt in rollout.prompts]
    begun = [name for _, name in engine.begun]
    assert (len(names), {*names} <= {*begun}, len(begun)) == (len({*names}), True, len({*begun}))
    assert late in [prompt.sample.id for prompt in seen.rollouts[2].prompts], "as late as it may"
    assert seen.metrics[2]["train/staleness/wait"] > 0 == seen.metrics[1]["train/staleness/wait"]
    first = min(int(label.rpartition("-")[2]) for label, _ in engine.begun)
    for version in range(steps):
        admitted = sum(int(label.rpartition("-")[2]) - first <= version for label, _ in engine.begun)
        assert admitted <= (staleness + version + 1) * prompts


class Slow(Recorder):
    """Training that takes longer than generating all that is allowed."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        super().on_train_batch_end(trainer, *args)
        source: Any = rollout_of(trainer).source
        while source._idle_since is None:
            time.sleep(0.01)
        time.sleep(0.11)


def test_generation_waits_when_the_queue_is_full(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each prompt is prepared once, for the batch or for the queue."""
    engine, steps, staleness, prompts = Streaming(), 4, 2, 4
    prepare = PromptDataModule.prepare
    prepared: list[str] = []

    def count(self: PromptDataModule, prompt: Prompt) -> Prompt:
        prepared.append(prompt.sample.id)
        return prepare(self, prompt)

    monkeypatch.setattr(PromptDataModule, "prepare", count)
    module, seen = fit(
        tiny_model_folder,
        tmp_path,
        steps=steps,
        engine=engine,
        prompts_per_rollout=prompts,
        staleness=staleness,
        recorder=Slow(),
    )
    source: Any = rollout_of(module.trainer).source
    assert source._admitted == len(engine.begun) == (staleness + steps) * prompts
    assert sorted(prepared) == sorted(name for _, name in engine.begun)
    assert [metrics["rollout/queue/finished"] for metrics in seen.metrics[1:]] == [staleness * prompts] * (steps - 1)
    assert all(metrics["time/engine_idle"] > 0.1 for metrics in seen.metrics[2:])


class Saving(Recorder):
    """Saves a checkpoint after some step, while groups run."""

    def __init__(self, path: Path, step: int) -> None:
        super().__init__()
        self.path, self.step = path, step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if len(self.rollouts) == self.step:
            trainer.save_checkpoint(self.path)


def test_resumed_no_group_is_lost_or_trained_on_twice(tiny_model_folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"prompts_per_rollout": 4, "staleness": 2}
    saving = Saving(tmp_path / "run.ckpt", 3)
    fit(tiny_model_folder, tmp_path, steps=5, engine=Streaming(), recorder=saving, **options)
    engine = Streaming()
    module, resumed = fit(
        tiny_model_folder, tmp_path, steps=7, engine=engine, checkpoint=tmp_path / "run.ckpt", **options
    )
    rollouts = [*saving.rollouts[:3], *resumed.rollouts]
    trained = [prompt.sample.id for rollout in rollouts for prompt in rollout.prompts]
    source: Any = rollout_of(module.trainer).source
    left = {group.number: group.prompt.sample.id for group in source._groups}
    assert len(trained) == 4 * 7 == len({*trained}) and source._admitted == 4 * (7 + 2)
    stream = [prompt.sample.id for prompt in module.trainer.datamodule.stream.take(36, {"epoch": 0, "position": 0})[0]]
    assert {*trained} | {*left.values()} == {*stream} and {number: stream[number] for number in left} == left
    again = torch.load(tmp_path / "run.ckpt", weights_only=True)["callbacks"]
    found = next(state["queue"] for state in again.values() if isinstance(state, dict) and "queue" in state)
    finished = {group["number"] for group in found["groups"] if group["completions"] is not None}
    begun = {name for _, name in engine.begun}
    assert not begun & {stream[number] for number in finished}, "what was finished is not generated again"


def test_a_group_that_never_ends_is_dropped_and_named(
    tiny_model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = fit(tiny_model_folder, tmp_path / "probe", prompts_per_rollout=4, engine=Streaming(), staleness=1)[1]
    endless, engine = first.rollouts[0].prompts[0].sample.id, Streaming()
    engine.held[endless], engine.endless = threading.Event(), {endless}
    _, seen = fit(
        tiny_model_folder,
        tmp_path / "run",
        steps=4,
        engine=engine,
        prompts_per_rollout=4,
        staleness=1,
        max_group_seconds=0.5,
    )
    names = {prompt.sample.id for rollout in seen.rollouts for prompt in rollout.prompts}
    assert len(names) == 16 and endless not in names
    assert f"the completions of {endless} have not ended after" in caplog.text
    assert sum(metrics["rollout/queue/dropped"] for metrics in seen.metrics) == 1
    assert [name for _, name in engine.begun].count(endless) == 1
