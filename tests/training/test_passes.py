"""The passes of an iteration over its tokens, in each setting: a table that docs/speed.md shows."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_fit import fit

from lit_rlvr.algorithms import ClipCov
from lit_rlvr.policy.policy import Policy
from lit_rlvr.training.module import RLVRModule

DOCS = Path(__file__).parents[2] / "docs" / "speed.md"
KINDS = ("old", "reference", "training")
RECOMPUTES: dict[str, Any] = {"importance": {"correction": "token_truncate"}}
TABLE: dict[str, tuple[dict[str, Any], tuple[float, float, float]]] = {
    "one update, any `importance.correction`": (RECOMPUTES, (0, 0, 1)),
    "`updates_per_rollout: 2`": (RECOMPUTES | {"updates_per_rollout": 2}, (0.5, 0, 1)),
    "`updates_per_rollout: 3`": ({"updates_per_rollout": 3}, (0.67, 0, 1)),
    "`epochs_per_rollout: 2`": ({"epochs_per_rollout": 2}, (0, 0, 2)),
    "`updates_per_rollout: 2`, `importance.prox_logp_method: loglinear`": (
        {"updates_per_rollout": 2, "importance": {"prox_logp_method": "loglinear"}}, (0, 0, 1)
    ),
    "`kl.coef` above 0": ({"kl": {"coef": 0.1}}, (0, 1, 1)),
    "`kl.in_reward: true`": ({"kl": {"coef": 0.1, "in_reward": True}}, (1, 1, 1)),
    "`kl.in_reward: true`, `updates_per_rollout: 2`": (
        {"kl": {"coef": 0.1, "in_reward": True}, "updates_per_rollout": 2}, (1, 1, 1)
    ),
    "tokens chosen by entropy or covariance (`loss.top_entropy_quantile`, ClipCov)": (
        {"algorithm": ClipCov, "updates_per_rollout": 2}, (1, 0, 1)
    ),
}  # fmt: skip
"""Setting -> its options; how often an iteration's tokens pass the policy for its old log-probabilities, the reference,
and the policy in training."""


@pytest.mark.parametrize("setting", TABLE)
def test_passes_are_those_of_the_table(
    setting: str, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, wanted = TABLE[setting]
    rows: Counter[tuple[int, bool]] = Counter()
    forward_rows = Policy.forward_rows

    def counted(self: Policy, rollout: Any, of_rows: list[int], *arguments: Any, **more: Any) -> Any:
        rows[id(self), torch.is_grad_enabled()] += len(of_rows)
        return forward_rows(self, rollout, of_rows, *arguments, **more)

    training_step = RLVRModule.training_step

    def counting(self: RLVRModule, batch: Any, batch_idx: int) -> None:
        monkeypatch.setattr(Policy, "forward_rows", counted)  # not of the probe before
        training_step(self, batch, batch_idx)

    monkeypatch.setattr(RLVRModule, "training_step", counting)
    steps = options.get("updates_per_rollout", 1) * options.get("epochs_per_rollout", 1)
    module, recorder = fit(tiny_model_folder, tmp_path, steps, skip_nothing=True, **options)
    (rollout,) = recorder.rollouts
    policy, reference = id(module.policy), id(module.reference.policy)
    passes = (rows.pop((policy, False), 0), rows.pop((reference, False), 0), rows.pop((policy, True), 0))
    assert not rows
    assert tuple(round(count / len(rollout.mask), 2) for count in passes) == wanted


def test_the_page_shows_this_table() -> None:
    lines = [f"| setting | {' | '.join(KINDS)} |", "|---|---|---|---|"]
    lines += [
        f"| {setting} | {' | '.join(f'{count:g}' for count in passes)} |" for setting, (_, passes) in TABLE.items()
    ]
    assert "\n".join(lines) in DOCS.read_text()
