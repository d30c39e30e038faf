"""Seconds of a GRPO step of `lit-rlvr fit` and of TRL's GRPOTrainer on a CPU, and seconds to a reward: what a step is
worth, on the same model and prompts.

Both run SmolLM2-135M-Instruct in a process of its own: 8 prompts x 8 completions a step, one optimizer step per
rollout, lr 1e-5, temperature 1, no KL term, the same reward rule. They compute in turns, never at the same time. A
step is weight sync + generation + scoring + training; loading, engine start-up, logging and checkpoints are not
counted, and the first step of each is dropped as its warm-up. lit-rlvr runs with its defaults; TRL generates with
Hugging Face generate and without gradient checkpointing, the whole batch at once (--trl and --ours try other settings).

The workload gsm8k is scored by a coin that the tokens toss, for SmolLM2 answers next to nothing right: every group is
mixed and has to be trained on, which is the worst case for us. It has no reward to reach.

ratio_step = TRL's median seconds / ours, which depends on how many groups of each were mixed: the table says. In sums,
ratio_to_reward = TRL's seconds / ours of all steps (the first included) until a step's mean reward is at least
--to-reward; a contestant that does not get there in --max-steps steps gives a bound. Each ratio is the geometric mean
over the seeds, whose own ratios stand next to it.
"""

from __future__ import annotations

from statistics import fmean, geometric_mean, median
from typing import Any

from common import MatmulRate, add_contestants, make_parser, print_result, print_table
from turns import Player
from workload import Workload, start, take_turns

SUMS = {"low": 1, "high": 9, "held_out": 0}


def parse() -> Any:
    parser = make_parser(__doc__, precision=True, rate=True)
    parser.add_argument("--steps", type=int, default=8, help="steps of each that are measured, after the first")
    parser.add_argument("--block", type=int, default=1, help="steps of one before it is the other's turn")
    parser.add_argument(
        "--to-reward", type=float, default=0.9, help="sums: go on until a step's mean reward is at least this"
    )
    parser.add_argument("--max-steps", type=int, default=40, help="where --to-reward gives up")
    parser.add_argument("--workload", choices=("sums", "gsm8k"), default="sums", help="24-token sums, or --data")
    parser.add_argument("--data", help="gsm8k: a JSONL file with the columns question and answer")
    parser.add_argument("--model", default="smollm2", help="smollm2, a model folder, or a hub id")
    parser.add_argument("--prompts", type=int, default=8, help="prompts per step")
    parser.add_argument("--group-size", type=int, default=8, help="completions per prompt")
    parser.add_argument("--max-tokens", type=int, help="tokens per completion (24; gsm8k: 64)")
    parser.add_argument("--engine", default="auto", help="our engine: auto, vllm or hf")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add_contestants(parser)
    parser.add_argument(
        "--trl-passive",
        action="store_true",
        help="let TRL's waiting threads sleep (OMP_WAIT_POLICY=PASSIVE), as lit-rlvr's do; better on a busy machine",
    )
    options = parser.parse_args()
    if options.workload == "gsm8k" and not options.data:
        parser.error("--workload gsm8k needs --data FILE")
    if options.workload == "gsm8k":
        options.to_reward = None  # tossed
    return options


def make_workload(options: Any, seed: int) -> Workload:
    from lit_rlvr.policy.sources import resolve_model

    sums = options.workload == "sums"
    most = max(1 + options.steps, options.max_steps if options.to_reward is not None else 0)
    return Workload(
        model=resolve_model(options.model),
        data="Arithmetic" if sums else "TextMath",
        data_options=SUMS if sums else {"train": options.data},
        prompts=options.prompts,
        group_size=options.group_size,
        max_tokens=options.max_tokens or (24 if sums else 64),
        steps=most,
        precision=options.precision,
        engine=options.engine,
        reward="lit_rlvr.rewards.MathAnswer" if sums else "coin.Coin",
        seed=seed,
        options=options.ours,
        trl_options=options.trl,
    )


def reached(player: Player, reward: float | None) -> bool:
    return reward is None or any(step["reward"] >= reward for step in player.steps)


def seconds_to(player: Player, reward: float) -> float:
    """Return the seconds of `steps_to` the reward."""
    return sum(step["seconds"] for step in player.steps[: steps_to(player, reward)])


def steps_to(player: Player, reward: float) -> int:
    """Return the number of steps up to the first whose mean reward is at least `reward`, or of all steps."""
    for number, step in enumerate(player.steps, 1):
        if step["reward"] >= reward:
            return number
    return len(player.steps)


def summarise(player: Player, measured: int) -> dict[str, Any]:
    """Return the medians over the measured steps, which are the same for both; drop the first."""
    steps = player.steps[1 : 1 + measured]
    parts = {name: median(step[name] for step in steps) for name in ("sync", "generate", "score", "train")}
    return {
        "step": median(step["seconds"] for step in steps),
        **parts,
        "mixed": fmean(step["mixed_groups"] for step in steps),
        "tokens_per_second": sum(step["tokens"] for step in steps) / sum(step["generate"] for step in steps),
        "peak_memory_mb": max(step["peak_memory_mb"] for step in player.steps),
        "seconds": [round(step["seconds"], 3) for step in player.steps],
        "rewards": [round(step["reward"], 4) for step in player.steps],
        "mixed_groups": [step["mixed_groups"] for step in player.steps],
    }


def race(options: Any, seed: int, rate: MatmulRate) -> dict[str, Any]:
    """Let both train from one seed; return their summaries, the ratios, and the seconds to the reward."""
    workload = make_workload(options, seed)
    players: list[Player] = []
    try:
        for name, passive in (("lit-rlvr", False), ("TRL", options.trl_passive)):
            players.append(start(name, workload, {"OMP_WAIT_POLICY": "PASSIVE"} if passive else {}))
        least = 1 + options.steps
        take_turns(players, least, workload.steps, options.block, lambda p: reached(p, options.to_reward), rate.measure)
    finally:
        for player in players:
            player.kill()
    contestants = {player.name: summarise(player, options.steps) for player in players}
    result = {
        "seed": seed,
        "ratio_step": round(contestants["TRL"]["step"] / contestants["lit-rlvr"]["step"], 3),
        "contestants": contestants,
    }
    if options.to_reward is not None:
        seconds = {player.name: round(seconds_to(player, options.to_reward), 2) for player in players}
        result["ratio_to_reward"] = round(seconds["TRL"] / seconds["lit-rlvr"], 3)
        result["seconds_to_reward"] = seconds
        result["steps_to_reward"] = {player.name: steps_to(player, options.to_reward) for player in players}
        result["reached"] = {player.name: reached(player, options.to_reward) for player in players}
    return result


def print_seed(result: dict[str, Any]) -> None:
    columns = ("step", "sync", "generate", "score", "train", "mixed", "tokens_per_second", "peak_memory_mb")
    rows = [(name, *(summary[column] for column in columns)) for name, summary in result["contestants"].items()]
    print_table((f"seed {result['seed']}, median seconds of a", *columns), rows)
    for name, summary in result["contestants"].items():
        print(f"{name:>8}: seconds {summary['seconds']}\n          rewards {summary['rewards']}")
        print(f"          mixed groups {summary['mixed_groups']}")


def main() -> None:
    options = parse()
    rate = MatmulRate(options.precision, sizes=options.matmul_sizes)
    results = []
    for seed in options.seeds:
        results.append(race(options, seed, rate))
        print_seed(results[-1])
    ratios = {
        name: round(geometric_mean(result[name] for result in results), 3)
        for name in ("ratio_step", "ratio_to_reward")
        if name in results[0]
    }
    print_result(
        **ratios,
        precision=options.precision,
        workload=options.workload,
        matmul_gflops=round(rate.best / 1e9, 1),
        seeds=results,
    )


if __name__ == "__main__":
    main()
