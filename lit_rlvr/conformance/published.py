"""The published losses and advantages whose results are frozen, with formula and source.

P prompts, G completions each, B = P * G; n_i tokens of completion i in the loss, N of all; `w = exp(logp - old_logp)`;
A advantage, r reward, c correct (0 or 1), s reward of the reference model, mu and sd mean and population standard
deviation of a group. All losses have the batch's `advantages`. An advantage is 0 in a group whose rewards are equal.

`tests/conformance/freeze.py` computes the results by loops over numbers that import nothing of this package, with 60
digits for losses and float64 for advantages. Names with a slash are those of verl, frozen from its own functions.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lit_rlvr.common.did_you_mean import did_you_mean
from lit_rlvr.conformance.batches import load_data
from lit_rlvr.errors import UserError


@dataclass(frozen=True)
class Published:
    """A published loss or advantage.

    Args:
        formula: the mathematics, with the values of its options.
        source: the paper and equation, or the commit, file and lines.
        stops_gradient: the loss holds some of its values fixed in the gradient.
    """

    formula: str
    source: str
    stops_gradient: bool = False


@dataclass(frozen=True)
class AlgorithmRecord:
    """What tables and pages say of an algorithm: a file `NAME.toml` next to that of its class.

    Args:
        page: NAME, which is also that of its page in docs/algorithms.
        loss: the class.
        title: the name of the method.
        paper: the papers in Markdown, with links to arXiv.
        ratio: that of its loss, where it differs from what the class's attributes say; "" = it does not.
        trl, verl: the setting of TRL and of verl; "-" = none.
        here: our setting for it, with options that have other names there; "" = leave it out of that table.
        same: whether both compute the same.
        study: the file in research/results with recorded runs; None = no run is recorded.
        published: what the conformance kit expects of the class's defaults; None = nothing is frozen.
    """

    page: str
    loss: str
    title: str
    paper: str
    ratio: str = ""
    trl: str = "-"
    verl: str = "-"
    here: str = ""
    same: str = ""
    study: str | None = None
    published: Published | None = None

    @property
    def arxiv(self) -> list[str]:
        """The numbers of the papers, the first one first."""
        return re.findall(r"arxiv\.org/abs/([\d.]+)", self.paper)


def read_record(file: Path) -> AlgorithmRecord:
    """Read the record of an algorithm."""
    values = tomllib.loads(file.read_text())
    published = values.pop("published", None)
    return AlgorithmRecord(file.stem, **values, published=published and Published(**published))


RECORDS = sorted(
    (read_record(file) for file in (Path(__file__).parent.parent / "algorithms").glob("*.toml")),
    key=lambda record: (record.arxiv[0], record.page),
)
"""The records of all algorithms, in the order of their papers."""
LOSSES = {record.loss: record.published for record in RECORDS if record.published}
"""The losses, under the names of their classes."""

BASE = "A of grpo"
ADVANTAGES = {
    "grpo": Published("(r - mu) / (sd + 1e-6)", "arXiv 2402.03300"),
    "dr_grpo": Published("r - mu", "arXiv 2503.20783"),
    "gpg": Published("(r - mu) P / P_valid, P_valid the groups whose rewards differ", "arXiv 2504.02546"),
    "rloo": Published("r - the mean of the group's other rewards", "arXiv 2402.14740"),
    "opo": Published("r - sum(l r) / sum(l), l the lengths", "arXiv 2505.23585"),
    "maxrl": Published("(r - mu) / mu, 0 where mu <= 0", "arXiv 2602.02710"),
    "pass_at_k": Published(
        "the mean over the pairs of completions that hold it of their reward (1 if one is right), standardised over "
        "all pairs of the group",
        "arXiv 2508.10751, k = 2",
    ),
    "grpo_passk": Published("the best r minus the second best for the best, 0 for the others", "arXiv 2503.19595"),
    "reinforce_pp": Published("(r - mean) / sd over the batch, each completion counted l times", "arXiv 2501.03262"),
    "none": Published("0", "no paper: for distillation"),
    "reinforce": Published("0.1 where c = 1, -1 where c = 0", "arXiv 2506.01347"),
    "aapo": Published(f"{BASE} + clip(r - s, -0.2, 0.28)", "arXiv 2505.14264, eq. 5"),
    "agrae": Published(
        f"A1 = omega/2 A/sqrt(p) + (1 - omega)/2 A/sqrt(1 - p), times omega where A1 > 0; {BASE}, p the mean of c in "
        "the group, omega in the batch",
        "arXiv 2602.05548, eqs. 11-13",
    ),
    "positive_dominant": Published(f"{BASE}, times 10 where positive", "arXiv 2602.05548"),
    "negative_dominant": Published(f"{BASE}, divided by 10 where positive", "arXiv 2602.05548"),
    "hard_focused": Published(f"0.5 / sqrt(p) times the {BASE}, where 0 < p < 1", "arXiv 2602.05548"),
    "easy_focused": Published(f"0.5 / sqrt(1 - p) times the {BASE}, where 0 < p < 1", "arXiv 2602.05548"),
    "gdpo": Published(
        "grpo with sample deviations and 1e-4, standardised once more over the batch", "arXiv 2601.05242"
    ),
    "grpo_lead": Published(
        "grpo on exp(-0.05 z) where c = 1, else -1, with z the standardised length of the right ones; times weight(p) "
        "where positive, else weight(1 - p), weight(x) = 0.4 + 1.1 / (1 + exp(10 (x - 0.75)))",
        "arXiv 2504.09696",
    ),
    "gigpo": Published(f"2 x {BASE}: each completion is one turn, whose state is the prompt", "arXiv 2505.10978"),
    "step_returns": Published(f"{BASE}: each completion is one turn", "no paper"),
}
"""The advantages, under the names of `lit_rlvr.advantages`."""

CORE_ALGOS = "verl b178a3c, verl/trainer/ppo/core_algos.py"
LOSSES |= {
    "verl/token-mean": Published("vanilla, clip 0.2 and 0.28, clip_ratio_c 3", f"{CORE_ALGOS}:1025 and 1160"),
    "verl/seq-mean-token-mean": Published("vanilla, clip 0.2, clip_ratio_c 3", f"{CORE_ALGOS}:1025 and 1160"),
    "verl/seq-mean-token-sum-norm": Published(
        "vanilla, clip 0.2, clip_ratio_c 3, loss_scale_factor T_max", f"{CORE_ALGOS}:1025 and 1160"
    ),
    "verl/gspo": Published("clip 3e-4 and 4e-4", f"{CORE_ALGOS}:1254"),
    "verl/cispo": Published("clip_ratio_low 1, clip_ratio_high 4", f"{CORE_ALGOS}:1722", True),
    "verl/sapo": Published("tau_pos 1, tau_neg 1.05", f"{CORE_ALGOS}:1330"),
    "verl/geo_mean": Published("clip 0.4", f"{CORE_ALGOS}:1636"),
    "verl/gpg": Published("token-mean", f"{CORE_ALGOS}:1415"),
}


def find_published(name: str, known: dict[str, Published]) -> Published:
    """Return a published loss or advantage.

    Raises:
        UserError: there is none of that name; the message names the nearest.
    """
    if name not in known:
        hint = did_you_mean(name, known, f"use one of {', '.join(known)}")
        raise UserError(f"--expect: there is no {name!r}; {hint}")
    return known[name]


def expected(name: str, batch: str) -> dict[str, Tensor]:
    """Return the frozen results of a published method: `loss` () and `dlogp` (B, T), or `advantages` (P, G)."""
    file, prefix = ("verl", f"{batch}/{name}/") if "/" in name else (batch, f"{name}/")
    arrays = {}
    for key, array in load_data(file).items():
        if key.startswith(prefix):
            arrays[key] = array
    tensors = {}
    for key, array in arrays.items():
        tensors[key.removeprefix(prefix)] = torch.tensor(array)
    return tensors
