"""Where do the losses differ? On the same rollouts, each loss's gradient against GRPO's, by learning rate, updates per
rollout and prompts per minibatch.

GRPO trains on the task of the claims (configs/studies/claims/steps.yaml) from three warm starts. In every second
rollout, every other loss computes its gradient too, before an optimizer step: on the same minibatch, with the same
weights and the same log-probabilities of rollout time. Up to four steps of a rollout are measured, evenly spread from
the first, on which all ratios are 1. Measured are the cosine of both gradients and the ratio of their norms, as means
over the measured steps of a rollout and then over rollouts and warm starts. A standard error is that of the mean over
rollouts, which counts them as independent.

A rollout has updates x prompts per minibatch prompts, so that more updates do not mean smaller minibatches. In a
minibatch with one group that has a gradient, every loss that only weighs groups has cosine 1; `live groups` says how
many a minibatch has.

`--out DIR` writes DIR/results.json and DIR/mechanism.png; `research/findings.py --take mechanism=DIR` shows them on
research/findings.md.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, product, starmap
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import passive  # noqa: F401
import torch
from common import make_parser, print_result, print_table, say

from lit_rlvr.advantages import GroupBatch, ReferenceCompletions
from lit_rlvr.advantages.group import GRPOAdvantage
from lit_rlvr.algorithms import GRPO, RLVRModule
from lit_rlvr.commands.check.parity import build_object
from lit_rlvr.common.run_files import read_metrics
from lit_rlvr.options import Importance
from lit_rlvr.training.step.loss_inputs import loss_inputs
from lit_rlvr.training.step.plan import StepPlan, plan_step
from lit_rlvr.training.step.prepared import PreparedRollout
from lit_rlvr.training.step.updater import Updater
from lit_rlvr.types import Rollout

LEARNING_RATES = (1e-4, 2e-4, 4e-4, 8e-4)
UPDATES = (2, 4, 16)
PROMPTS = (8,)
ROLLOUTS = 64
EVERY = 2
"""A run's rollouts from one measurement to the next."""
STEPS = 4
"""Steps of a rollout to measure at most."""


def by_advantage(name: str, **options: Any) -> dict[str, Any]:
    return {"class_path": "GRPO", "init_args": {"advantage": {"class_path": name, "init_args": options}}}


LOSSES: dict[str, dict[str, dict[str, Any]]] = {
    "A-GRAE": {
        "positive_dominant": by_advantage("PositiveDominant", beta=10),
        "negative_dominant": by_advantage("NegativeDominant", beta=10),
        "hard_focused": by_advantage("HardFocused", gamma=0.5),
        "easy_focused": by_advantage("EasyFocused", gamma=0.5),
        "sample_level": by_advantage("AGRAE", alpha=1.0, group_level=False),
        "group_level": by_advantage("AGRAE", alpha=1.0, sample_level=False),
        "agrae": by_advantage("AGRAE", alpha=1.0),
    },
    "APMPO": {
        "dapo": {"class_path": "DAPO"},
        "gmpo": {"class_path": "GMPO"},
        "fac": {"class_path": "APMPO", "init_args": {"schedule": {"power": 1.0}, "kl": {"coef": 0.0}}},
        "pmpo": {"class_path": "APMPO", "init_args": {"eps_max": 0.2, "kl": {"coef": 0.0}}},
        "apmpo": {"class_path": "APMPO", "init_args": {"kl": {"coef": 0.0}}},
    },
    "AAPO": {
        "gpg": {"class_path": "GPG", "init_args": {
            "advantage": {"class_path": "GPGAdvantage", "init_args": {"f_norm": "one", "rescale_valid": False}},
            "loss": {"aggregation": "group_token_mean"}}},
        "aapo": {"class_path": "AAPO"},
    },
    "others": {
        "dr_grpo": {"class_path": "DrGRPO"},
        "gspo": {"class_path": "GSPO"},
        "cispo": {"class_path": "CISPO"},
        "grpo_lead": {"class_path": "GRPOLead"},
        "reinforce": {"class_path": "Reinforce"},
    },
}  # fmt: skip
"""Paper -> cell -> loss, as in configs/studies/claims."""


@dataclass
class WithReference(GRPOAdvantage):
    """GRPO's advantage in a run that also samples the reference model, whose rewards AAPO's margin needs."""

    @property
    def reference_completions(self) -> ReferenceCompletions:
        return ReferenceCompletions()


class Compared(GRPO):
    """GRPO, which logs for every loss of `LOSSES` `gradient/NAME/cosine` and `gradient/NAME/log_norm`.

    `gradient/previous/cosine` is that of GRPO's own gradients on two minibatches, one measured after the other: the
    scale of the noise.

    Args:
        every: rollouts between two measurements.
    """

    trains_all_rows = True  # AAPO has a gradient where GRPO's advantages are 0

    def __init__(self, every: int = EVERY, **options: Any) -> None:
        super().__init__(advantage=WithReference(), **options)
        self.every = every
        self.losses: dict[str, RLVRModule] = {
            name: build_object(spec, name) for cells in LOSSES.values() for name, spec in cells.items()
        }

    def on_train_start(self) -> None:
        super().on_train_start()
        self.updater = ComparingUpdater(self, **vars(self.updater))

    @property
    def measures(self) -> bool:
        """True if the current rollout is measured."""
        return (self.iteration + 1) % self.every == 0


class ComparingUpdater(Updater):
    """Compares the gradients of all losses before each step of a measured rollout."""

    def __init__(self, compared: Compared, **parts: Any) -> None:
        vars(self).update(parts)
        self._compared = compared
        self._advantages: dict[str, torch.Tensor] = {}
        self._previous: torch.Tensor | None = None
        self._measured: dict[str, float] = {}

    def prepare(self, rollout: Rollout, *others: Any) -> PreparedRollout:
        self._previous = None
        group = GroupBatch(rollout.rewards, rollout.correct, rollout.reference_rewards, rollout.lengths)
        for name, loss in self._compared.losses.items():
            self._advantages[name] = loss.estimate(group)[0].reshape(-1, 1)
        return super().prepare(rollout, *others)

    def begin_step(self, plan: StepPlan) -> None:
        self._measured = {}
        spread = max(1, self._compared.updates_per_rollout // STEPS)
        if self._compared.measures and plan.prepared.steps_taken % spread == 0:
            self._measure(plan.prepared, plan.groups)
        super().begin_step(plan)

    def measure(self, plan: StepPlan, *others: Any) -> dict[str, float]:
        return super().measure(plan, *others) | self._measured

    def _measure(self, prepared: PreparedRollout, prompts: list[int]) -> None:
        """Compare all gradients on the minibatch of a step; a minibatch where GRPO's is 0 has nothing to compare."""
        plan = self._plan(self._compared, prepared, prompts)
        assert len(plan.microbatches) == 1, "raise model.compute.tokens_per_microbatch"
        scores = self.forward(plan, 0)

        def gradient(loss: RLVRModule, of: StepPlan) -> torch.Tensor:
            value = loss.loss(loss_inputs(of, 0, scores)[0])[0]
            found = torch.autograd.grad(value, list(self.policy.parameters()), retain_graph=True)
            return torch.cat([part.flatten() for part in found]).double()

        own = gradient(self._compared, plan)
        if own.norm() == 0:
            return
        size = prepared.rollout.group_size
        signals = prepared.advantages.reshape(-1, size)[prompts].abs().sum(dim=1)
        self._measured["gradient/live_groups"] = float((signals > 0).sum())
        for name, loss in self._compared.losses.items():
            advantages = self._advantages[name]
            other = replace(prepared, advantages=advantages, importance=Importance("none"))
            theirs = gradient(loss, self._plan(loss, other, prompts))
            self._measured |= {
                f"gradient/{name}/cosine": cosine(own, theirs),
                f"gradient/{name}/log_norm": float((theirs.norm() / own.norm()).log()),
            }
        if self._previous is not None:
            self._measured["gradient/previous/cosine"] = cosine(own, self._previous)
        self._previous = own

    def _plan(self, loss: RLVRModule, prepared: PreparedRollout, prompts: list[int]) -> StepPlan:
        """Return the step with a loss's own advantages and mean over tokens."""
        return plan_step(prepared, prompts, loss, self.limits)


def cosine(x: torch.Tensor, y: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(x, y, dim=0))


@dataclass(frozen=True)
class Setting:
    """A point of the picture.

    Args:
        lr: the learning rate.
        updates: optimizer steps per rollout, which is its number of minibatches.
        prompts: prompts of each minibatch.
    """

    lr: float
    updates: int
    prompts: int

    @property
    def name(self) -> str:
        return f"{self.lr:g}, {self.updates} x {self.prompts}"


def train(folder: Path, config: str, setting: Setting, warm_start: int, measured: int, every: int) -> None:
    """Train GRPO on a config's task into `folder`, unless it is there already.

    Args:
        measured: rollouts to measure, one of `every`.
    """
    from lit_rlvr.cli.main import run

    if (folder / "summary.json").is_file():
        return
    sys.path.insert(0, str(Path(__file__).parent))
    status = run([
        "fit", "--config", config, "--model", "mechanism.Compared", "--model.init_args.model", "tiny-llama",
        "--model.init_args.every", str(every), "--model.init_args.lr", str(setting.lr),
        "--model.init_args.updates_per_rollout", str(setting.updates),
        "--data.init_args.prompts_per_rollout", str(setting.updates * setting.prompts),
        "--data.init_args.seed", str(warm_start), "--trainer.max_steps", str(measured * every * setting.updates),
        "--trainer.limit_val_batches", "0", "--trainer.default_root_dir", str(folder), "--overwrite", "true",
    ])  # fmt: skip
    if status:
        raise SystemExit(status)


def measure(folders: Sequence[Path]) -> dict[str, Any]:
    """Return means over all runs of a setting: of each loss's cosine and norm (geometric), with standard errors, and of
    GRPO's own metrics.

    `measured` counts the rollouts behind a mean, `live_groups` a minibatch's groups whose advantages are not all 0.
    `first_accuracy` is that of the first rollout, `accuracy` that of the last quarter of them.
    """
    runs = [list(read_metrics(folder / "metrics.csv").values()) for folder in folders]

    def values(metric: str, part: slice = slice(None)) -> list[float]:
        return [row[metric] for run in runs for row in run[part] if not math.isnan(row.get(metric, math.nan))]

    def of(metric: str, part: slice = slice(None)) -> float:
        return fmean(values(metric, part))

    def error(metric: str) -> float | None:
        found = standard_error(values(metric))
        return None if found is None else rounded(found)

    names = [name for cells in LOSSES.values() for name in cells]
    found = {name: of(f"train/{name}") for name in ("clip_low", "clip_high", "grad_norm", "entropy")}
    found |= {"previous": of("gradient/previous/cosine"), "live_groups": of("gradient/live_groups")}
    found |= {"first_accuracy": of("rollout/accuracy", slice(1))}
    found |= {"accuracy": of("rollout/accuracy", slice(len(runs[0]) * 3 // 4, None))}
    losses = {
        name: {
            "cosine": rounded(of(f"gradient/{name}/cosine")),
            "cosine_error": error(f"gradient/{name}/cosine"),
            "norm": rounded(math.exp(of(f"gradient/{name}/log_norm"))),
            "log_norm_error": error(f"gradient/{name}/log_norm"),
        }
        for name in names
    }
    measured = len(values(f"gradient/{names[0]}/cosine"))
    return {"measured": measured, "losses": losses} | {name: rounded(value) for name, value in found.items()}


def rounded(value: float) -> float | None:
    """Round to six significant digits; return None for NaN and infinity."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def standard_error(values: Sequence[float]) -> float | None:
    """Return the standard error of a mean; None for fewer than two values, and if one is infinite."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    return stdev(values) / math.sqrt(len(values))


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Draw 1 - cosine (above) and the ratio of the norms (below) against the learning rate, a column per paper.

    Error bars are standard errors.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(LOSSES), figsize=(17, 8), sharex=True, sharey="row", constrained_layout=True)
    settings = list(found["settings"].values())
    rates = sorted({setting["lr"] for setting in settings})
    kinds = list(dict.fromkeys((setting["updates"], setting["prompts"]) for setting in settings))
    styles = dict(zip(kinds, cycle(("-", "--", ":", "-.")), strict=False))
    for column, (paper, cells) in enumerate(LOSSES.items()):
        for k, name in enumerate(cells):
            for kind, style in styles.items():
                line = sorted((s for s in settings if (s["updates"], s["prompts"]) == kind), key=lambda s: s["lr"])
                losses = [setting["losses"][name] for setting in line]
                shown = name.replace("_", " ") if kind == kinds[0] else None
                at = [setting["lr"] for setting in line]
                how: dict[str, Any] = {"fmt": style, "color": f"C{k}", "marker": "o", "markersize": 3, "capsize": 2}
                axes[0, column].errorbar(at, [1 - x["cosine"] for x in losses], errors_of(losses, "cosine"),
                                         label=shown, **how)  # fmt: skip
                axes[1, column].errorbar(at, [x["norm"] or math.nan for x in losses], errors_of(losses, "norm"), **how)
        axes[0, column].set_title(paper)
        axes[0, column].legend(fontsize=8, loc="lower left")
        axes[1, column].set_xlabel("learning rate")
    axes[0, 0].set_ylabel("1 - cosine with GRPO's gradient")
    axes[1, 0].set_ylabel("norm / norm of GRPO's gradient")
    for axis in axes.flat:
        axis.set_xscale("log")
        axis.set_xticks(rates, [f"{lr:g}" for lr in rates])
        axis.minorticks_off()
        axis.set_yscale("log", nonpositive="clip")
        axis.grid(alpha=0.3)
    kinds_said = ", ".join(f"{u} x {p} ({style})" for (u, p), style in styles.items())
    figure.suptitle(f"minibatches x prompts of each: {kinds_said}")
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def errors_of(losses: Sequence[Mapping[str, float | None]], key: str) -> list[float]:
    """Return the standard errors of some cosines or norms; NaN, which draws no bar, where the record has none."""
    if key == "cosine":
        return [loss.get("cosine_error") or math.nan for loss in losses]
    return [(loss["norm"] or math.nan) * (loss.get("log_norm_error") or math.nan) for loss in losses]


def parse() -> Any:
    parser = make_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and the results")
    parser.add_argument("--config", default="studies/claims/steps", help="of `lit-rlvr fit`")
    parser.add_argument("--learning-rates", type=float, nargs="+", default=LEARNING_RATES)
    parser.add_argument("--updates", type=int, nargs="+", default=UPDATES, help="optimizer steps per rollout, from 2")
    parser.add_argument("--prompts", type=int, nargs="+", default=PROMPTS, help="prompts of each minibatch")
    parser.add_argument(
        "--rollouts", type=int, default=ROLLOUTS, help="rollouts to measure per point, over all warm starts"
    )
    parser.add_argument("--every", type=int, default=EVERY, help="rollouts of a run from one measurement to the next")
    parser.add_argument("--warm-starts", type=int, nargs="+", default=[0, 1, 2], help="seeds of the data")
    return parser.parse_args()


def main() -> None:
    options = parse()
    started = time.perf_counter()
    settings = {}
    measured = math.ceil(options.rollouts / len(options.warm_starts))
    for setting in starmap(Setting, product(options.learning_rates, options.updates, options.prompts)):
        kind = f"lr-{setting.lr:g}_updates-{setting.updates}_prompts-{setting.prompts}"
        folders = [options.out / f"{kind}_{warm_start}" for warm_start in options.warm_starts]
        for warm_start, folder in zip(options.warm_starts, folders, strict=True):
            train(folder, options.config, setting, warm_start, measured, options.every)
            say(f"{time.perf_counter() - started:.0f} s: {folder.name}")
        settings[setting.name] = vars(setting) | measure(folders)
    found = {
        "warm_starts": options.warm_starts, "rollouts": measured * options.every, "every": options.every,
        "settings": settings,
    }  # fmt: skip
    (options.out / "results.json").write_text(json.dumps(found) + "\n")
    draw(found, options.out / "mechanism.png")
    print_table(
        ("learning rate, minibatches x prompts", "loss", "cosine", "error", "norm", "error of its log"),
        [(key, name, *loss.values()) for key, value in settings.items() for name, loss in value["losses"].items()],
    )
    print_result(**found)


if __name__ == "__main__":
    main()
