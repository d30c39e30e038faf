"""When a run is called collapsed, and what is left of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_rewards import judged_as_is
from tiny_runs import fit, metrics, summary, to

from lit_rlvr.errors import UserError
from lit_rlvr.run.monitor import CollapseStop

CLI = Callable[..., Any]
NAN = float("nan")


def test_unsolved_prompts_rise_above_the_best_window() -> None:
    stop = CollapseStop(window=2, unsolved=0.3)
    assert [stop.look(share, NAN) for share in (0.6, 0.4, 0.2, 0.4, 0.6)] == [None] * 5  # 0.5, 0.3, 0.3, 0.5
    said = stop.look(0.7, NAN)  # 0.65 against 0.3
    assert said == "0.65 of the prompts are unsolved, after 0.30 at best"


def test_entropy_explodes() -> None:
    stop = CollapseStop(window=2, entropy=3.0)
    assert [stop.look(0.0, value) for value in (1.0, 2.0, 4.0, NAN, 5.0)] == [None] * 5  # first 1.5, at most 4.5
    assert stop.look(0.0, 4.2) == "the entropy is 4.60 nats per token, after 1.50 at first"


def test_the_state_goes_on() -> None:
    whole, cut = CollapseStop(window=3, unsolved=0.2), CollapseStop(window=3, unsolved=0.2)
    shares = [0.1, 0.1, 0.2, 0.3, 0.4, 0.5]
    said = [whole.look(share, 1.0) for share in shares]
    first = [cut.look(share, 1.0) for share in shares[:3]]
    resumed = CollapseStop(window=3, unsolved=0.2)
    resumed.load_state_dict(json.loads(json.dumps(cut.state_dict())))
    assert first + [resumed.look(share, 1.0) for share in shares[3:]] == said and said[-1] is not None


def test_a_run_that_forgets_stops_and_says_why(run_folder: Path, lit_rlvr: CLI) -> None:
    forget = (
        "--model.init_args.lr",
        "0.03",
        "--rollout.rewards",
        json.dumps([judged_as_is("unlearn")]),
        "--trainer.max_steps",
        "60",
    )
    result = fit(lit_rlvr, *forget, "--collapse.window", "3", "--collapse.unsolved", "0.3", *to("run"))
    found = summary(run_folder / "run")
    assert found["steps"] < 60 and found["stopped"].startswith("collapse: ") and "collapsed" in result.err
    assert found["accuracy_after"] is not None and len(metrics(run_folder / "run")) >= found["iterations"]


def test_bad_limits_are_refused() -> None:
    for options in ({"window": -1}, {"unsolved": 0.0}, {"entropy": 1.0}):
        with pytest.raises(UserError, match="collapse: window="):
            CollapseStop(**options)  # type: ignore[arg-type]
