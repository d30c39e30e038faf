"""Which of the shipped recipes and algorithms learn, from which accuracy to which, in how many seconds of training?

Each recipe runs as shipped, with `lit-rlvr fit`; each algorithm trains the recipe `smoke/sums` in 60 steps. A picture
recipe's `blind` is its accuracy with the images of other prompts: a model that looks then does no better than guessing.
The rows are printed as they end, since all of them take about two hours on two cores.
"""

from __future__ import annotations

from datetime import date
from tempfile import TemporaryDirectory
from typing import Any

from common import make_parser, print_result, print_table, run_command, say

FAMILIES = ("tiny-gemma3", "tiny-gemma4", "tiny-glm-4.1v", "tiny-internvl3.5", "tiny-qwen3.5")
RECIPES: dict[str, list[str]] = {
    **{name: ["--config", f"smoke/{name}"] for name in (
        "sums", "sft", "mixture", "geometry", "medical_vqa", "smolvlm2", "tools", "text_to_sql", "sql_turns"
    )},
    **{model: ["--config", "smoke/geometry", "--model.init_args.model", model] for model in FAMILIES},
}  # fmt: skip
PICTURES = ("geometry", "medical_vqa", "smolvlm2", *FAMILIES)


def main() -> None:
    from lit_rlvr import algorithms

    losses = [name for name in algorithms.__all__ if name not in ("RLVRModule", "OPD")]  # OPD needs a trained teacher
    few = ["--config", "smoke/sums", "--trainer.max_steps", "60", "--rollout.validate_every_rollouts", "60"]
    runs = RECIPES | {name: [*few, "--model", name] for name in losses}
    parser = make_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=runs, default=[*runs], help="recipes and algorithms to run")
    parser.add_argument("--steps", help="optimizer steps of each, in place of the recipe's own")
    options = parser.parse_args()
    shorter = ["--trainer.max_steps", options.steps] if options.steps else []
    rows = [measure(name, [*runs[name], *shorter]) for name in options.only]
    print_table(["run", "steps", "before", "after", "blind", "seconds"], rows)
    print_result(rows=rows, date=date.today().isoformat())


def measure(name: str, arguments: list[str]) -> list[Any]:
    """Return a row: name, steps, accuracy before and after, accuracy with other prompts' images, seconds."""
    with TemporaryDirectory() as folder:
        root = ["--trainer.default_root_dir", folder]
        found = run_command("fit", *arguments, *root, "--overwrite", "true")
        blind: Any = "-"
        if name in PICTURES:
            shuffled = ("--ckpt_path", "last", "--data.init_args.evaluation.shuffle_images", "true")
            blind = run_command("validate", *arguments, *root, *shuffled)["val/accuracy"]
    row = [name, found["steps"], found["accuracy_before"], found["accuracy_after"], blind, found["train_seconds"]]
    say("  ".join(map(str, row)))
    return row


if __name__ == "__main__":
    main()
