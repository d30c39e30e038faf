"""`PromptEncoder`: samples -> the text that the model sees -> prompts of tokens and images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from lit_rlvr.common.columns import parse_text
from lit_rlvr.datamodules.reading.assistant_turns import Part, TrainedTurns, split_turns
from lit_rlvr.datamodules.reading.chat import Chat, break_up, special_tokens
from lit_rlvr.datamodules.reading.conversations import without_nulls
from lit_rlvr.datamodules.reading.rows import abbreviate, joined_text, rank_zero_warn
from lit_rlvr.datamodules.reading.split import CHARACTERS, FAR_TOO_LONG, Split
from lit_rlvr.environments.base import Environment
from lit_rlvr.errors import UserError
from lit_rlvr.policy.families.base import ImageProcessor
from lit_rlvr.rewards.forms import as_messages
from lit_rlvr.types import Prompt, Sample


class ModelInputs(Protocol):
    """The tokenizer and image processor of the model that prompts are for; a data module takes them from its model.

    Attributes:
        demonstrates: True if the model is trained on the completions that the data hold.
    """

    @property
    def tokenizer(self) -> Any: ...

    @property
    def image_processor(self) -> ImageProcessor: ...

    @property
    def demonstrates(self) -> bool: ...


class PromptEncoder:
    """Renders the samples of a data set with the chat template, and encodes them as prompts.

    Args:
        name: the data set's name, for messages.
        chat: the format of its prompts.
        model: the model that the prompts are for; its tokenizer is asked for when it is first needed.

    Attributes:
        chat: the format of prompts, which offers the tools of the environment.
        environment: the run's environment, if it has one.
    """

    def __init__(self, name: str, chat: Chat, model: ModelInputs) -> None:
        self.chat = chat
        self.environment: Environment | None = None
        self._name = name
        self._model = model
        self._reports_special_tokens = True
        self._openings: dict[str, str] = {}  # by the template's arguments

    def offer_tools(self, environment: Environment) -> None:
        """Offer an environment's tools in every prompt."""
        self.environment = environment
        self.chat = self.chat.with_tools(environment.tools)

    # ---- text ---------------------------------------------------------------------------------------------

    def render(self, sample: Sample) -> str:
        """Return the exact text the model sees, special tokens and prefill included."""
        chat = self._chat_of(sample)
        return chat.text(self._messages(sample, chat), self._model.tokenizer, sample.source)

    def _messages(self, sample: Sample, chat: Chat) -> list[dict[str, Any]]:
        """Return the conversation that the model sees, without special tokens in the row's own text."""
        plain = self.as_plain(sample.prompt, sample, "a prompt")
        return chat.messages(replace(sample, prompt=plain))

    def _chat_of(self, sample: Sample) -> Chat:
        """Return the format of a sample's prompt, which offers the tools of the environment.

        If completions come from the data, it offers those of the row's column `tools`.
        """
        chat = self.chat.for_row(sample)
        if self.environment is not None:
            if chat is not self.chat and not self.environment.takes_row_templates:
                raise UserError(
                    f"{sample.source}: chat_template_kwargs: with an environment all rows have the same, those of "
                    "data.init_args.chat; leave the column out"
                )
            return chat.with_tools(self.environment.tools_of(sample))
        if self._model.demonstrates:
            tools = parse_text(sample.row.get("tools"))
        else:
            tools = None
        if not tools:
            return chat
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise UserError(f"{sample.source}: tools: not a list of JSON schemas, as chat templates take them")
        return chat.with_tools(self.as_plain(without_nulls(tools), sample, "a tool"))

    @property
    def opening(self) -> str:
        """The beginning of an answer that stands in the prompt, after the header of the model's turn.

        A row may say otherwise.
        """
        return self._opening_of(self.chat)

    def _opening_of(self, chat: Chat) -> str:
        """Return the beginning of an answer in a format of prompts, which depends on the template's arguments alone."""
        options = repr(chat.chat_template_kwargs)
        if options not in self._openings:
            self._openings[options] = chat.opening(self._model.tokenizer)
        return self._openings[options]

    # ---- special tokens in rows ---------------------------------------------------------------------------

    def as_plain(self, value: Any, sample: Sample, where: str, is_written: bool = False) -> Any:
        """Return a text or messages of a sample with the special tokens in them as text, unless the option is `keep`.

        Args:
            value: the text or the messages.
            sample: the sample that they belong to.
            where: what it is of the sample, for the message.
            is_written: the model writes it, so marks of thoughts stay.
        """
        tokens = special_tokens(self._model.tokenizer, is_written)
        if tokens.search(joined_text(value)) is None:
            return value
        # If neither holds, rows of this set have been reported.
        if self._reports_special_tokens or self.chat.special_tokens == "refuse":
            self._report_special_tokens(self._name, where, [sample])
        if self.chat.special_tokens == "keep":
            return value
        return break_up(value, tokens)

    def report_special_tokens(self, samples: Sequence[Sample], split: Split) -> None:
        """Name the rows of a split whose prompts have special tokens; single prompts are then not reported again.

        Raises:
            UserError: there are some, and the option is `refuse`.
        """
        tokens = special_tokens(self._model.tokenizer)
        rows = []
        for sample in samples:
            if tokens.search(joined_text(sample.prompt)):
                rows.append(sample)
        if rows:
            self._report_special_tokens(f"{self._name} {split}", f"{len(rows)} of {len(samples)} rows", rows)

    def _report_special_tokens(self, name: str, where: str, samples: Sequence[Sample]) -> None:
        report = f"{name}: special tokens of the model in {where} ({abbreviate([s.source or s.id for s in samples])})"
        if self.chat.special_tokens == "refuse":
            raise UserError(f"{report}. Remove them, or choose `data.chat.special_tokens: break`")
        if self.chat.special_tokens == "keep":
            does = "stay control tokens"
        else:
            does = "are broken up with a zero-width space"
        rank_zero_warn(f"{report} {does} (data.chat.special_tokens: {self.chat.special_tokens})")
        self._reports_special_tokens = False

    # ---- tokens and images --------------------------------------------------------------------------------

    def encode(self, sample: Sample, max_tokens: int) -> Prompt:
        """Tokenise `render`'s text, with as many placeholders of each image as it has features.

        Of a text with more than `FAR_TOO_LONG` times `max_tokens` tokens, whose tokenisation could take minutes, keep
        that many tokens.
        """
        chat = self._chat_of(sample)
        limit = FAR_TOO_LONG * max_tokens
        messages = self._messages(sample, chat)
        if messages != as_messages(sample.prompt):
            sample = replace(sample, conversation=tuple(messages))
        text = chat.text(messages, self._model.tokenizer, sample.source)
        token_ids = self._token_ids(text[: limit * CHARACTERS])
        if len(token_ids) < 2 * limit and len(text) > limit * CHARACTERS:
            token_ids = self._token_ids(text)
        if len(token_ids) > limit:
            token_ids = token_ids[:limit]
        elif sample.images:
            try:
                processor = self._model.image_processor
                token_ids = processor.expand(token_ids, processor.placeholders_of(sample.images))
                sample = replace(sample, coordinates=processor.coordinates_of(sample.images))
            except UserError as error:
                raise UserError(f"{sample.source}: {error}") from error
        return Prompt(sample, token_ids, prefill=self._opening_of(chat), score_prefill=chat.score_prefill)

    def _token_ids(self, text: str) -> list[int]:
        return list(self._model.tokenizer(text, add_special_tokens=False).input_ids)

    def prepare(self, prompt: Prompt) -> Prompt:
        """Return the prompt ready for a batch, with its images decoded and cut into patches.

        Raises:
            UserError: an image file has disappeared, broken or changed its size since it was checked.
        """
        if not prompt.sample.images:
            return prompt
        try:
            pixels = self._model.image_processor.pixels(prompt.sample.images)
            self._model.image_processor.family.check_features(prompt.token_ids, pixels)
        except OSError as error:
            where = prompt.sample.source
            raise UserError(f"{where}: image: {error}; it was there when the data were loaded, restore it") from error
        except UserError as error:
            raise UserError(f"{prompt.sample.source}: {error}") from error
        return replace(prompt, pixels=pixels)

    # ---- conversations to learn from ----------------------------------------------------------------------

    def split_turns(
        self, sample: Sample, turns: Sequence[dict[str, Any]], ends: Sequence[int], trains_empty_thoughts: bool = True
    ) -> TrainedTurns:
        """Return the tokens of a sample's conversation, in parts that the model reads and writes alternately.

        Args:
            sample: the sample.
            turns: the messages after the sample's prompt.
            ends: the tokens that end a turn.
            trains_empty_thoughts: False = the model reads the empty thoughts at the beginning of a turn.

        Raises:
            BadRow: the chat template does not show which tokens are the model's.
        """
        chat = self._chat_of(sample)
        messages = as_messages(self.as_plain(sample.prompt, sample, "a prompt"))
        written = self.as_plain(list(turns), sample, "a completion", is_written=True)
        whole = replace(sample, prompt=[*messages, *written])
        trained = split_turns(
            chat.messages(whole),
            chat,
            self._model.tokenizer,
            self._opening_of(chat),
            ends,
            sample.source,
            trains_empty_thoughts,
        )
        return trained._replace(sequences=[self._with_images(parts, sample) for parts in trained.sequences])

    def _with_images(self, parts: list[Part], sample: Sample) -> list[Part]:
        """Return the parts of a sequence with as many placeholders of each image as it has features."""
        if not sample.images:
            return parts
        processor = self._model.image_processor
        placeholders = processor.placeholders_of(sample.images)
        with_counts = []
        for part in parts:
            count = sum(map(part.token_ids.count, processor.family.prompt_token_ids))
            token_ids = processor.expand(part.token_ids, placeholders[:count])
            with_counts.append(Part(token_ids, part.is_written, count))
            placeholders = placeholders[count:]
        return with_counts
