"""The tokens between turns by the chat templates of many models, which TRL ships, compared with TRL's own."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import CHATML

from lit_rlvr.datamodules.reading.assistant_turns import split_turns
from lit_rlvr.datamodules.reading.bad_row import BadRow
from lit_rlvr.datamodules.reading.between_turns import BetweenTurns
from lit_rlvr.datamodules.reading.chat import Chat
from lit_rlvr.environments.built_in import Calculator
from lit_rlvr.errors import UserError
from lit_rlvr.policy import tiny as tiny_vlm
from lit_rlvr.policy.loading import after_a_turn
from lit_rlvr.rollout.episodes import check_tool_calls
from lit_rlvr.types import ToolResult

SPEC = importlib.util.find_spec("trl")
assert SPEC is not None and SPEC.origin is not None, "`make develop` installs it"
TRL = Path(SPEC.origin).parent
TEMPLATES = sorted(path.stem for path in (TRL / "chat_templates").glob("*.jinja") if "_training" not in path.stem)
ENDS = {
    "cohere": ["<|END_OF_TURN_TOKEN|>"], "deepseek": ["<\uff5cend▁of▁sentence\uff5c>"],
    "gemma4_v2": ["<eos>", "<turn|>"], "gemma4": ["<eos>", "<turn|>", "<|tool_response>"],
    "diffusion_gemma": ["<eos>", "<turn|>", "<|tool_response>"], "gemma": ["<eos>", "<end_of_turn>"],
    "glm": ["<|endoftext|>", "<|user|>", "<|observation|>"], "gptoss": ["<|return|>", "<|call|>"],
    "llama": ["<|eot_id|>", "<|eom_id|>"], "muse": ["<|eot|>"], "phi": ["<|end|>"], "": ["<|im_end|>"],
}  # fmt: skip
"""Beginning of a template's name -> end tokens of these models: first the tokenizer's, last what ends a tool call."""
DESCRIBED = {
    "cohere": "user", "cohere2": "user", "deepseek_r1_distill": "tool", "gemma": "user", "gemma3": "user",
    "llama3": "tool", "phi3": "user", "phi3_5": "user", "qwen2_5_vl": "tool",
}  # fmt: skip
"""Templates without tool calls, for which the system message describes the tools -> the role of their results."""
REFUSED = {
    "idefics3": "does not show messages that follow", "llava_next": "does not show messages that follow",
    "smolvlm": "does not show messages that follow", "lfm2": "form that cannot be read (<|im_end|>)",
}  # fmt: skip
MISSING = {"gemma4_v2": "\n"}
"""Text that a template puts behind the end of the turn and that TRL leaves out, if that is not the tokenizer's."""
RESULTS = [ToolResult("calculate", "391"), ToolResult("calculate", "{'error': 'no number'}")]
MESSAGES = [{"role": "tool", "name": result.name, "content": result.text} for result in RESULTS]


def ends_of(name: str) -> list[str]:
    return next(ends for start, ends in ENDS.items() if name.startswith(start))


def tokenizer_of(name: str) -> Any:
    """A byte-level tokenizer with the model's template and the special tokens in it."""
    template, ends = (TRL / "chat_templates" / f"{name}.jinja").read_text(), ends_of(name)
    special = {*re.findall(r"<[|\uff5c][^<>\s{}'\"]+>|<[a-z_]+\|>|<start_of_turn>|<end_of_turn>", template)} - {*ends}
    tokenizer = tiny_vlm.byte_tokenizer([*ends, *sorted(special), "<bos>"], CHATML, pad=ends[0])
    tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token = template, "<bos>", ends[0]
    return tokenizer


def between_of(name: str) -> tuple[BetweenTurns, Any, int]:
    """How the model sees results, its tokenizer, and the token that ends its calls."""
    tokenizer = tokenizer_of(name)
    ends = tuple(tokenizer.convert_tokens_to_ids(ends_of(name)))
    between = BetweenTurns(Chat().with_tools(Calculator().tools), tokenizer, ends, "tool")
    between.choose_role()
    check_tool_calls(between)
    return between, tokenizer, ends[-1]


@pytest.fixture(scope="module")
def suffix() -> Callable[..., list[int]]:
    """TRL's method for the tokens between turns, without the imports of its module, which take half a minute."""
    tree = ast.parse((TRL / "trainer" / "grpo_trainer.py").read_text())
    node = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "_get_tool_suffix_ids")
    space: dict[str, Any] = {}
    exec(compile(ast.Module([node], []), "grpo_trainer.py", "exec"), space)
    method: Callable[..., list[int]] = space["_get_tool_suffix_ids"]
    return method


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in {*DESCRIBED, *REFUSED}])
def test_the_tokens_between_turns_are_trls(name: str, suffix: Callable[..., list[int]]) -> None:
    between, tokenizer, end = between_of(name)
    training = TRL / "chat_templates" / f"{name}_training.jinja"  # TRL takes it where the model's does not suit
    trainer = SimpleNamespace(
        processing_class=tokenizer, _tokenizer=tokenizer, _is_vlm=False, chat_template_kwargs={},
        chat_template=training.read_text() if training.exists() else None,
    )  # fmt: skip
    expected = tokenizer.decode(suffix(trainer, MESSAGES))
    seen = between.tokens("", end, 1000, results=RESULTS)
    assert tokenizer.decode(seen.token_ids) == MISSING.get(name, "") + expected
    assert tokenizer(MISSING.get(name, "") + expected, add_special_tokens=False).input_ids == list(seen.token_ids)


@pytest.mark.parametrize("name", DESCRIBED)
def test_without_tool_calls_the_tokens_are_those_of_the_whole_conversation(name: str) -> None:
    between, tokenizer, end = between_of(name)
    asked, said = {"role": "user", "content": "?"}, {"role": "assistant", "content": "<call>calculate('1')</call>"}
    joined = "\n".join(result.text for result in RESULTS)
    answers = MESSAGES if DESCRIBED[name] == "tool" else [{"role": "user", "content": joined}]
    text = tokenizer.apply_chat_template([asked, said, *answers], tokenize=False, add_generation_prompt=True)
    seen = tokenizer.decode(between.tokens("", end, 1000, results=RESULTS).token_ids)
    after = text.rpartition("</call>")[2]
    assert seen in [after, *(after.removeprefix(text) for text in ends_of(name))] and "391" in seen
    assert not any(seen.startswith(text) for text in ends_of(name))


OTHER_ENDS = {"glm4moe": "", "idefics3": "<end_of_utterance>", "llava_next": "</s>", "smolvlm": "<end_of_utterance>"}
"""Templates that end a turn with nothing, or with another token than the model's tool calls."""


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_end_of_a_turn_is_found_in_every_template(name: str) -> None:
    ends = [OTHER_ENDS[name]] if name in OTHER_ENDS else ends_of(name)
    assert any(end in after_a_turn(tokenizer_of(name)) for end in ends)


@pytest.mark.parametrize("name", REFUSED)
def test_templates_whose_calls_or_results_cannot_be_read_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=re.escape(REFUSED[name])) as refused:
        between_of(name)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("name", "opening"), [("qwen3", ""), ("qwen3_5_think", "<think>"), ("qwen3_5_nothink", "")])
def test_a_turn_begins_in_thoughts_where_the_prompt_opens_them(name: str, opening: str) -> None:
    assert between_of(name)[0].opening == opening


MARKED = sorted(path.stem.removesuffix("_training") for path in (TRL / "chat_templates").glob("*_training.jinja"))
"""Templates of which TRL has a version that marks the assistant's turns."""
UNSEEN_CALLS = {
    "deepseek_r1_distill", "deepseekv3", "glm4moe", "lfm2", "llama3", "nemotron_3_5_lightning", "nemotron_3_nano",
    "nemotron_3_super", "nemotron_3_ultra", "phi3", "phi3_5", "qwen2_5_vl",
}  # fmt: skip
"""Templates that leave tool calls out, show them otherwise than after the prompt of the model, or do not end them."""
ROLES = ("user", "assistant", "user", "assistant")
ALTERNATING = {"cohere", "cohere2", "gemma", "gemma3", "idefics3", "llava_next", "smolvlm"}
"""Templates that refuse tool messages."""


def written(name: str, messages: list[dict[str, Any]], chat: Chat) -> list[str]:
    """The texts of the assistant's turns, without what ends them and white space."""
    plain = name.removesuffix("_training")
    tokenizer = tokenizer_of(plain)
    tokenizer.chat_template = (TRL / "chat_templates" / f"{name}.jinja").read_text()
    texts = [*ends_of(plain), OTHER_ENDS.get(plain, "")]
    ends = [tokenizer.convert_tokens_to_ids(text) for text in ends_of(plain)]
    after = tokenizer(after_a_turn(tokenizer_of(plain)), add_special_tokens=False).input_ids
    ends.sort(key=lambda end: end not in after)
    parts = split_turns(messages, chat, tokenizer, chat.opening(tokenizer), ends, "f:1")
    said = [tokenizer.decode(part.token_ids) for part in parts if part.is_written]
    return [
        re.sub(f"(?:{'|'.join(map(re.escape, filter(None, texts)))}|<\\|observation\\|>|<\\|end\\|>|\\s)+$", "", text)
        for text in said
    ]


@pytest.mark.parametrize("name", MARKED)
def test_the_assistants_turns_are_those_that_trl_marks(name: str) -> None:
    """Up to what the prompt holds of a turn already, and to what follows its end."""
    as_parts = name in ("idefics3", "llava_next", "smolvlm")
    talk = [
        {"role": role, "content": [{"type": "text", "text": text}] if as_parts else text}
        for role, text in (("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2"))
    ]
    ours, theirs = written(name, talk, Chat()), written(f"{name}_training", talk, Chat())
    assert len(ours) == len(theirs) == 2
    for own, marked, text in zip(ours, theirs, ("a1", "a2"), strict=True):
        assert text in own and marked.strip().endswith(own.strip()), (own, marked)


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in ("idefics3", "llava_next", "smolvlm")])
def test_white_space_at_the_end_of_a_turn_changes_nothing_behind_it(name: str) -> None:
    tokenizer, chat = tokenizer_of(name), Chat()
    ends = sorted(tokenizer.convert_tokens_to_ids(ends_of(name)), reverse=True)
    plain, spaced = (
        split_turns(
            [{"role": role, "content": text} for role, text in zip(ROLES, ("q1", said, "q2", "a2"), strict=True)],
            chat, tokenizer, chat.opening(tokenizer), ends, "f:1",
        )
        for said in ("a1", "a1 \n")
    )  # fmt: skip
    assert [part.token_ids for part in plain if not part.is_written] == [
        part.token_ids for part in spaced if not part.is_written
    ]
    assert all(sum(map(part.token_ids.count, ends)) == 1 for part in spaced if part.is_written)


@pytest.mark.parametrize("name", [name for name in MARKED if name not in ALTERNATING])
def test_a_turn_that_calls_a_tool_is_what_the_template_shows_or_refused(name: str) -> None:
    call = {"type": "function", "function": {"name": "calculate", "arguments": {"expression": "17*23"}}}
    talk = [
        {"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "calculate", "content": "391"}, {"role": "assistant", "content": "It is 391."},
    ]  # fmt: skip
    chat = Chat().with_tools(Calculator().tools)
    if name in UNSEEN_CALLS:
        with pytest.raises(BadRow, match="does not show the tool calls of the assistant's message 2"):
            written(name, talk, chat)
        return
    first, last = written(name, talk, chat)
    marked_first, marked_last = written(f"{name}_training", talk, chat)
    assert "17*23" in first and marked_first.strip().endswith(first.strip())
    assert last.endswith("It is 391.") and (marked_last.strip() in last or last.strip() in marked_last)


def test_a_template_that_marks_nothing_of_the_assistant_is_refused() -> None:
    tokenizer = tiny_vlm.byte_tokenizer(["<|im_start|>", "<|im_end|>"], CHATML, pad="<|im_end|>")
    tokenizer.chat_template = CHATML + "{% if false %}{% generation %}{% endgeneration %}{% endif %}"
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    with pytest.raises(BadRow, match="marks no token of the assistant's turns"):
        split_turns(talk, Chat(), tokenizer, "", [1], "f:1")
    with pytest.raises(BadRow, match="begins with a turn of the assistant"):
        split_turns([talk[1], *talk], Chat(), tokenizer, "", [1], "f:1")


def test_without_a_template_each_text_is_a_turn_that_ends() -> None:
    tokenizer = tiny_vlm.byte_tokenizer(["<|im_start|>", "<|im_end|>"], CHATML, pad="<|im_end|>")
    tokenizer.chat_template = None
    talk = [{"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "a"), ("user", "r"))]
    parts = split_turns([*talk, {"role": "assistant", "content": "b"}], Chat(), tokenizer, "", [1], "f:1")
    seen = [(tokenizer.decode(part.token_ids), part.is_written) for part in parts]
    assert seen == [("q\n", False), ("a<|im_end|>", True), ("\n\nr\n", False), ("b<|im_end|>", True)]


@pytest.mark.parametrize("is_marked", [False, True])
@pytest.mark.parametrize(
    ("weights", "seen"),
    [
        (({}, {}), [("q", False), ("a", True), ("r", False), ("b", True)]),
        (({"weight": 1.0}, {"train": True}), [("q", False), ("a", True), ("r", False), ("b", True)]),
        (({"weight": 0}, {}), [("q|a|r", False), ("b", True)]),
        (({"loss": False}, {}), [("q|a|r", False), ("b", True)]),
        (({}, {"trainable": False}), [("q", False), ("a", True)]),
        (({"train": False}, {"weight": 0}), "no turn is left to train on"),
        (({"weight": 0.5}, {}), "weight of message 2 is 0.5; give 1"),
    ],
)
def test_turns_that_the_data_leave_out_of_the_loss_are_read(
    is_marked: bool, weights: tuple[dict[str, Any], ...], seen: list[tuple[str, bool]] | str
) -> None:
    tokenizer = tiny_vlm.byte_tokenizer(["<|im_start|>", "<|im_end|>"], CHATML, pad="<|im_end|>")
    if is_marked:
        tokenizer.chat_template = (
            "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{% generation %}"
            "{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n"
            "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        )
    more = ({}, weights[0], {}, weights[1])
    talk = [{"role": role, "content": text} | w for role, text, w in zip(ROLES, "qarb", more, strict=True)]
    if isinstance(seen, str):
        with pytest.raises(BadRow, match=seen):
            split_turns(talk, Chat(), tokenizer, "", [1], "f:1")
        return
    parts = split_turns(talk, Chat(), tokenizer, "", [1], "f:1")
    texts = [(tokenizer.decode(part.token_ids), part.is_written) for part in parts]
    ends = re.compile(r"<\|im_end\|>(\n?<\|im_start\|>(user|assistant)\n)*|<\|im_start\|>(user|assistant)\n|\n")
    assert [(ends.sub("|", text).strip("|"), written) for text, written in texts] == seen


UNREAD_THOUGHTS = {"muse_glimmer"}


@pytest.mark.parametrize("name", TEMPLATES)
def test_thoughts_are_told_from_the_answer_in_every_template(name: str) -> None:
    assert bool(Chat().unread_thoughts(tokenizer_of(name))) == (name in UNREAD_THOUGHTS)
