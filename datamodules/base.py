"""`PromptDataModule`: rows of a data set -> samples -> prompts the model sees -> batches.

A new data set needs only `columns` in YAML, or a subclass with `sample` (converts one row) or `rows` (yields samples).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

from lightning.pytorch import LightningDataModule

from lit_rlvr.common.arguments import ChecksArguments, check_within, option_group
from lit_rlvr.common.init_arguments import init_arguments, snake_case, with_class_defaults
from lit_rlvr.common.seeds import run_seed
from lit_rlvr.common.user_code import check_takes
from lit_rlvr.datamodules.parts.encoder import PromptEncoder
from lit_rlvr.datamodules.parts.order import TrainingOrder
from lit_rlvr.datamodules.parts.sets import SampleSets
from lit_rlvr.datamodules.parts.sources import RowSources
from lit_rlvr.datamodules.reading.cells import BadRow
from lit_rlvr.datamodules.reading.chat import Chat
from lit_rlvr.datamodules.reading.checks import FIELDS, check_columns, check_reward_names, require_sample
from lit_rlvr.datamodules.reading.curriculum import Curriculum, RunningSuccess, Successes
from lit_rlvr.datamodules.reading.images import ImageOptions
from lit_rlvr.datamodules.reading.layouts import FileLayout, LayoutReader, sample_of_fields
from lit_rlvr.datamodules.reading.mixing import MixedStream, check_weights, refuse_twice
from lit_rlvr.datamodules.reading.options import ReadingOptions
from lit_rlvr.datamodules.reading.rows import DataRow, map_columns, rank_zero_warn
from lit_rlvr.datamodules.reading.split import (
    STAGE_SPLITS,
    Split,
    check_held_out,
    drop_long,
    exchange_images,
    index_questions,
    split_off,
    subsample,
)
from lit_rlvr.datamodules.reading.stream import (
    Cursor,
    EvalLoader,
    PreparesAhead,
    PromptStream,
    TrainLoader,
    difficulty_of,
    order_keys,
)
from lit_rlvr.environments.base import Environment
from lit_rlvr.errors import UserError
from lit_rlvr.plan import planning_callback
from lit_rlvr.policy.families.base import ImageProcessor
from lit_rlvr.rewards.base import Reward
from lit_rlvr.types import Prompt, Sample


@option_group("data.evaluation")
@dataclass(frozen=True)
class EvaluationData:
    """The settings of validation and test on a data set.

    Args:
        limit: validate and test on at most this many rows of each set, drawn by `seed`.
        prompts_per_batch: prompts generated at once in validation and test, summed over all processes.
        also_validate: further DataModules to validate on during training, each under its own `name` and with the run's
            rewards.
        shuffle_images: validate and test with the images of other prompts, as a control: correct answers are then
            guesses.
    """

    limit: int | None = None
    prompts_per_batch: int = 64
    also_validate: list[PromptDataModule] | None = None
    shuffle_images: bool = False

    def __post_init__(self) -> None:
        check_within("[1, inf)", "data.evaluation", limit=self.limit, prompts_per_batch=self.prompts_per_batch)


class PromptDataModule(ChecksArguments, LightningDataModule):
    """Prompts with reference answers from files, folders or the hub.

    Example:
        ```python
        from lit_rlvr import PromptDataModule, Sample


        class Reverse(PromptDataModule):
            def rows(self, split):  # "train", "validation" or "test"
                for word in ("stone", "river", "cloud") if split == "train" else ("bread",):
                    yield Sample(id=word, prompt=f"Spell {word} backwards.", answer=word[::-1])
        ```

    Args:
        train: training rows: a file (jsonl, json, csv, tsv, also with .gz; parquet, arrow), a folder of such files
            or saved by `datasets`, a hub name `org/name[@config][:split]`, or `package:svamp/train.jsonl` (ships with
            lit-rlvr). Several files, each a set of its own in metrics: a list of them, or {file: weight}, where a set
            is drawn as often as its weight says. From Python also the rows themselves: a list of dicts, or a
            `datasets.Dataset`.
        validation: validation rows, in the same form as `train`.
        test: test rows, in the same form as `train`.
        validation_split: without `validation`, hold out this many training rows (an integer) or this share of them (a
            fraction) for validation, drawn by `seed` alone, so that runs with other seeds hold out the same rows.
        columns: which column holds `prompt`, `answer`, `image`, `video`, `id`, `category`, `options` (of a
            multiple-choice question), `difficulty` (for `order`) and `reward` (the names of the rewards that judge the
            row: one, a list, or a dict of name: weight); write nested columns as `metadata.subject`. An omitted field
            but `reward` is read from the column of the same name. Images are paths, bytes, base64 or what `datasets`
            stores, and videos also lists of frames; `<image>` and `<video>` in the prompt mark their places.
        reading: which rows are used, and how.
        images: where images and videos are, and in which size the model sees them.
        chat: the text that the model sees.
        rewards: names of the rewards that judge these rows, or {name: weight}; by default all of `rollout.rewards`.
        order: the order of the training prompts in every epoch: `shuffled`, as `given`, or by rising `difficulty`,
            which is the number in a column, or the last number in its text.
        curriculum: retire prompts that the model nearly always or nearly never answers.
        prompts_per_rollout: prompts in one rollout, summed over all processes.
        evaluation: how the set is validated and tested on.
        seed: seed of the split, of `limit` and, together with seed_everything, of the order of prompts.
        name: the set's name in metrics (`val/<name>/...`); the class name in snake case by default.

    Attributes:
        prompt_encoder: renders and encodes its prompts.
        fields: the fields that `columns` can map.
        layouts: the layouts that are read without `columns`; a reader returns the fields of a `Sample` in a dict.
        parts: the DataModules that it mixes.
        weights_option: the option that `weights` come from.
        has_answer_lists: True = rows may have lists of answers, which `reading.answers` interprets.
    """

    config_key = "data"
    fields: Sequence[str] = FIELDS
    layouts: Sequence[FileLayout] = ()
    parts: Sequence[PromptDataModule] = ()
    weights_option = "data.train"
    has_answer_lists = True

    def __init__(
        self,
        train: str | list[str] | dict[str, float] | Iterable[dict[str, Any]] | None = None,
        validation: str | Iterable[dict[str, Any]] | None = None,
        test: str | Iterable[dict[str, Any]] | None = None,
        validation_split: int | float | None = None,
        columns: dict[str, str] | None = None,
        reading: ReadingOptions = ReadingOptions(),  # noqa: B008  # frozen
        images: ImageOptions = ImageOptions(),  # noqa: B008
        chat: Chat = Chat(),  # noqa: B008
        rewards: list[str] | dict[str, float] | None = None,
        order: Literal["shuffled", "given", "difficulty"] = "shuffled",
        curriculum: Curriculum | None = None,
        prompts_per_rollout: int = 8,
        evaluation: EvaluationData = EvaluationData(),
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        super().__init__()
        self._module: Any = None
        option_groups = with_class_defaults(
            type(self), reading=reading, images=images, chat=chat, evaluation=evaluation
        )
        self.init_args = init_arguments() | option_groups
        reading, images = option_groups["reading"], option_groups["images"]
        chat, evaluation = option_groups["chat"], option_groups["evaluation"]
        self._check_class(reading)
        check_within("[1, inf)", "data", prompts_per_rollout=prompts_per_rollout)
        columns = dict(columns or {})
        check_columns(columns, (*self.fields, "difficulty"))
        self._difficulty = columns.pop("difficulty", "difficulty")
        self._sources = RowSources(train, validation, test)
        self.locations, self.given = self._sources.locations, self._sources.given
        self.weights = self._sources.weights
        self.init_args |= self.given
        self.validation_split = validation_split
        self.columns = columns
        self.order = order
        self.reading = reading
        self.images = images
        self.evaluation = evaluation
        self.prompts_per_rollout = prompts_per_rollout
        self.seed = seed
        self.name: str = name or snake_case(type(self).__name__)
        names = [other.name for other in self.validated]
        refuse_twice(names, "data.evaluation.also_validate", "validation sets are", "set `name` on one of them")
        self.prompts: dict[str, list[Prompt]] = {}
        self.too_long: dict[str, list[str]] = {}
        self._layouts = LayoutReader(self.layouts)
        self._sets = SampleSets(self.name, self._sources, reading, images, rewards)
        self.prompt_encoder = PromptEncoder(self.name, chat, self)
        self._order = TrainingOrder(curriculum)
        self._ahead = PreparesAhead(self.prepare)

    def _check_class(self, reading: ReadingOptions) -> None:
        """Refuse methods of a subclass that take other arguments, and an option that it does not have."""
        check_takes(self.rows, "split")
        check_takes(self.sample, "row", "index", "source")
        if reading.answers != "any" and not self.has_answer_lists:
            raise UserError(f"data.reading.answers: {type(self).__name__} has no lists of answers; leave it out")

    # ---- what subclasses override -------------------------------------------------------------------------

    def rows(self, split: Split) -> Iterable[Sample | BadRow]:
        """Yield the samples of a split; by default read them from the file that the option names.

        Yield nothing if there is no such set, and a `BadRow` in place of a row that cannot be used.

        Args:
            split: "train", "validation" or "test".
        """
        if split == "train" and self.locations["train"] is None:
            raise UserError(f"{type(self).__name__}: no training data, set data.init_args.train")
        for index, (name, row) in enumerate(self._sources.read(split, self.name)):
            try:
                if isinstance(row.value, BadRow):
                    raise row.value
                sample = require_sample(self.sample(row.value, index, row.source), self.sample, row.source)
                if isinstance(sample, BadRow):
                    raise sample
                yield replace(sample, source=sample.source or row.source, dataset=sample.dataset or name)
            except BadRow as error:
                error.source = error.source or row.source
                yield error

    def sample(self, row: dict[str, Any], index: int, source: str) -> Sample:
        """Convert one row to a sample; by default with `columns` or, without them, with the layout of its file.

        Args:
            row: column -> cell.
            index: counted from 0 over the whole split.
            source: "file:row".

        Raises:
            BadRow: the row cannot be used.
        """
        fallback_id = f"{self.name}:{index + 1}"
        if self.columns or not self.layouts:
            return map_columns(row, self.columns or {}, fallback_id, source, self._sets.optional, self.reading.answers)
        fields = {"id": fallback_id, **self.read_layout(row, source)}
        return sample_of_fields(fields, row, source, self.reading.answers)

    def read_layout(self, row: DataRow, source: str) -> Any:
        """Read a row with its file's layout: the first of `layouts` that fits one of the file's rows.

        Raises:
            BadRow: no known layout has these columns, the row holds video or audio, or it cannot be used.
        """
        return self._layouts.read(row, source)

    # ---- the model ----------------------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the trainer's model; set it to use the data without a trainer."""
        return self._model("tokenizer").tokenizer

    @cached_property
    def image_processor(self) -> ImageProcessor:
        """The image processor of the trainer's model; set it to use the data without a trainer."""
        return self._model("image_processor").image_processor

    @property
    def demonstrates(self) -> bool:
        """True if the trainer's model is trained on the completions that the data hold."""
        return bool(getattr(self._module_of_model, "demonstrates", False))

    def use_model(self, module: Any) -> None:
        """Take tokenizer and image processor from a module that has no trainer yet, or from another DataModule."""
        self._module = module

    @property
    def _module_of_model(self) -> Any:
        """The trainer's module, or that of `use_model`; None before there is one."""
        if self.trainer is None:
            return self._module
        return self.trainer.lightning_module

    def _model(self, name: str) -> Any:
        if self._module_of_model is None:
            raise RuntimeError(f"no {name}: attach a trainer, or set `data.{name}`")
        return self._module_of_model

    # ---- what the model sees ------------------------------------------------------------------------------

    def use_environment(self, environment: Environment | None, rewards: Sequence[Reward] | None = None) -> None:
        """Offer the environment's tools in every prompt, and let rows lack what it supplies or no reward needs.

        This holds here and in the sets of `also_validate`. Call it before `setup`.

        Args:
            environment: the run's environment, if it has one.
            rewards: the rewards that judge the rows; None = some that need an answer in every row.

        Raises:
            UserError: a set names a reward that there is not.
        """
        named = {data.name: data._sets.rewards or {} for data in self.validated}
        check_reward_names(named, [reward.name for reward in rewards or ()])
        for data in self.validated:
            data._sets.expect(environment, rewards)
            if environment is not None and data.prompt_encoder.environment is not environment:
                data.prompt_encoder.offer_tools(environment)
                data.prompts.clear()  # `setup` tokenises them with the tools
                data._order.forget()

    @property
    def bad_rows(self) -> dict[str, list[BadRow]]:
        """Split -> the rows that cannot be used."""
        return self._sets.bad_rows

    @property
    def chat(self) -> Chat:
        """The format of prompts, which offers the tools of the run's environment."""
        return self.prompt_encoder.chat

    def encoder_of(self, sample: Sample) -> PromptEncoder:
        """Return the encoder of the set that a sample is of."""
        return self.prompt_encoder

    def render(self, sample: Sample) -> str:
        """Return the exact text the model sees, special tokens and prefill included."""
        return self.prompt_encoder.render(sample)

    def encode(self, sample: Sample) -> Prompt:
        """Tokenise `render`'s text, with as many placeholders of each image as it has features."""
        return self.prompt_encoder.encode(sample, self.reading.max_prompt_tokens)

    def prepare(self, prompt: Prompt) -> Prompt:
        """Return the prompt ready for a batch, with its images decoded and cut into patches."""
        return self.prompt_encoder.prepare(prompt)

    # ---- reading the sets ---------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Read, check and tokenise the sets of a stage, so that bad data fails before the weights load."""
        if self.trainer is not None:
            callback = planning_callback(self.trainer)
            if callback is not None:
                callback.instruct_data(self)
        new = "train" not in self.prompts
        for split in STAGE_SPLITS.get(stage, ("train", "validation", "test")):
            if split not in self.prompts:
                self.prompts[split] = self._tokenised(split)
        if stage in ("fit", "validate"):
            for other in self.validated[1:]:
                other.use_model(self)
                other.setup("validate")
        if new and "train" in self.prompts:
            self._compare_sets()
        self._order_prompts()

    def _tokenised(self, split: Split) -> list[Prompt]:
        """Tokenise a split; drop the prompts that are too long."""
        samples = self.load(split)
        self.prompt_encoder.report_special_tokens(samples, split)
        prompts = [self.encode(sample) for sample in samples]
        fitting, self.too_long[split] = drop_long(prompts, self.reading.max_prompt_tokens, f"{self.name} {split}")
        if not prompts and split != "train":
            rank_zero_warn(f"{self.name}: there is no {split} set, its accuracy is not measured")
        return fitting

    def _compare_sets(self) -> None:
        """Report validation questions that are also in the training set.

        Raises:
            UserError: the training set has all questions of this DataModule's own validation set.
        """
        has_environment = self.prompt_encoder.environment is not None
        train = index_questions(self.prompts["train"], has_environment)
        for data in self.validated:
            validation = data.prompts.get("validation")
            if validation:
                refuse = data not in (self.evaluation.also_validate or ())
                check_held_out(train, validation, data.name, has_environment, refuse)

    def _order_prompts(self) -> None:
        """Put the training prompts in order, once they are loaded."""
        if "train" not in self.prompts or self._order.is_known:
            return
        prompts = self.prompts["train"]
        keys = order_keys([prompt.sample for prompt in prompts], self.order, self.difficulty)
        options = prompts, self.seed, run_seed(), keys, *(() if self.success is None else (self.success.is_retired,))
        if self.weights:
            check_weights(self.weights, self.datasets, self.weights_option)
            self._order.use(MixedStream(self.weights, *options))
        else:
            self._order.use(PromptStream(*options))
        self.train_dataloader()  # raises early if the sizes do not fit

    def difficulty(self, sample: Sample) -> float:
        """Return a sample's difficulty, by which `order` sorts.

        Raises:
            UserError: its row has no number in the column of the difficulty.
        """
        return difficulty_of(sample, self._difficulty)

    @property
    def datasets(self) -> list[str]:
        """The names of the sets of the training prompts."""
        return [*dict.fromkeys(prompt.sample.dataset for prompt in self.prompts["train"])]

    def load(self, split: Split) -> list[Sample]:
        """Return the checked samples of a split, in file order, not yet tokenised."""
        if self.validation_split is None or split == "test":
            return self._draw_rows(self._read(split), split)
        if self._read("validation"):
            raise UserError("validation_split: there is already a validation set, give only one of the two")
        train, validation = split_off(self._read("train"), self.validation_split, self.seed)
        samples = {"train": train, "validation": validation}
        return self._draw_rows(samples[split], split)

    def _draw_rows(self, samples: list[Sample], split: Split) -> list[Sample]:
        """Return at most as many samples of a split as the options allow, for evaluation perhaps with other images."""
        if split == "train":
            return subsample(samples, self.reading.limit, self.seed)
        if self.evaluation.shuffle_images:
            samples = exchange_images(samples, self.seed)
        return subsample(samples, self.evaluation.limit, self.seed)

    def _read(self, split: Split) -> list[Sample]:
        """Return all usable rows of a split; they are read once."""
        return self._sets.read(split, self.rows, self.demonstrates)

    # ---- loaders ------------------------------------------------------------------------------------------

    def train_dataloader(self) -> TrainLoader:
        return TrainLoader(
            self.stream,
            self.prompts_per_rollout,
            lambda: self.cursor,
            *self._ranks(),
            self.name,
            self._ahead,
            self.demonstrates,
        )

    def prepare_ahead(self, cursor: Cursor) -> None:
        """Begin to prepare the images of the batch that is expected at a cursor, in a thread, while training computes.

        The batch does not depend on it: if the curriculum then chooses others, those are prepared when they are taken.
        """
        prompts, _ = self.train_dataloader().prompts_at(cursor)
        self._ahead.begin(prompts)

    def stop_preparing(self) -> None:
        """Prepare no further images ahead."""
        self._ahead.drop()

    def val_dataloader(self) -> list[EvalLoader]:
        loaders = []
        for data in self.validated:
            loaders += data.eval_loader("validation", self._ranks())
        return loaders

    @property
    def validated(self) -> list[PromptDataModule]:
        """This DataModule and those of `evaluation.also_validate`."""
        return [self, *(self.evaluation.also_validate or ())]

    @property
    def loaded_prompts(self) -> list[Prompt]:
        """The prompts of all loaded sets, those of `evaluation.also_validate` too."""
        loaded: list[Prompt] = []
        for data in self.validated:
            for prompts in data.prompts.values():
                loaded += prompts
        return loaded

    def test_dataloader(self) -> list[EvalLoader]:
        return self.eval_loader("test", self._ranks())

    def eval_loader(self, split: Split, ranks: tuple[int, int]) -> list[EvalLoader]:
        """Return a list of the set's loader for `ranks` = (rank, world size); an empty one if there is no such set."""
        prompts = self.prompts[split]
        if prompts:
            return [EvalLoader(prompts, self.evaluation.prompts_per_batch, self.name, *ranks, self.prepare)]
        return []

    @property
    def stream(self) -> PromptStream:
        """The endless stream of training prompts; `stream.take(count, cursor)` takes any number of them."""
        return self._order.stream

    def on_prompts(self, prompts: Sequence[Prompt], prompts_per_rollout: int) -> PromptDataModule:
        """Return a copy that trains on some of its prompts, in an order of the data seed alone."""
        other = copy(self)
        other.prompts = self.prompts | {"train": list(prompts)}
        other.prompts_per_rollout = min(prompts_per_rollout, len(prompts))
        other._order = TrainingOrder()
        other._order.use(PromptStream(prompts, self.seed))
        return other

    def _ranks(self) -> tuple[int, int]:
        """Return (rank, world size)."""
        if self.trainer is not None:
            return (self.trainer.global_rank, self.trainer.world_size)
        return (0, 1)

    # ---- position and checkpoints -------------------------------------------------------------------------

    def commit(self, cursor: Cursor, successes: Successes = MappingProxyType({})) -> None:
        """Record that training has consumed everything before `cursor`; checkpoints store this position.

        Args:
            cursor: the position behind the last prompt that training consumed.
            successes: sample id -> successes of the iteration, over all ranks; the curriculum learns from them.
        """
        self._order.commit(cursor, successes)

    @property
    def cursor(self) -> Cursor:
        """The position behind the last prompt that training consumed."""
        return self._order.cursor

    @property
    def success(self) -> RunningSuccess | None:
        """The running success of the prompts; None without a curriculum."""
        return self._order.success

    def state_dict(self) -> dict[str, Any]:
        return self._order.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position, before or after `setup`.

        Raises:
            UserError: the training data differ from those of the checkpoint.
        """
        self._order.load_state_dict(state_dict)
