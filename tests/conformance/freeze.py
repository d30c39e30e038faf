"""Write what the conformance kit expects: its frozen batches, with the results of the published methods.

    python tests/conformance/freeze.py      # lit_rlvr/conformance/data/{regular,ragged,on_policy}.npz

The results come from the loops in tests/helpers/slow_loops.py, which are written from the papers and import nothing
of lit_rlvr: over 60-digit numbers for losses, in float64 for advantages.

A new loss is a line in `TERMS` there and a table `published` in its record, `lit_rlvr/algorithms/NAME.toml`.
"""

import sys
from pathlib import Path

import numpy as np
from mpmath import mpf

from lit_rlvr.common.seeds import derive_seed
from lit_rlvr.conformance.batches import DATA

sys.path.append(str(Path(__file__).parent.parent / "helpers"))
import slow_loops as slow

LONGEST = 12  # T_max of the regular batch


def regular() -> dict[str, np.ndarray]:
    """Make six groups of four completions.

    Each group has right and wrong completions, with rewards in [0, 1]. Completions have 1 to 9 tokens, some with gaps
    like those of observations. Ratios are near and far from 1.
    """
    prompts, size, width = 6, 4, 9
    rng = np.random.default_rng(derive_seed("check"))
    rows = prompts * size
    mask = np.arange(width) < rng.integers(1, width + 1, rows)[:, None]
    mask[:, 2] &= np.arange(rows) % 3 > 0  # gaps
    correct = np.stack([rng.permutation(np.arange(size) < 1 + p % (size - 1)) for p in range(prompts)]).astype(float)
    logp = -rng.exponential(1.0, (rows, width))
    spread = np.array([1e-4, 1e-3, 0.05, 0.5])[np.arange(rows) % 4]  # of the log-ratios
    away = rng.normal(size=logp.shape)
    away += 0.1 * np.sign(away)  # not at a clip of 0, where there is no derivative
    return {
        "logp": logp,
        "old_logp": logp + spread[:, None] * away,
        "ref_logp": logp + 0.3 * rng.normal(size=logp.shape),
        "mask": mask,
        "rewards": 0.8 * correct + 0.2 * rng.random(correct.shape),
        "correct": correct,
        "reference_rewards": rng.integers(0, 2, correct.shape).astype(float),
        "max_completion_length": np.array(LONGEST),
        "entropy": rng.uniform(0, 3, logp.shape),
    }


def ragged() -> dict[str, np.ndarray]:
    """Make seven groups of four, with empty rows, gaps, groups with equal rewards, and ratios up to e^12."""
    arrays = slow.random_case(0, shaped=True).arrays
    return arrays | {"logp": arrays["old_logp"] + np.clip(arrays["logp"] - arrays["old_logp"], -12, 12)}


def with_results(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Add the advantages of a batch, which are those of `grpo`, and the results of every published method."""
    lists = {k: arrays[v].tolist() for k, v in dict(r="rewards", c="correct", s="reference_rewards").items()}
    lengths = arrays["mask"].sum(1).reshape(arrays["rewards"].shape).tolist()
    results = {
        f"{name}/advantages": np.array(estimate(lengths=lengths, **lists)) for name, estimate in slow.SLOW.items()
    }
    arrays = arrays | {"advantages": results["grpo/advantages"]}
    case = slow.Case(arrays, arrays["rewards"].shape[1], int(arrays["max_completion_length"]))
    for name, terms in slow.TERMS.items():
        advantages = [mpf(float(v)) for v in arrays["advantages"].flatten()]
        loss, gradient = slow.loss_and_gradient(case, [terms(case, advantages)])
        results |= {f"{name}/loss": np.array(loss), f"{name}/dlogp": gradient}
    return arrays | results


def on_policy() -> dict[str, np.ndarray]:
    """Make seven groups of four with rewards of 0 and 1, in which all ratios are 1."""
    return slow.random_case(2, on_policy=True).arrays


MAKERS = {"regular": regular, "ragged": ragged, "on_policy": on_policy}


def main() -> None:
    for name, make in MAKERS.items():
        np.savez_compressed(DATA / f"{name}.npz", **with_results(make()))


if __name__ == "__main__":
    main()
