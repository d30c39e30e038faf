"""A simulation of asynchronous training (`rollout.staleness: k`) on GPUs that train and GPUs that generate.

It needs no GPU: completions are lengths drawn from a log-normal distribution, and a server decodes all of its running
completions in lockstep, each step in a fixed time and a time for each completion. The sizes come from `lit-rlvr plan`,
the rates of the GPUs are options; their defaults are shares of an H100's data sheet, not measurements. Compared are:
k = 0 with vLLM on the GPUs that train, k = 0 with servers, and k > 0, each with its fastest split of the GPUs.

- At version v, at most (k + v + 1) x P groups have started (AReaL's capacity rule); P are trained in a step.
- A step takes the finished groups that started first. It waits while the steps after it could not take all the others
  before they are older than k.
- A weight update pauses the servers. Completions go on afterwards, once their KV cache is computed anew; without
  partial rollouts, the update waits until all of them have ended, and none starts meanwhile.
- With the shared queue, the next group goes to the server with the most free capacity. Without it, each training
  process generates its own share of the prompts, in its share of each server's capacity.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parent.parent / "docs/scripts"))
from common import make_parser, print_result, say
from plots import Panel, draw
from simulation import Setting, measure, shares_of, without_shared_queue


def draw_groups(groups: int, options: Any) -> np.ndarray:
    """Return lengths of completions, (groups, group size)."""
    mu = math.log(options.mean) - options.sigma**2 / 2
    draws = np.random.default_rng(0).lognormal(mu, options.sigma, (groups, options.group_size))
    return np.clip(np.ceil(draws), 1, options.longest)


def planned(model: str, trainers: int, servers: int, lengths: np.ndarray, options: Any) -> Setting | None:
    """Return the setting of `plan`'s sizes for a split with k = 0 and a shared queue, or None if training does not fit.

    Args:
        servers: GPUs that generate; 0 = those that train, each of them for its own share of the prompts.
    """
    from sizing_page import MICROBATCH_TOKENS, job

    from lit_rlvr.sizing.gpus import GIB, GPUs
    from lit_rlvr.sizing.memory import kv_bytes_per_token
    from lit_rlvr.sizing.strategies import FREE

    sizes = replace(
        job(model, 0.0), budget=max(MICROBATCH_TOKENS, options.prompt + options.longest), prompt=options.prompt,
        completion=options.longest, group=options.group_size, prompts=options.prompts,
    )  # fmt: skip
    shares = [0.0] if servers else [percent / 100 for percent in range(90, 0, -5)]
    plans = [replace(sizes, share=share).proposal(GPUs(trainers, options.gib)) for share in shares]
    plan = next((plan for plan in plans if plan and not plan.strategy.lora and not plan.strategy.offload), None)
    if plan is None:
        return None
    text, weights = sizes.whole.text, 2 * sizes.whole.parameters  # bytes, and FLOPs of a token
    keys = options.prompt + float((lengths**2).sum() / lengths.sum() / 2)  # of a token, in the mean
    training = 3 * weights + 12 * text.count * text.heads * keys
    prefill = weights / (options.forward_tflops * 1e12)
    places = plan.sequences or sizes.sequences(GPUs(1, options.gib), (1 - FREE) * options.gib * GIB)
    quotas: tuple[int, ...] = (options.prompts,)
    capacity: tuple[tuple[int, ...], ...] = ((places,) * servers,)
    if not servers:
        quotas = shares_of(options.prompts, trainers)
        capacity = tuple(tuple(places * (a == b) for b in range(trainers)) for a in range(trainers))
    return Setting(
        staleness=0, quotas=quotas, capacity=capacity, places=places, lengths=lengths, prompt=options.prompt,
        prefill=prefill,
        decode=(options.step_ms / 1e3 + weights / (options.bandwidth * 1e12),
                kv_bytes_per_token(sizes.whole, 2) * keys / (options.bandwidth * 1e12) + prefill),
        train=training * (4 / 3 if plan.strategy.checkpointing else 1) / (trainers * options.train_tflops * 1e12),
        update=options.update_seconds + weights / (options.link * 1e9),
    )  # fmt: skip


def fastest(settings: dict[int, Setting], window: tuple[int, int]) -> float:
    """Return the groups per second of the best split."""
    return max(measure(setting, *window)["groups_per_second"] for setting in settings.values())


def simulate(model: str, options: Any) -> dict[str, Any]:
    """Return the numbers of k = 0 on the GPUs that train, and of each k with its best split."""
    lengths = draw_groups((options.steps + options.warm_up + max(options.staleness) + 1) * options.prompts, options)
    window = (options.steps, options.warm_up)
    together = planned(model, options.gpus, 0, lengths, options)
    splits = {
        n: planned(model, n, options.gpus - n, lengths, options) for n in options.train_gpus or range(1, options.gpus)
    }
    colocated = measure(together, *window) if together else None
    found: dict[int, dict[str, Any]] = {}
    for k in options.staleness:
        settings = {n: replace(setting, staleness=k) for n, setting in splits.items() if setting}
        runs = {n: measure(setting, *window) for n, setting in settings.items()}
        best = max(runs, key=lambda n: runs[n]["groups_per_second"])
        near = [n for n in settings if abs(n - best) <= 1]
        found[k] = runs[best] | {
            "k": k,
            "split": f"{best} + {options.gpus - best}",
            "own_queues": fastest({n: without_shared_queue(settings[n], n) for n in near}, window),
            "no_partial": fastest({n: replace(settings[n], partial=False) for n in near}, window),
            "places": settings[best].places,
            "all_splits": {n: run["groups_per_second"] for n, run in runs.items()},
        }
        found[k]["of_best_bound"] = min(run["bound"] for run in runs.values()) / found[k]["seconds"]
        rate = found[k]["groups_per_second"]
        found[k]["speedup"] = rate / found[options.staleness[0]]["groups_per_second"]
        found[k]["speedup_colocated"] = rate / colocated["groups_per_second"] if colocated else math.nan
        say(f"{model}, k = {k}: {found[k]['split']} GPUs, {rate:.2f} groups/s")
    return {"colocated": colocated, "staleness": found}


TABLES = (
    {
        "k": "{k}",
        "GPUs that train + generate": "{split}",
        "s a step": "{seconds:.1f}",
        "groups/s": "{groups_per_second:.2f}",
        "x colocated": "{speedup_colocated:.2f}",
        "x servers": "{speedup:.2f}",
        "trainer idle": "{trainer_idle:.0%}",
        "servers idle": "{servers_idle:.0%}",
        "capacity used": "{capacity_used:.0%}",
        "bound, s": "{bound:.1f}",
        "of the bound": "{of_bound:.0%}",
        "of the best split's": "{of_best_bound:.0%}",
    },
    {
        "k": "{k}",
        "staleness of tokens": "{token_staleness:.2f}",
        "of groups": "{group_staleness:.2f}",
        "largest": "{max_staleness}",
        "s waited for old groups": "{rule_seconds:.1f}",
        "s of KV cache anew": "{recompute_seconds:.1f}",
        "mean length trained": "{length_trained:.0f}",
        "sampled": "{length_sampled:.0f}",
        "groups/s without shared queue": "{own_queues:.2f}",
        "without partial rollouts": "{no_partial:.2f}",
    },
)
"""Column -> the format of a run's numbers."""


def show(model: str, found: dict[str, Any]) -> None:
    """Print the tables of a model, in Markdown."""
    runs, together = [*found["staleness"].values()], found["colocated"]
    print(f"**{model}**, at most {runs[0]['places']} completions at once on a server", end="")
    print(
        "; colocated: {seconds:.1f} s a step, {groups_per_second:.2f} groups/s\n".format(**together)
        if together
        else "\n"
    )
    for columns in TABLES:
        rows = [[text.format(**run) for text in columns.values()] for run in runs]
        print("\n".join(f"| {' | '.join(row)} |" for row in ([*columns], ["---"] * len(columns), *rows)) + "\n")


def panels(model: str, found: dict[str, Any]) -> list[Panel]:
    ks, runs, together = [*found["staleness"]], [*found["staleness"].values()], found["colocated"]
    speed = {"shared queue, partial rollouts": "groups_per_second", "without shared queue": "own_queues",
             "without partial rollouts": "no_partial"}  # fmt: skip
    idle = {"trainer idle": "trainer_idle", "servers idle": "servers_idle"}
    curves = [{name: (ks, [run[key] for run in runs]) for name, key in group.items()} for group in (speed, idle)]
    if together:
        curves[0]["k = 0, vLLM on the GPUs that train"] = (ks, [together["groups_per_second"]] * len(ks))
    curves[1]["capacity of servers unused"] = (ks, [1 - run["capacity_used"] for run in runs])
    return [Panel(f"{model} (simulated)", "k", y, found, logarithmic=False)
            for y, found in zip(("groups per second", "share of the time"), curves, strict=True)]  # fmt: skip


OPTIONS = {
    "gpus": (8, "all GPUs"),
    "gib": (80.0, "memory of a GPU"),
    "prompts": (128, "prompts of a step"),
    "group_size": (8, "completions of a prompt"),
    "prompt": (1024, "tokens of a prompt"),
    "mean": (2000.0, "mean tokens of a completion, before the limit"),
    "sigma": (1.0, "standard deviation of the logarithm of lengths"),
    "longest": (8192, "limit of a completion, in tokens"),
    "train_tflops": (400.0, "TFLOP/s that training reaches on a GPU"),
    "forward_tflops": (500.0, "TFLOP/s that vLLM reaches on a GPU"),
    "bandwidth": (2.3, "TB/s that decoding reaches on a GPU"),
    "step_ms": (3.0, "milliseconds of a decoding step besides reading and computing"),
    "link": (16.0, "GB/s of weights to the servers"),
    "update_seconds": (0.5, "seconds of a weight update besides sending"),
    "steps": (40, "steps of a simulation"),
    "warm_up": (20, "steps before them, which do not count"),
}
"""Name -> (default, help)."""


def parse() -> Any:
    parser = make_parser(__doc__)
    parser.add_argument("--models", nargs="+", default=["Qwen2.5-1.5B", "Qwen2.5-7B"], help="names in sizing.py")
    parser.add_argument("--staleness", nargs="+", type=int, default=[0, 1, 2, 4, 8], help="values of k")
    parser.add_argument("--train-gpus", nargs="+", type=int, help="GPUs that train, to compare (default: every split)")
    for name, (default, text) in OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=text)
    parser.add_argument("--out", type=Path, default=Path("runs/asynchrony.png"), help="the picture")
    return parser.parse_args()


def main() -> None:
    options = parse()
    found = {model: simulate(model, options) for model in options.models}
    for model in options.models:
        show(model, found[model])
    draw([panel for model in options.models for panel in panels(model, found[model])], options.out)
    print(f"picture: {options.out}")
    print_result(models=found, options={name: str(value) for name, value in vars(options).items()})


if __name__ == "__main__":
    main()
