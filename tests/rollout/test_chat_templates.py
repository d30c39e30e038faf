"""The tokens between turns by the chat templates of many models, which TRL ships, compared with TRL's own."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Callable
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import CHATML

from lit_rlvr.datamodules.reading.assistant_turns import split_turns
from lit_rlvr.datamodules.reading.between_turns import BetweenTurns
from lit_rlvr.datamodules.reading.cells import BadRow
from lit_rlvr.datamodules.reading.chat import Chat
from lit_rlvr.datamodules.reading.conversations import as_conversation
from lit_rlvr.environments.built_in import Calculator
from lit_rlvr.errors import UserError
from lit_rlvr.policy import tiny as tiny_vlm
from lit_rlvr.policy.loading import after_a_turn
from lit_rlvr.rollout.episodes import check_tool_calls
from lit_rlvr.types import ToolResult

Talk = list[dict[str, Any]]
SPEC = importlib.util.find_spec("trl")
assert SPEC is not None and SPEC.origin is not None, "`make develop` installs it"
TRL = Path(SPEC.origin).parent
TEMPLATES = sorted(path.stem for path in (TRL / "chat_templates").glob("*.jinja") if "_training" not in path.stem)
ENDS = {
    "cohere": ["<|END_OF_TURN_TOKEN|>"], "deepseek": ["<\uff5cend▁of▁sentence\uff5c>"],
    "gemma4_v2": ["<eos>", "<turn|>"], "gemma4": ["<eos>", "<turn|>", "<|tool_response>"],
    "diffusion_gemma": ["<eos>", "<turn|>", "<|tool_response>"], "gemma": ["<eos>", "<end_of_turn>"],
    "glm": ["<|endoftext|>", "<|user|>", "<|observation|>"], "gptoss": ["<|return|>", "<|call|>"],
    "llama": ["<|eot_id|>", "<|eom_id|>"], "muse": ["<|eot|>"], "phi": ["<|end|>"],
    "idefics3": ["<end_of_utterance>"], "llava_next": ["</s>"], "smolvlm": ["<end_of_utterance>"], "": ["<|im_end|>"],
}  # fmt: skip
"""Beginning of a template's name -> end tokens of these models: first the tokenizer's, last what ends a tool call."""
DESCRIBED = {
    "cohere": "user", "cohere2": "user", "deepseek_r1_distill": "tool", "gemma": "user", "gemma3": "user",
    "llama3": "tool", "phi3": "user", "phi3_5": "user", "qwen2_5_vl": "tool",
}  # fmt: skip
"""Templates without tool calls, for which the system message describes the tools -> the role of their results."""
REFUSED = {
    "idefics3": "does not show messages that follow",
    "llava_next": "does not show messages that follow",
    "smolvlm": "does not show messages that follow",
    "lfm2": "form that cannot be read (<|im_end|>)",
}
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
        processing_class=tokenizer,
        _tokenizer=tokenizer,
        _is_vlm=False,
        chat_template_kwargs={},
        chat_template=training.read_text() if training.exists() else None,
    )
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


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_end_of_a_turn_is_found_in_every_template(name: str) -> None:
    ends = [*ends_of(name), ""][name == "glm4moe" and -1 :]  # it ends a turn with the next role alone
    assert any(end in after_a_turn(tokenizer_of(name)) for end in ends)


@pytest.mark.parametrize("name", REFUSED)
def test_templates_whose_calls_or_results_cannot_be_read_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=re.escape(REFUSED[name])) as refused:
        between_of(name)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("name", "opening"), [("qwen3", ""), ("qwen3_5_think", "<think>\n"), ("qwen3_5_nothink", "")])
def test_a_turn_begins_in_thoughts_where_the_prompt_opens_them(name: str, opening: str) -> None:
    assert between_of(name)[0].opening == opening


MARKED = sorted(path.stem.removesuffix("_training") for path in (TRL / "chat_templates").glob("*_training.jinja"))
"""Templates of which TRL has a version that marks the assistant's turns."""
ROLES = ("user", "assistant", "user", "assistant")
AS_PARTS = ("idefics3", "llava_next", "smolvlm")
"""Templates that take lists of parts only."""
CALL = {"type": "function", "function": {"name": "calculate", "arguments": {"expression": "17*23"}}}
RESULT = {"role": "tool", "name": "calculate", "content": "391"}
QUESTION, ANSWER = {"role": "user", "content": "q1"}, {"role": "assistant", "content": "a1"}
THOUGHTFUL = ANSWER | {"reasoning_content": "t1"}
TALKS: dict[str, Talk] = {
    "answers": [QUESTION, ANSWER, QUESTION, ANSWER],
    "thoughts": [QUESTION, THOUGHTFUL, QUESTION, THOUGHTFUL],
    "call": [QUESTION, {"role": "assistant", "content": "", "tool_calls": [CALL]}, RESULT, ANSWER],
    "text and call": [QUESTION, ANSWER | {"tool_calls": [CALL]}, RESULT, ANSWER],
}


def tokenizer_and_ends(name: str) -> tuple[Any, list[int]]:
    """The model's tokenizer and its end tokens, the template's first."""
    tokenizer = tokenizer_of(name)
    after = tokenizer(after_a_turn(tokenizer), add_special_tokens=False).input_ids
    return tokenizer, sorted(tokenizer.convert_tokens_to_ids(ends_of(name)), key=lambda end: end not in after)


def prepared(name: str, talk: Talk) -> tuple[Any, list[Any] | None]:
    """The messages of a conversation in the form that the template takes, and its tools."""
    messages: Any = as_conversation(talk)
    if name in AS_PARTS:
        messages = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in messages]
    return messages, [*Calculator().tools] if any(message["role"] == "tool" for message in talk) else None


def turns_of(name: str, talk: Talk, trains_empty_thoughts: bool = True) -> list[list[tuple[str, str]]]:
    """What the model reads and writes, alternately, in each sequence of a conversation."""
    (tokenizer, ends), (messages, tools) = tokenizer_and_ends(name), prepared(name, talk)
    chat = Chat().with_tools(tools or ())
    found = split_turns(messages, chat, tokenizer, chat.opening(tokenizer), ends, "f:1", trains_empty_thoughts)
    assert all([part.is_written for part in parts] == [False, True] * (len(parts) // 2) for parts in found.sequences)
    texts = [[tokenizer.decode(part.token_ids) for part in parts] for parts in found.sequences]
    return [list(zip(parts[::2], parts[1::2], strict=True)) for parts in texts]


def marked_by_trl(name: str, talk: Talk) -> tuple[str, list[str]]:
    """The text of a conversation by TRL's training template, and the runs of tokens that its mask has."""
    tokenizer, (messages, tools) = tokenizer_of(name), prepared(name, talk)
    tokenizer.chat_template = (TRL / "chat_templates" / f"{name}_training.jinja").read_text()
    found = tokenizer.apply_chat_template(
        messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True, tokenize=True
    )
    runs = groupby(zip(found["input_ids"], found["assistant_masks"], strict=True), key=itemgetter(1))
    return tokenizer.decode(found["input_ids"]), [tokenizer.decode([t for t, _ in run]) for kept, run in runs if kept]


def is_marked(run: str, read: str, written: str) -> bool:
    """True if TRL marks these tokens, and beyond them only what the prompt holds already, or white space behind."""
    before, _, after = run.rpartition(written)
    return written in run and read.endswith(before) and not after.strip()


DIFFERENT = {
    ("deepseek", "answers"): "the prompt opens thoughts, which TRL leaves out",
    ("deepseek", "thoughts"): "TRL drops the thoughts that the prompt opens",
    ("diffusion_gemma", "call"): "TRL leaves out <|tool_response>, by which the model ends a call",
    ("diffusion_gemma", "text and call"): "TRL shows the text of the call behind its result",
    ("diffusion_gemma", "thoughts"): "TRL drops the thoughts of earlier turns",
    ("glm4moe", "thoughts"): "TRL drops the thoughts of earlier turns",
    ("gptoss", "answers"): "TRL ends earlier turns with <|end|>, which is no end token of the model",
    ("gptoss", "text and call"): "TRL drops the text of a call, as if the answer stood there already",
    ("gptoss", "thoughts"): "TRL ends earlier turns with <|end|>, and drops their thoughts",
    ("nemotron", "answers"): "the prompt has a line break behind <think> that TRL leaves out",
    ("nemotron", "call"): "the prompt has a line break behind <think> that TRL leaves out",
    ("nemotron", "text and call"): "the prompt has a line break behind <think> that TRL leaves out",
    ("nemotron", "thoughts"): "TRL drops the thoughts of earlier turns",
    ("phi3", "answers"): "TRL trains on a second <|end|>, which the model never reaches",
}
"""Beginning of a template's name, conversation -> why TRL's marks are others."""
UNSEEN_CALLS = {
    "cohere", "cohere2", "deepseek_r1_distill", "deepseekv3", "gemma", "gemma3", "idefics3", "lfm2", "llama3",
    "llava_next", "phi3", "phi3_5", "qwen2_5_vl", "smolvlm",
}  # fmt: skip
"""Templates that leave tool calls out, or refuse tool messages."""
UNSEEN_THOUGHTS = UNSEEN_CALLS - {"deepseek_r1_distill", "deepseekv3"} | {
    "lfm2_v2",
    "qwen2_5",
    "qwen3_5_nothink",
    "qwen3_instruct_2507",
    "qwen3_vl",
}
UNSEEN = {"call": UNSEEN_CALLS, "text and call": UNSEEN_CALLS | {"muse_glimmer"}, "thoughts": UNSEEN_THOUGHTS}


@pytest.mark.parametrize("kind", TALKS)
@pytest.mark.parametrize("name", MARKED)
def test_the_assistants_turns_are_those_that_trl_marks(name: str, kind: str) -> None:
    """Token for token, and so is the whole conversation wherever it is one sequence."""
    if name in UNSEEN.get(kind, ()):
        with pytest.raises((BadRow, UserError), match=r"does not show|refuses this conversation|ends the thoughts"):
            turns_of(name, TALKS[kind])
        return
    sequences = turns_of(name, TALKS[kind])
    whole, runs = marked_by_trl(name, TALKS[kind])
    turns = [turn for turns in sequences for turn in turns]
    same = len(runs) == len(turns) and all(is_marked(run, *turn) for run, turn in zip(runs, turns, strict=True))
    assert same != any(name.startswith(start) and kind == other for start, other in DIFFERENT), (runs, turns)
    if same and len(sequences) == 1:
        assert "".join(read + written for read, written in turns) == whole.rstrip()


@pytest.mark.parametrize(
    ("name", "talk", "ends"),
    [
        ("glm4moe", "answers", ["a1<|user|>", "a1<|user|>"]),
        ("glm4moe", "call", ["</tool_call><|observation|>", "a1<|user|>"]),
        ("gptoss", "answers", ["<|channel|>final<|message|>a1<|return|>"] * 2),
        ("gptoss", "text and call", ["<|call|>", "<|channel|>final<|message|>a1<|return|>"]),
        ("diffusion_gemma", "call", ["<tool_call|><|tool_response>", "a1<turn|>"]),
    ],
)
def test_each_turn_ends_once_and_as_the_model_ends_it(name: str, talk: str, ends: list[str]) -> None:
    turns = [turn for turns in turns_of(name, TALKS[talk]) for turn in turns]
    assert all(written.endswith(end) for (_, written), end in zip(turns, ends, strict=True))
    assert all(sum(map(written.count, ends_of(name))) == 1 for _, written in turns)
    assert not any(read.startswith(("<|end|>", "<|user|>")) or "<|endoftext|>" in read for read, _ in turns[1:])


def test_a_turn_is_trained_after_what_the_template_then_shows_of_earlier_ones() -> None:
    (first,), (second,) = turns_of("qwen3", TALKS["thoughts"])
    assert first[1] == second[1] == "<think>\nt1\n</think>\n\na1<|im_end|>"
    assert second[0].startswith(first[0] + "a1<|im_end|>\n") and "t1" not in second[0]
    ((one, two),) = turns_of("qwen3_8", TALKS["thoughts"])
    assert one[1] == two[1] == "t1\n</think>\n\na1<|im_end|>" and one[0].endswith("<think>\n"), "3.8 keeps thoughts"


@pytest.mark.parametrize("name", ["gemma4", "gemma4_v3", "gemma4_v4", "gemma4_v5"])
def test_gemmas_text_next_to_a_call_stands_once_in_each_sequence(name: str) -> None:
    sequences = turns_of(name, [QUESTION, ANSWER | {"content": "Let me see.", "tool_calls": [CALL]}, RESULT, ANSWER])
    assert len(sequences) == 2
    assert ["".join(map("".join, turns)).count("Let me see.") for turns in sequences] == [1, 1]


@pytest.mark.parametrize(
    ("name", "talk", "said"),
    [
        ("llama3_1", TALKS["text and call"], "the text of the assistant's message 2 next to its tool calls"),
        ("llama3_1", TALKS["thoughts"], "the thoughts of the assistant's message 2"),
        ("phi3", TALKS["call"], "the tool calls of the assistant's message 2"),
        ("qwen3_5_nothink", TALKS["thoughts"], "ends the thoughts of the assistant's message 2 before they begin"),
    ],
)
def test_what_a_template_drops_of_a_turn_is_refused(name: str, talk: Talk, said: str) -> None:
    with pytest.raises(BadRow, match=said):
        turns_of(name, talk)


@pytest.mark.parametrize("name", [*(name for name in MARKED if name not in UNSEEN_THOUGHTS), "gemma4_v5"])
def test_thoughts_in_a_text_are_those_of_their_own_key(name: str) -> None:
    text = ANSWER | {"content": "<think>\nt1\n</think>\n\na1"}
    written, wanted = (turns_of(name, talk)[-1][-1][1] for talk in ([QUESTION, text] * 2, TALKS["thoughts"]))
    assert written == wanted and "t1" in written


@pytest.mark.parametrize(
    "name", ["qwen3", "qwen3_training", "qwen3_5_think", "glm4moe", "nemotron_3_nano", "deepseek_r1_distill"]
)
def test_empty_thoughts_are_trained_only_on_demand(name: str) -> None:
    talk = [QUESTION, ANSWER | {"content": "<think>\n\n</think>\n\na1"}]
    (((read, written),),) = turns_of(name, talk, trains_empty_thoughts=False)
    assert written.startswith("a1") and re.search(r"<think>\s*</think>\s*$", read)
    ((trained,),) = turns_of(name, talk)
    assert "".join(trained) == read + written and "</think>" in trained[1]
    kept = turns_of(name, [QUESTION, THOUGHTFUL], trains_empty_thoughts=False)
    assert kept == turns_of(name, [QUESTION, THOUGHTFUL]) and "t1" in kept[0][0][1]


@pytest.mark.parametrize("name", ["gemma4", "diffusion_gemma"])
def test_a_turn_that_ends_behind_its_call_is_followed_by_the_next_turns_header(name: str) -> None:
    between, tokenizer, _ = between_of(name)
    result = 'response:calculate{value:<|"|>391<|"|>}<tool_response|>'
    seen = {
        last: tokenizer.decode(
            between.tokens("", tokenizer.convert_tokens_to_ids(last), 1000, (), RESULTS[:1]).token_ids
        )
        for last in ("<|tool_response>", "<turn|>")
    }
    assert seen == {"<|tool_response>": result, "<turn|>": f"<|tool_response>{result}<|turn>model\n"}


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in ("idefics3", "llava_next", "smolvlm")])
def test_white_space_at_the_end_of_a_turn_changes_nothing_behind_it(name: str) -> None:
    tokenizer, chat = tokenizer_of(name), Chat()
    ends = sorted(tokenizer.convert_tokens_to_ids(ends_of(name)), reverse=True)
    plain, spaced = (
        split_turns(
            [{"role": role, "content": text} for role, text in zip(ROLES, ("q1", said, "q2", "a2"), strict=True)],
            chat,
            tokenizer,
            chat.opening(tokenizer),
            ends,
            "f:1",
        ).sequences
        for said in ("a1", "a1 \n")
    )
    if len(plain) == len(spaced) == 1:
        assert [part.token_ids for part in plain[0][::2]] == [part.token_ids for part in spaced[0][::2]]
    assert all(sum(map(part.token_ids.count, ends)) == 1 for parts in spaced for part in parts[1::2])


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
    talk.append({"role": "assistant", "content": "b"})
    (parts,) = split_turns(talk, Chat(), tokenizer, "", [1], "f:1").sequences
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
    (parts,) = split_turns(talk, Chat(), tokenizer, "", [1], "f:1").sequences
    texts = [(tokenizer.decode(part.token_ids), part.is_written) for part in parts]
    ends = re.compile(r"<\|im_end\|>(\n?<\|im_start\|>(user|assistant)\n)*|<\|im_start\|>(user|assistant)\n|\n")
    assert [(ends.sub("|", text).strip("|"), written) for text, written in texts] == seen


UNREAD_THOUGHTS = {"muse_glimmer"}


@pytest.mark.parametrize("name", TEMPLATES)
def test_thoughts_are_told_from_the_answer_in_every_template(name: str) -> None:
    assert bool(Chat().unread_thoughts(tokenizer_of(name))) == (name in UNREAD_THOUGHTS)
