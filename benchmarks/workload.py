"""The task of two trainers in a benchmark, and the race between them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common import say
from turns import Player


@dataclass
class Workload:
    """GRPO with one optimizer step per rollout, no KL term and temperature 1.

    Args:
        model: a folder or hub id.
        data: a data module's class name. data_options: its arguments.
        prompts, group_size, max_tokens: prompts per step, completions per prompt, tokens per completion at most.
        steps: the most steps a contestant may be asked for.
        precision: fp32 or bf16 (mixed: weights and AdamW stay in fp32).
        device: cpu or cuda.
        engine: of our rollouts, a name or a class_path with its arguments. staleness: of its weights, in iterations.
        reward: what both are scored with; the dotted path of a Reward.
        options: of our algorithm, over its defaults.
        trl_options: settings of TRL's GRPOConfig, over those of trl_grpo.py.
    """

    model: str
    data: str
    data_options: dict[str, Any]
    prompts: int = 8
    group_size: int = 8
    max_tokens: int = 24
    steps: int = 8
    lr: float = 1e-5
    precision: str = "fp32"
    device: str = "cpu"
    engine: str | dict[str, Any] = "auto"
    staleness: int = 0
    reward: str = "lit_rlvr.rewards.MathAnswer"
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    trl_options: dict[str, Any] = field(default_factory=dict)


def wait_for_gpu() -> None:
    """Wait until the GPU has finished, so that its work counts in the step that requested it."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def gpu_memory_mb() -> float:
    """Return the peak memory that torch has allocated on the GPU in this process, in MiB; 0 without a GPU."""
    import torch

    return torch.cuda.max_memory_reserved() / (1 << 20) if torch.cuda.is_available() else 0.0


CONTESTANTS = {"lit-rlvr": "ours.py", "TRL": "trl_grpo.py"}


def start(name: str, workload: Workload, environment: dict[str, str] | None = None) -> Player:
    """Start a contestant and wait until it has loaded."""
    say(f"starting {name}")
    # On a CPU run a GPU that is there must not be taken by vLLM.
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if workload.device == "cpu" else {}
    script = str(Path(__file__).with_name(CONTESTANTS[name]))
    return Player(name, [script, json.dumps(asdict(workload))], hidden | (environment or {}))


def take_turns(
    players: list[Player], least: int, most: int, block: int, done: Callable[[Player], bool], between: Callable[[], Any]
) -> None:
    """Let the players alternate in blocks of steps: each takes `least`, then more until `done` or `most`.

    Args:
        between: called between the blocks, when no player computes.
    """
    running = list(players)
    while running:
        for player in list(running):
            between()
            for _ in range(block):
                if len(player.steps) >= most or (len(player.steps) >= least and done(player)):
                    player.stop()
                    running.remove(player)
                    break
                report = player.step()
                say(
                    f"{player.name:>8} step {len(player.steps):3}: {report['seconds']:7.2f} s, mean reward "
                    f"{report['reward']:.3f}, {report['mixed_groups']} mixed groups"
                )
    between()
