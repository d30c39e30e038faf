"""The commands that take a whole config: methods of a Trainer, as LightningCLI wants them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lit_rlvr.commands.filter import filter_prompts
from lit_rlvr.commands.plan import show_plan
from lit_rlvr.commands.preview import describe_prompts, play_episodes, print_episodes, print_prompts
from lit_rlvr.commands.split import write_split
from lit_rlvr.commands.tune import Tuner
from lit_rlvr.common.arguments import check_within
from lit_rlvr.common.files import write_atomically
from lit_rlvr.common.log import log
from lit_rlvr.common.terminal import show_result
from lit_rlvr.datamodules import PromptDataModule
from lit_rlvr.datamodules.reading.split import Split
from lit_rlvr.policy.precision import compute_dtype
from lit_rlvr.rewards.gold_answers import check_references
from lit_rlvr.rollout.callback import rollout_of
from lit_rlvr.rollout.preflight.data import scored_samples, warn_of_answers
from lit_rlvr.rollout.preflight.sizes import sequences_per_server
from lit_rlvr.run.trainer import Trainer
from lit_rlvr.sizing.gpus import GPUs
from lit_rlvr.sizing.strategies import describe_job

if TYPE_CHECKING:
    from lit_rlvr.algorithms import RLVRModule


class RLVRTrainer(Trainer):
    """`fit` and `validate` of the Trainer, and our commands that inspect a config before training."""

    def preview(
        self,
        model: RLVRModule,
        datamodule: PromptDataModule,
        prompts: int = 3,
        split: Split = "train",
        out: str | None = None,
        episodes: int = 0,
    ) -> None:
        """Show prompts exactly as the model sees them, and episodes of the environment or agent if they are asked for.

        Args:
            model: the model; without `episodes` the command loads its tokenizer and image processor, not its weights.
            datamodule: the data.
            prompts: number of prompts to show, from the start of the set.
            split: which set.
            out: folder for the prompts' images, as PNG files in the size that the model sees; default: save none.
            episodes: number of prompts, from the start of the set, of which the model plays an episode each, with the
                sampling and the engine of training; shown are its tokens in and not in the loss, the calls of an agent,
                and its reward.
        """
        check_within("[1, inf)", "preview", prompts=prompts)
        check_within("[0, inf)", "preview", episodes=episodes)
        rollout = rollout_of(self)
        datamodule.use_model(model)
        datamodule.setup("test" if split == "test" else "fit")
        model.teachers.prepare(datamodule, rollout.sampling)
        description = describe_prompts(datamodule, split, prompts, None if out is None else Path(out), model, rollout)
        check_references(rollout.rewards, scored_samples(rollout, datamodule))
        warn_of_answers(rollout, datamodule, rollout.long_answers)
        if episodes:
            dtype = compute_dtype(str(self.precision))
            description["episodes"] = play_episodes(datamodule, split, episodes, model, rollout, dtype)

        def show() -> None:
            print_prompts(description)
            print_episodes(description.get("episodes", ()))

        show_result(description, show)
        if out is None and any(prompt["images"] for prompt in description["prompts"]):
            log.info("To look at the images as the model sees them, add --out FOLDER")

    def filter(
        self,
        model: RLVRModule,
        datamodule: PromptDataModule,
        out: str,
        samples: int = 8,
        lowest: float = 0.1,
        highest: float = 0.9,
        split: Split = "train",
        completions: int = 0,
    ) -> None:
        """Keep the prompts that the model sometimes answers correctly.

        Args:
            model: the model that answers.
            datamodule: the data.
            out: new JSONL file for the kept rows, each with its `pass_rate`.
            samples: completions per prompt, with the config's sampling and rewards.
            lowest: smallest share of right completions to keep.
            highest: largest share of right completions to keep.
            split: which set.
            completions: for rejection fine-tuning, write a row for each of at most this many different right
                completions of a kept prompt, with a column `completion` (`SFT` with `target: completion`); 0 = each
                kept row once.
        """
        dtype = compute_dtype(str(self.precision))
        choice = samples, lowest, highest, split, completions
        path = filter_prompts(model, datamodule, rollout_of(self), dtype, Path(out), *choice)
        kept = len(path.read_text().splitlines())
        result = {"file": str(path), "kept": kept, "option": f"--data.init_args.{split}"}
        show_result(result, lambda: print(f"{path}: use it with {result['option']}"))

    def tune(
        self, model: RLVRModule, datamodule: PromptDataModule, minutes: float = 5.0, out: str = "tuned.yaml"
    ) -> None:
        """Sample for some minutes, and choose group size, max_tokens and a warm start of a config.

        Args:
            model: the model that answers.
            datamodule: the data.
            minutes: how long it takes, with loading and a warm start; a batch under way ends later.
            out: new config with the choices and their reasons, for `--config C --config OUT`.
        """
        tuned = Tuner(
            model,
            datamodule,
            rollout_of(self),
            self.warm_start,
            compute_dtype(str(self.precision)),
            self.world_size,
            minutes,
            self.strategy.root_device,
        ).run()
        write_atomically(Path(out), tuned.text())
        show_result({"file": out} | vars(tuned), lambda: print(*tuned.reasons, f"{out}: add --config {out}", sep="\n"))

    def split(self, model: RLVRModule, datamodule: PromptDataModule, out: str) -> None:
        """Write the training and held-out rows of the config's data to files.

        Args:
            model: the model; not used.
            datamodule: the data.
            out: folder for `train.jsonl`, `validation.jsonl` and `test.jsonl`, one for each set of the data.
        """
        files = []
        for path in write_split(datamodule, Path(out)):
            files.append(str(path))
        show_result({"files": files}, lambda: print(*files, sep="\n"))

    def plan(self, model: RLVRModule, datamodule: PromptDataModule, gpus: str, servers: int = 0) -> None:
        """Estimate a run's memory on each GPU with DDP, FSDP2 and LoRA, and propose one of them.

        Args:
            model: the model; the command reads only its config.
            datamodule: the data; the command uses only the sizes and reads no row.
            gpus: number of GPUs and memory of each, such as 8x80GB; or their name: 8xH100.
            servers: copies of the model that generate on vLLM servers; the plan says how many sequences each generates
                at once.
        """
        check_within("[0, inf)", "plan", servers=servers)
        rollout = rollout_of(self)
        job = describe_job(model, datamodule, rollout, str(self.precision))
        if servers:
            sequences = sequences_per_server(rollout, model, datamodule, servers)
        else:
            sequences = None
        show_plan(job, GPUs.parse(gpus), sequences)
