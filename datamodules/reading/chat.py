"""The exact text that the model sees for a sample: template, system prompt, chat template, prefill."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache, lru_cache
from inspect import signature
from typing import Any, Literal

from lit_rlvr.common.arguments import given_text, option_group
from lit_rlvr.common.columns import parse_text
from lit_rlvr.datamodules.reading.conversations import THOUGHT_KEYS, text_of, without_nulls
from lit_rlvr.datamodules.reading.images import PLACEHOLDER, as_parts
from lit_rlvr.errors import UserError, refuse_all
from lit_rlvr.rewards.forms import as_messages
from lit_rlvr.speech.thoughts import MARK, thoughts_in, without_thoughts
from lit_rlvr.types import Sample

SYSTEM_PROMPTS: dict[str, str] = {
    # AAPO, appendix C.2: training DeepSeek-R1-Distill-Qwen-1.5B
    "aapo-1.5b": (
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
        "The assistant first thinks about the reasoning process in the mind and then provides the user with the "
        "answer, and put your final answer within \\boxed{}. The reasoning process and answer are enclosed within "
        "<think></think> and <answer></answer> tags, respectively, i.e., <think>reasoning process here </think>"
        "<answer>answer here </answer>. Note that respond by English, NOT use other languages."
    ),
    # AAPO, appendix C.2: training Qwen2.5-Math-7B
    "aapo-7b": (
        "You are a helpful AI Assistant, designed to provided well-reasoned and detailed responses. You FIRST think "
        "about the reasoning process as an internal monologue and then provide the user with the answer. The "
        "reasoning process MUST BE enclosed within <think> and </think> tags."
    ),
    # AAPO, appendix C.3: evaluation of the Qwen models on all benchmarks
    "aapo-eval": (
        "Solve the following math problem efficiently and clearly. The last line of your response should be of the "
        "following format: 'Therefore, the final answer is: $\\boxed{ANSWER}$. I hope it is correct' (without "
        "quotes) where ANSWER is just the final number or expression that solves the problem. Think step by step "
        "before answering."
    ),
    # A-GRAE, appendix C.2: MATH
    "agrae-math": "Please reason step by step, and put your final answer within \\boxed{ }.",
    # A-GRAE, appendix C.2: Geo3K and the medical sets
    "agrae-vision": (
        "This is a multiple-choice question. You FIRST think about the reasoning process as an internal monologue "
        "and then provide the final choice from the given options. The reasoning process MUST BE enclosed within "
        "<think> </think> tags. The final answer MUST BE put in \\boxed{ }."
    ),
    # LiveCodeBench, for chat models
    "livecodebench": (
        "You are an expert Python programmer. You will be given a question (problem specification) and will generate a "
        "correct Python program that matches the specification and passes all tests. You will NOT return anything "
        "except for the program."
    ),
}

TEMPLATES: dict[str, str] = {
    # the sentence of A-GRAE's MATH runs in the user's turn, for chat templates that refuse a system prompt
    "boxed": "{prompt}\nPlease reason step by step, and put your final answer within \\boxed{}.",
    # follows schema and question
    "sql": "{prompt}\n\nAnswer with one SQLite query in a ```sql block.",
}


def registered(value: str, registry: Mapping[str, str], option: str) -> str:
    """Return the text that the registry has under this name, or else the value itself.

    Raises:
        UserError: the value looks like a misspelt registered name.
    """
    if value in registry:
        return registry[value]
    is_text = " " in value or "{" in value  # no name has these
    nearest = get_close_matches(value, registry, 1)
    if nearest and not is_text:
        raise UserError(f"{option}: no prompt is named {value!r}, did you mean {nearest[0]!r}?")
    return value


def fill_in(template: str, **values: str) -> str:
    """Replace names in braces by their values, in one pass, so that braces in the values stay unchanged."""
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), template)


def wrapped(content: Any, template: str, **fillers: str) -> Any:
    """Return a message's text, or the last text part of a list of parts, with a template around it.

    Args:
        content: the text, or the list of parts.
        template: the template, in which `{prompt}` stands for the text.
        fillers: texts that other names in braces stand for.
    """
    if isinstance(content, str):
        return fill_in(template, prompt=content, **fillers)
    parts = [dict(part) for part in content]
    texts = []
    for part in parts:
        if part.get("type") == "text":
            texts.append(part)
    if not texts:  # an image alone
        texts.append({"type": "text", "text": ""})
        parts += texts
    texts[-1]["text"] = fill_in(template, prompt=texts[-1]["text"], **fillers)
    return parts


def wrapped_prompt(prompt: str | list[dict[str, Any]], template: str, **fillers: str) -> str | list[dict[str, Any]]:
    """Return a prompt with a template around its text or, of messages, around the last one of the user."""
    if isinstance(prompt, str):
        return fill_in(template, prompt=prompt, **fillers)
    last = max(i for i, message in enumerate(prompt) if message["role"] == "user")
    content = wrapped(prompt[last]["content"], template, **fillers)
    return [*prompt[:last], {**prompt[last], "content": content}, *prompt[last + 1 :]]


@lru_cache(maxsize=8)
def special_tokens(tokenizer: Any, is_written: bool = False) -> re.Pattern[str]:
    """Return a pattern of the control tokens, such as `<|im_end|>`; an image's `<image>` is none.

    Args:
        tokenizer: the model's tokenizer.
        is_written: leave out the marks of thoughts, for a text that the model writes.
    """
    special = set()
    for token in tokenizer.added_tokens_decoder.values():
        if token.special:
            special.add(str(token))
    tokens = special - {PLACEHOLDER}
    return find_tokens(token for token in tokens if not (is_written and MARK.fullmatch(token)))


def find_tokens(tokens: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that matches the first character of each token; it ignores white space and single characters."""
    longer = (re.escape(token[0]) + f"(?={re.escape(token[1:])})" for token in tokens if token.strip() and token[1:])
    return re.compile("|".join(longer) or "(?!)")


def break_up(value: Any, tokens: re.Pattern[str]) -> Any:
    """Put a zero-width space into each token in a text, or in all texts of messages.

    Args:
        value: the text or the messages.
        tokens: the result of `find_tokens`.
    """
    if isinstance(value, str):
        return tokens.sub("\\g<0>\u200b", value)
    if isinstance(value, Mapping):
        return {break_up(name, tokens): break_up(item, tokens) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [break_up(item, tokens) for item in value]
    return value


TOOL_INSTRUCTIONS = "To call a tool, write <call>name(arguments)</call> and wait for its result. The tools are:"


def _type_of(spec: dict[str, Any]) -> str:
    """Return an argument's type, or its values if the schema lists them."""
    if "enum" in spec:
        return " or ".join(map(repr, spec["enum"]))
    kind = spec.get("type", "any")
    if isinstance(kind, str):
        return kind
    return " or ".join(kind)


def _describe_tool(tool: dict[str, Any]) -> str:
    function = tool["function"]
    properties = function.get("parameters", {}).get("properties", {})
    arguments = ", ".join(f"{name}: {_type_of(spec)}" for name, spec in properties.items())
    descriptions = []
    for name, spec in properties.items():
        if spec.get("description"):
            descriptions.append(f"{name}: {spec['description']}")
    notes = "; ".join(descriptions)
    return f"{function['name']}({arguments}) - {function.get('description', '')}" + (f" ({notes})" if notes else "")


MODEL_TURN = "\ue000"
"""A placeholder of a turn of the model: a private code point, which observations lose."""


@cache
def reserved_arguments() -> frozenset[str]:
    """Return the arguments of `apply_chat_template` that are not the template's, and its name for the conversation."""
    from transformers import PreTrainedTokenizerBase

    arguments = signature(PreTrainedTokenizerBase.apply_chat_template).parameters
    return frozenset(arguments) - {"kwargs", "documents", "chat_template"} | {"messages"}


def check_template_arguments(where: str, arguments: Iterable[str]) -> None:
    """Refuse arguments of the chat template that lit-rlvr sets itself.

    Raises:
        UserError: names them, and where they stand.
    """
    problems = []
    for name in arguments:
        if name in reserved_arguments():
            problems.append(f"{where}: {name!r} is set by lit-rlvr and cannot be given; leave it out")
    refuse_all(problems)


@option_group("data.chat")
@dataclass(frozen=True)
class Chat:
    """The format of prompts.

    Args:
        system_prompt: system message, or the name of a shipped one (aapo-1.5b, aapo-7b, aapo-eval, agrae-math,
            agrae-vision, livecodebench). It replaces a system message in the data.
        template: text around the user's text, with `{prompt}` in its place; or a name (boxed, sql).
        prefill: text that every answer starts with, such as "<think>\\n"; the model continues from it.
        score_prefill: rewards judge what the model continues, the chat template's beginning of an answer (such as
            "<think>\\n" in models that always think) and then `prefill`, as the beginning of each completion's text.
            Default: they judge only what the model wrote.
        chat_template_kwargs: further arguments of the model's chat template, such as {enable_thinking: false}. A
            column of this name adds to them, row by row.
        plain_template: the prompt format of a base model without a chat template; `{system}` becomes the system prompt
            and a blank line, or nothing.
        special_tokens: what happens to special tokens of the model, such as `<|im_end|>`, in a row or in what an
            environment says first: `break` puts a zero-width space into each, so that it is plain text; `refuse` stops
            with an error; `keep` leaves the control tokens.

    Attributes:
        tools: JSON schemas of the tools that every prompt offers; an environment has them.
    """

    system_prompt: str | None = None
    template: str = "{prompt}"
    prefill: str = ""
    score_prefill: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    plain_template: str = "{system}{prompt}\n"
    special_tokens: Literal["break", "refuse", "keep"] = "break"
    tools: tuple[dict[str, Any], ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        _ = self.system_text  # refuses a misspelt name
        templates = {"template": self.template_text, "plain_template": self.plain_template}
        problems = []
        for option, template in templates.items():
            if "{prompt}" not in template:
                problems.append(
                    f"data.chat.{option}: {template!r} has no {{prompt}}, the model would not see the question"
                )
        refuse_all(problems)
        check_template_arguments("data.chat.chat_template_kwargs", self.chat_template_kwargs or {})

    @property
    def system_text(self) -> str | None:
        """The system prompt, where `system_prompt` may be its name."""
        if self.system_prompt is None:
            return None
        return registered(self.system_prompt, SYSTEM_PROMPTS, "data.chat.system_prompt")

    @property
    def template_text(self) -> str:
        """The text around the user's, where `template` may be its name."""
        return registered(self.template, TEMPLATES, "data.chat.template")

    def for_row(self, sample: Sample) -> Chat:
        """Return the format of a row, whose column `chat_template_kwargs` adds to that option.

        Raises:
            UserError: the column holds no dict, or what an option cannot.
        """
        row_kwargs = parse_text(sample.row.get("chat_template_kwargs"))
        if not row_kwargs:
            return self
        if not isinstance(row_kwargs, Mapping):
            raise UserError(
                f"{sample.source}: chat_template_kwargs: {given_text(row_kwargs)} is no dict, nor JSON of one"
            )
        check_template_arguments(f"{sample.source}: chat_template_kwargs", row_kwargs)
        return replace(self, chat_template_kwargs={**(self.chat_template_kwargs or {}), **without_nulls(row_kwargs)})

    def with_tools(self, tools: Sequence[dict[str, Any]]) -> Chat:
        """Return a copy that offers tools in every prompt."""
        offered = replace(self)
        object.__setattr__(offered, "tools", tuple(tools))
        return offered

    def messages(self, sample: Sample) -> list[dict[str, Any]]:
        """Return the conversation: the template around the last user text, the system prompt in front.

        A `system_prompt` replaces the data's own system message. With images, contents are lists of parts; without any,
        they are texts, because the templates of text models print a list as Python does.
        """
        messages: Any = wrapped_prompt(as_messages(sample.prompt), self.template_text)
        if sample.images:
            messages = as_parts(messages, sample.images)
        else:
            messages = [_as_text(message) for message in messages]
        if self.system_text is None:
            return messages
        rest = []
        for message in messages:
            if message["role"] != "system":
                rest.append(message)
        return [{"role": "system", "content": self.system_text}, *rest]

    def text(self, messages: list[dict[str, Any]], tokenizer: Any, source: str = "", prompt: bool = True) -> str:
        """Return the whole prompt as text with its special tokens; tokenise it without adding any.

        Args:
            messages: the conversation.
            tokenizer: the model's. If it has no chat template (a base model), its beginning-of-text token and
                `plain_template` replace it.
            source: "file:row", for errors.
            prompt: end with the beginning of the model's next turn.
        """
        if not tokenizer.chat_template:
            if any(not isinstance(message["content"], str) for message in messages):
                raise UserError(f"{source}: images need a model with a chat template, this one has none")
            return _bos_token(tokenizer) + self._plain(self._describe_tools_in(messages)) + self.prefill
        text = self.apply(self._offering(messages, tokenizer, source), tokenizer, source, prompt)
        self._check_shown(messages, text, tokenizer, source)
        if prompt:
            return text + self.prefill
        return text

    def _offering(self, messages: list[dict[str, Any]], tokenizer: Any, source: str) -> list[dict[str, Any]]:
        """Return the messages, with the tools in the system message if the chat template ignores tools."""
        if self.tools and self.apply(messages, tokenizer, source) == self.apply(
            messages, tokenizer, source, offer=False
        ):
            return self._describe_tools_in(messages)
        return messages

    def _check_shown(self, messages: list[dict[str, Any]], text: str, tokenizer: Any, source: str) -> None:
        """Refuse messages with a role that the chat template does not know, or that it does not show.

        Raises:
            UserError: names the role.
        """
        for number, message in enumerate(messages):
            role = message["role"]
            calls = message.get("tool_calls", [])
            if role == "developer" and role not in str(tokenizer.chat_template):
                raise UserError(f"{source}: the model's chat template does not know the role {role!r}; use 'system'")
            if role == "user" or (role == "assistant" and not calls):
                continue
            pieces = [call["name"] for call in _functions([message])] or [text_of(message["content"]).strip()]
            if all(words in text for words in pieces):
                continue
            rest = [{**message, "tool_calls": []}] if calls else []
            try:
                without = self.apply([*messages[:number], *rest, *messages[number + 1 :]], tokenizer, source)
            except UserError:  # so the template reads the message
                continue
            if without == text:
                what = "tool calls" if calls else f"messages of the role {role!r}"
                raise UserError(f"{source}: the model's chat template does not show {what}; use another template")

    def opening(self, tokenizer: Any) -> str:
        """Return the beginning of every answer that stands in the prompt.

        It is what the chat template writes after the header of the model's turn, such as "<think>\\n", and the prefill.
        The header is what the template writes before an earlier turn of the model, up to thoughts, which may be empty
        there.
        """
        if not tokenizer.chat_template:
            return self.prefill
        question = {"role": "user", "content": "?"}
        turn = {"role": "assistant", "content": MODEL_TURN}
        try:
            before = self.apply([question], tokenizer, prompt=False, offer=False)
            prompt = self.apply([question], tokenizer, prompt=True, offer=False)
            talk = self.apply([question, turn, question], tokenizer, prompt=False, offer=False)
        except UserError:  # it takes no such conversation, so nothing shows where the header ends
            return self.prefill
        shared = shared_length(talk.partition(MODEL_TURN)[0], prompt)
        if prompt.startswith(before):
            thoughts = MARK.search(prompt, len(before))
            shared = min(max(shared, len(before)), thoughts.start() if thoughts else len(prompt))
        return prompt[shared:] + self.prefill

    def unread_thoughts(self, tokenizer: Any) -> str:
        """Return how the chat template writes thoughts, if these cannot be told from the answer; "" if they can."""
        thought = "A thought."
        answer = "The answer."
        turn = {"role": "assistant", "content": answer} | dict.fromkeys(THOUGHT_KEYS, thought)
        try:
            text = self.apply([{"role": "user", "content": "?"}, turn], tokenizer, prompt=False, offer=False)
        except UserError:  # it takes no such conversation
            return ""
        behind = without_thoughts(text)
        is_read = answer in behind and thought not in behind and thought in thoughts_in(text)
        if is_read or thought not in text:
            return ""
        return " ".join(text[text.rindex("?") + 1 :].split())

    def apply(
        self, messages: list[dict[str, Any]], tokenizer: Any, source: str = "", prompt: bool = True, offer: bool = True
    ) -> str:
        """Apply the model's chat template to a conversation.

        A template that refuses the arguments of tool calls as dicts gets them as JSON text.

        Args:
            messages: the conversation.
            tokenizer: the model's tokenizer.
            source: "file:row", for messages.
            prompt: end with the beginning of the model's next turn.
            offer: pass the tools to the template.
        """
        return str(self._apply(messages, tokenizer, source, offer, tokenize=False, add_generation_prompt=prompt))

    def marked(self, messages: list[dict[str, Any]], tokenizer: Any, source: str = "") -> list[tuple[int, int]]:
        """Return each token of a conversation, and 1 if the chat template marks it with `{% generation %}`, else 0."""
        options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        encoding = self._apply(self._offering(messages, tokenizer, source), tokenizer, source, True, **options)
        return list(zip(encoding["input_ids"], encoding["assistant_masks"], strict=True))

    def _apply(self, messages: list[dict[str, Any]], tokenizer: Any, source: str, offer: bool, **options: bool) -> Any:
        if self.tools and offer:
            more = {"tools": list(self.tools)}
        else:
            more = {}
        try:
            return tokenizer.apply_chat_template(messages, **options, **more, **(self.chat_template_kwargs or {}))
        except Exception as error:  # the template is third-party code
            if any(isinstance(call.get("arguments"), dict) for call in _functions(messages)):
                return self._apply(_with_text_arguments(messages), tokenizer, source, offer, **options)
            raise UserError(f"{source}: the model's chat template refuses this conversation: {error}") from error

    def _describe_tools_in(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Describe the tools in the system message, for chat templates that ignore tools."""
        if not self.tools:
            return messages
        system = None
        if messages[0]["role"] == "system":
            system = messages[0]
        parts = [] if system is None else [text_of(system["content"])]
        text = "\n\n".join([*parts, "\n".join([TOOL_INSTRUCTIONS, *map(_describe_tool, self.tools)])])
        return [{"role": "system", "content": text}, *(messages if system is None else messages[1:])]

    def _plain(self, messages: list[dict[str, Any]]) -> str:
        """Return a conversation in the format of `plain_template`."""
        system_texts = []
        for m in messages:
            if m["role"] == "system":
                system_texts.append(f"{m['content']}\n\n")
        system = "".join(system_texts)
        other_texts = []
        for m in messages:
            if m["role"] != "system":
                other_texts.append(str(m["content"]))
        prompt = "\n\n".join(other_texts)
        return fill_in(self.plain_template, system=system, prompt=prompt)


def shared_length(text: str, other: str) -> int:
    """Return how many characters the beginnings of two texts have in common."""
    for k, (a, b) in enumerate(zip(text, other, strict=False)):
        if a != b:
            return k
    return min(len(text), len(other))


def _functions(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the functions of all tool calls, with their arguments."""
    functions = []
    for message in messages:
        for call in message.get("tool_calls", []):
            functions.append(call.get("function", call))
    return functions


def _with_text_arguments(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages with the arguments of tool calls as JSON text."""
    messages = deepcopy(messages)
    for function in _functions(messages):
        function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return messages


def _as_text(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose parts are all texts with one text as its content; return any other message as it is."""
    content = message["content"]
    has_others = isinstance(content, str) or any(part.get("type") != "text" for part in content)
    if has_others:
        return message
    return message | {"content": text_of(content)}


def _bos_token(tokenizer: Any) -> str:
    """Return the beginning-of-text token if the tokenizer puts one in front of a text, else ""."""
    token_ids = tokenizer("").input_ids[:1]
    if token_ids and token_ids[0] == tokenizer.bos_token_id:
        return str(tokenizer.bos_token)
    return ""
