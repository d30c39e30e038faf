"""`lit-rlvr fit` and the other commands that take a config: LightningCLI with our option groups.

These commands have no entries of their own in `commands/`: LightningCLI makes their parsers from the methods of one
Trainer, and an entry there would import this package, which imports `commands/`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

import lit_rlvr.algorithms
import lit_rlvr.datamodules
import lit_rlvr.environments
import lit_rlvr.rewards
from lit_rlvr.algorithms import RLVRModule
from lit_rlvr.cli.dry_run import dry_run
from lit_rlvr.cli.error_lines import refuse_nulls
from lit_rlvr.cli.run_config import check_config, choose_strategy, resolve_config
from lit_rlvr.cli.servers import SERVERS, servers_beside
from lit_rlvr.cli.subcommands import RLVRTrainer
from lit_rlvr.cli.user_modules import report_namesake
from lit_rlvr.commands.registry import COMMANDS, NOT_PARSED
from lit_rlvr.common.launch import is_first_process
from lit_rlvr.common.log import log
from lit_rlvr.common.terminal import show_result, wants_json
from lit_rlvr.common.user_code import check_calls_super
from lit_rlvr.configs import Parser, changed_classes, changes, find_configs, import_classes
from lit_rlvr.datamodules import PromptDataModule
from lit_rlvr.distributed.checkpoints import checkpoint_step, last_checkpoint
from lit_rlvr.errors import UserError
from lit_rlvr.run.folder import check_run_folder
from lit_rlvr.run.loggers import save_dir_not_required, set_save_dir
from lit_rlvr.run.parts import RunParts
from lit_rlvr.run.run import CONFIGURABLE, Run, in_order
from lit_rlvr.run.trackers import Trackers
from lit_rlvr.run.trackers.feed import Chosen, choose_trackers
from lit_rlvr.run.warm_start import WarmStart
from lit_rlvr.sizing.auto import choose_compute

import_classes(lit_rlvr.environments, lit_rlvr.rewards)

OPTION_GROUPS: dict[str, type] = CONFIGURABLE | {"warm_start": WarmStart}
"""Option group -> the class that it configures; null stands for the defaults of the whole group."""
NEVER_NULL: dict[str, type] = OPTION_GROUPS | {"trainer": object}
"""Part of a config that has to be a group of options -> the class with their types."""

CPU_TRAINER = ("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto")
"""Options that build a trainer for GPUs on a machine without GPUs."""


HELP = (
    "Start from a config, shipped or your own, and change what you like: --config quickstart --rollout.group_size 4 "
    "--model DAPO --model.init_args.lr 1e-5. --model.help DAPO shows the options of an algorithm, --data.help TextMath "
    "those of a data set, --print_config all settings of the run. docs/reference.md explains every class."
)
"""Instructions at the top of the help."""


DRY_RUN = "--dry-run"
"""Option of `fit`; the saved config does not have it."""


REPLAY = "--rollouts-from"
"""Option of `fit` that is short for `--rollout.replay.rollouts_from`."""


SUBCOMMANDS = {
    "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "overwrite"},
    "validate": {"model", "dataloaders", "datamodule"},
    "test": {"model", "dataloaders", "datamodule"},
    "preview": {"model", "datamodule"},
    "filter": {"model", "datamodule"},
    "tune": {"model", "datamodule"},
    "split": {"model", "datamodule"},
    "plan": {"model", "datamodule"},
}
"""The trainer's methods that are commands -> their arguments that the command line supplies."""


class RunParser(Parser, LightningArgumentParser):
    """Our parser combined with LightningCLI's own."""


def settings_yaml(parser: LightningArgumentParser, config: Any) -> str:
    """Return the resolved settings of `fit` as YAML for another run, without resume and overwrite."""
    settings = config.clone()
    settings.overwrite = False
    settings.ckpt_path = None
    return str(parser.dump(settings, skip_none=False, format="yaml"))


def keep_chosen_tokens(config: Any) -> None:
    """Replace `auto` in model.compute.tokens_per_microbatch by what the run that is resumed has chosen."""
    options = config.model.init_args.compute
    before = _config_of(config.ckpt_path)
    if options.tokens_per_microbatch == "auto" and before.is_file():
        settings = yaml.safe_load(before.read_text())["model"]["init_args"].get("compute", {})
        options.tokens_per_microbatch = settings.get("tokens_per_microbatch", "auto")


def _config_of(checkpoint: str) -> Path:
    """Return the settings file of the run that a checkpoint belongs to."""
    return Path(checkpoint).parent.parent / "config.yaml"


def _settings_with_our_paths(text: str) -> Any:
    """Read settings; a class path in them may begin with `datamodules`, the folder at the top of the repository."""
    return yaml.safe_load(text.replace(": datamodules.", ": lit_rlvr.datamodules."))


def log_changed_settings(run: Run, max_steps: int) -> None:
    """Log whether a resumed run has steps left, and which settings differ from the original run's."""
    step = checkpoint_step(str(run.checkpoint))
    if 0 < max_steps <= step:
        log.warning("ckpt_path: the run is at step %d, trainer.max_steps is reached: nothing to train", step)
    before = _config_of(str(run.checkpoint))
    if before.is_file():
        saved = _settings_with_our_paths(before.read_text())
        current = _settings_with_our_paths(run.settings)
        for key, old, new in changes(saved, current):
            log.warning("resumed with a different %s: %s -> %s", key, old, new)


class RLVRCLI(LightningCLI):
    """LightningCLI for `fit`, `validate` and the other commands that take a config."""

    def __init__(self, args: Sequence[str], stack: ExitStack, dry: bool = False) -> None:
        self._arguments = list(args)
        self._stack = stack
        self._is_dry_run = dry
        super().__init__(
            RLVRModule,
            PromptDataModule,
            trainer_class=RLVRTrainer,
            save_config_callback=None,  # `RunStart` saves it
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            parser_kwargs={command: _top_of_help(command) for command in self.subcommands()},
            parser_class=RunParser,
            args=self._arguments,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return only the requested command: building each parser takes a tenth of a second."""
        return {self._arguments[0]: SUBCOMMANDS[self._arguments[0]]}

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Put the name of each group into the help.

        Our groups stand before the Trainer's, which is longer than all of ours.
        """
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        order = ["model", "data", "rollout", *CONFIGURABLE, "warm_start", "trainer"]
        places: dict[int, int] = {}
        for key, group in (parser.groups or {}).items():
            if key.partition(".")[0] in order:
                group.title = f"{key}: {group.title}"
                places[id(group)] = order.index(key.partition(".")[0])
        parser._action_groups = sorted(parser._action_groups, key=lambda group: places.get(id(group), -1))
        return parser

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the seed as a whole number; Lightning would also accept true and false."""
        parser.add_argument("--seed_everything", type=int, default=0, help="The run's seed, a whole number.")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for key, cls in CONFIGURABLE.items():
            parser.add_lightning_class_args(cls, key)
        parser.add_class_arguments(WarmStart, "warm_start")
        parser.add_argument(
            "--overwrite", type=bool, default=False, help="Replace the run in the run folder, if there is one."
        )
        parser.add_argument(
            "--trackers",
            type=Chosen,
            default=None,
            help="Where else the run is logged: wandb, mlflow, trackio, several of them in a list, or a class_path.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_line(find_configs(args))  # type: ignore[attr-defined]
        self.reset_null_groups()

    def reset_null_groups(self) -> None:
        """Give every option group that the user set to null its defaults."""
        command = self.config.subcommand
        for key in OPTION_GROUPS:
            if self.config[command][key] is None:
                self.config[command][key] = self._parser(command).get_defaults()[key]

    def _set_seed(self) -> None:
        if self.config[self.subcommand].seed_everything is None:
            raise UserError("seed_everything: null is not a seed; give a whole number, or leave it out for 0")
        try:
            super()._set_seed()
        except ValueError as error:
            raise UserError(f"seed_everything: {error}") from error

    def _parse_ckpt_path(self) -> None:
        """Do nothing, so that settings come only from the command line and its configs, never from a checkpoint."""

    def before_instantiate_classes(self) -> None:
        """Check and complete the settings, and open the run, before anything is built."""
        command = str(self.subcommand)
        config = self.config[self.subcommand]
        refuse_nulls(config, NEVER_NULL)
        check_config(command, config)
        resolve_config(command, config)
        for line in changed_classes(self._arguments, config):
            log.warning("%s", line)
        folder = Path(config.trainer.default_root_dir)
        if command == "fit":
            self._open_run(config, folder)
        elif config.get("ckpt_path") == "last":
            config.ckpt_path = str(last_checkpoint(folder))
        if config.get("ckpt_path"):
            checkpoint_step(config.ckpt_path)
        config.trainer.default_root_dir = str(folder.absolute())  # a reward may change the current directory
        set_save_dir(config.trainer.logger, folder.absolute())

    def _open_run(self, config: Namespace, folder: Path) -> None:
        """Open the run of `fit`, or find it for a dry run.

        The settings keep the folder as given, so that it can move.
        """
        if self._is_dry_run:
            self._run = Run.find(folder, config.ckpt_path, config.overwrite)
            check_run_folder(folder.absolute(), self._run.checkpoint is not None, self._run.overwrite)
        else:
            self._run = self._stack.enter_context(Run.open(folder, config.ckpt_path, config.overwrite))
        if self._run.checkpoint is None:
            config.ckpt_path = None
        else:
            config.ckpt_path = str(self._run.checkpoint)
        config.overwrite = self._run.overwrite
        if config.ckpt_path:
            keep_chosen_tokens(config)
        self._run.settings = settings_yaml(self._parser("fit"), config)
        self._run.configs = [path.get_content() for path in config.config or [] if path is not None]
        self.config_dump = yaml.safe_load(self._run.settings)  # Lightning would make it again
        if config.ckpt_path:
            log_changed_settings(self._run, config.trainer.max_steps)

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        report_namesake(type(self.datamodule))
        rollout = self.config_init[self.subcommand].rollout
        demonstrates = self.subcommand != "filter" and self.model.demonstrates
        self.datamodule.use_environment(rollout.environment, rollout.judging_rewards(demonstrates))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        check_calls_super(self.model, "model")
        check_calls_super(self.datamodule, "data")
        config = self.config_init[self.subcommand]
        choose_strategy(str(self.subcommand), config, self.model, self.datamodule)
        try:
            trainer: RLVRTrainer = super().instantiate_trainer(**kwargs)  # type: ignore[assignment]
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"trainer: {str(error).splitlines()[0]}") from error
        if self.subcommand == "fit":
            choose_compute(trainer, self.model, self.datamodule)
            compute = self.config_dump["model"]["init_args"]["compute"]
            if compute["tokens_per_microbatch"] != self.model.budget.given:
                compute["tokens_per_microbatch"] = self.model.budget.given
                self._run.settings = yaml.safe_dump(self.config_dump, sort_keys=False, allow_unicode=True)
        if self.subcommand == "fit":
            trackers = choose_trackers(config.trackers)
            if not self._is_dry_run:
                trainer.run = self._run
                trainer.callbacks = in_order([*trainer.callbacks, Trackers(trackers, self._run.settings)])
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        config = self.config_init[subcommand]
        self.trainer.warm_start = config.warm_start  # type: ignore[attr-defined]
        if self._is_dry_run:
            dry_run(RunParts(self.trainer, self.model, self.datamodule, config.warm_start))
        else:
            if subcommand in ("validate", "test", "filter"):  # `fit` makes it itself
                self.trainer.make_warm_start(self.model, self.datamodule)  # type: ignore[attr-defined]
            super()._run_subcommand(subcommand)
            if subcommand in ("fit", "validate", "test") and wants_json() and is_first_process():
                show_result(self._result(subcommand), lambda: None)  # for people it is printed during the run

    def _result(self, subcommand: str) -> dict[str, Any]:
        """Return a run's summary, or the metrics of a measurement."""
        if subcommand == "fit":
            return dict(json.loads((Path(self.trainer.default_root_dir) / "summary.json").read_text()))
        values = {}
        for name, value in self.trainer.callback_metrics.items():
            values[name] = float(value)
        return values


class ConfigCheck(RLVRCLI):
    """A parser of configs that builds the objects they name, as `fit` or another command does.

    It neither loads weights nor trains.
    """

    def __init__(self, command: str = "fit") -> None:
        super().__init__([command], ExitStack())

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = Namespace({"subcommand": self._arguments[0], self._arguments[0]: Namespace()})

    def instantiate_classes(self) -> None:
        """Do nothing: `check` builds the objects."""

    def before_instantiate_classes(self) -> None:
        """Do nothing: the configs come later."""

    def _set_seed(self) -> None:
        """Do nothing: no run begins."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Do nothing: no run begins."""

    def parse(self, arguments: Sequence[str]) -> Namespace:
        """Return the settings that a command line gives; build nothing."""
        config: Namespace = self.parser.parse_line(find_configs(["fit", *arguments])).fit  # type: ignore[attr-defined]
        return config

    def check(self, config: dict[str, Any]) -> Any:
        """Build the objects of a config as `fit` does before its trainer, with the same errors; return them."""
        return self.build(self.parser.parse_object({"subcommand": "fit", "fit": config}).fit)

    def build(self, settings: Namespace) -> Any:
        """Build the objects of parsed settings as `fit` does before its trainer; return them."""
        self.config = Namespace({"subcommand": "fit", "fit": settings})
        self.reset_null_groups()
        refuse_nulls(self.config.fit, NEVER_NULL)
        return self.parser.instantiate_classes(self.config).fit


def _top_of_help(command: str) -> dict[str, str]:
    notes = {
        "fit": f" {DRY_RUN} shows all of it, the memory and the first prompts, and does not train. "
        f"{REPLAY} RUN trains on the rollouts that RUN recorded. {SERVERS} N starts N vLLM servers here that generate.",
    }.get(command, "")
    return {
        "usage": f"lit-rlvr {command} --config NAME_OR_FILE [--GROUP.OPTION VALUE ...]",
        "description": f"{COMMANDS[command][1].capitalize()}. {HELP}{notes}",
    }


def _taken_out(arguments: Sequence[str], option: str) -> tuple[str, list[str]]:
    """Return the value of an option, "" if it lacks one, and the other arguments."""
    others = list(arguments)
    place = next(k for k, argument in enumerate(others) if argument.partition("=")[0] == option)
    _, equals, value = others.pop(place).partition("=")
    if not equals and place < len(others):
        value = others.pop(place)
    return value, others


def run_command(command: str, arguments: list[str]) -> None:
    """Run `lit-rlvr fit` or another command that takes a config."""
    if command == "fit":
        arguments = [re.sub(f"^{REPLAY}(?==|$)", "--rollout.replay.rollouts_from", argument) for argument in arguments]
    dry = command == "fit" and DRY_RUN in arguments
    given = []
    for argument in arguments:
        if not (dry and argument == DRY_RUN):
            given.append(argument)
    with ExitStack() as stack, save_dir_not_required():
        if command == "fit" and any(argument.partition("=")[0] == SERVERS for argument in given):
            count, given = _taken_out(given, SERVERS)
            check = ConfigCheck()
            settings = check.parse(given)
            given += stack.enter_context(servers_beside(count, settings, check.build, dry))
        if command == "plan":
            for option in NOT_PARSED[command]:
                while any(argument.partition("=")[0] == option for argument in given):
                    _, given = _taken_out(given, option)
        RLVRCLI([command, *given, *(CPU_TRAINER if command == "plan" else ())], stack, dry)
