"""Conversations and their parts in the forms that data sets hold them, and media that a model does not take."""

from __future__ import annotations

import base64
import copy
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny_environments import Dice
from tiny_vlms import write_clip
from transformers import AutoTokenizer

from lit_rlvr.datamodules import Geometry, MultipleChoice, PromptDataModule, TextMath
from lit_rlvr.datamodules.reading.cells import BadRow
from lit_rlvr.datamodules.reading.chat import Chat
from lit_rlvr.datamodules.reading.images import as_images
from lit_rlvr.datamodules.reading.rows import as_prompt, map_columns
from lit_rlvr.errors import UserError
from lit_rlvr.policy.loading import load_image_processor
from lit_rlvr.types import Sample

QWEN_LIKE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen2.5-VL's template without its default system prompt."""

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def text(words: str, **others: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **others}


def png(color: str = "red") -> bytes:
    file = BytesIO()
    Image.new("RGB", (28, 28), color).save(file, "PNG")
    return file.getvalue()


def seen(data: PromptDataModule, folder: Path, split: Any = "train") -> list[str]:
    """What a Qwen2.5-VL sees of each row, with one I for each image."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = QWEN_LIKE
    data.tokenizer, data.image_processor = tokenizer, load_image_processor(str(folder))
    shown = [data.render(sample) for sample in data.load(split)]
    return [
        line.replace("<|vision_start|><|image_pad|><|vision_end|>", "I")
        .removeprefix("<|im_start|>user\n")
        .removesuffix("<|im_end|>\n<|im_start|>assistant\n")
        for line in shown
    ]


# messages


MESSAGES = [{"role": "system", "content": "s"}, {"role": "user", "content": 'it\'s "q"\n?'}]


@pytest.mark.parametrize(
    "cell",
    [
        MESSAGES,
        tuple(MESSAGES),
        np.array(MESSAGES, dtype=object),
        {"messages": MESSAGES},
        {"messages": np.array(MESSAGES, dtype=object)},
        json.dumps(MESSAGES),
        json.dumps(MESSAGES, indent=2),
        json.dumps({"messages": MESSAGES}),
        str(MESSAGES),  # as pandas writes it
        [{"name": None, "tool_calls": None, **message} for message in MESSAGES],
        [{"tool_calls": [], **message} for message in MESSAGES],
    ],
)
def test_every_form_of_messages_is_read(cell: Any) -> None:
    assert as_prompt(cell) == MESSAGES


@pytest.mark.parametrize(
    "cell",
    [
        "[1, 2, 3] sorted is?",
        "[1, 2]",
        "[",
        "[{",
        '[{"a": 1}]',
        '{"role": 1',
        '["role"]',
        '[{"role": "user", "content": "q"}] is JSON. What is its length?',
        '{"name": "Ann", "age": 3}',
        '{"content": "x"}',
        '{"role": 1}',
        '{"role": x}',
        '[{"content": x}]',
        '{"messages": 3}',
    ],
)
def test_a_text_that_only_begins_like_messages_stays_text(cell: str) -> None:
    assert as_prompt(cell) == cell


def test_messages_as_broken_text_are_a_bad_row() -> None:
    printed = str(np.array(MESSAGES, dtype=object))  # pandas writes an array's items without commas
    with pytest.raises(BadRow, match="prompt: messages as text that is neither JSON nor a Python list"):
        as_prompt(printed)


@pytest.mark.parametrize("extra", [{}, {"content": None}, {"content": ""}])
def test_a_turn_that_only_calls_tools_has_empty_content(extra: dict[str, Any]) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [CALL], **extra}]
    assert as_prompt([*turns, {"role": "tool", "content": "1"}])[1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [CALL],
    }


def test_arguments_of_tool_calls_are_dicts_without_the_keys_of_other_tools() -> None:
    openai = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    padded = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "query": None}}}
    flat = {"name": "add", "arguments": {"a": 1}}
    for calls, wanted in (
        ([openai], [{**openai, "function": CALL["function"]}]),
        ([padded], [CALL]),
        ([flat], [flat]),
        (json.dumps([openai]), [{**openai, "function": CALL["function"]}]),
    ):
        turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": calls}]
        assert as_prompt(turns)[1]["tool_calls"] == wanted  # type: ignore[index]


@pytest.mark.parametrize(
    "message,reason",
    [
        ({"role": "human", "content": "q"}, "unknown role 'human'; the roles are system, developer, user, assistant,"),
        ({"role": None, "content": "q"}, "does not hold messages"),
        ({"role": 3, "content": "q"}, "unknown role 3"),
        ({"role": "tool", "content": None}, "neither text nor a list of parts"),
        ({"role": "assistant"}, "neither text nor a list of parts"),
        ({"role": "assistant", "content": None, "function_call": {"name": "f"}}, "`function_call`.*use `tool_calls`"),
        ({"role": "assistant", "tool_calls": "add(1)"}, "tool_calls: expected a list"),
        ({"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]}, "a call without the name"),
    ],
)
def test_messages_that_cannot_be_used_are_bad_rows(message: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        as_prompt([{"role": "user", "content": "hi"}, message])


def test_a_conversation_without_a_question_is_a_bad_row() -> None:
    for turns in ([MESSAGES[0]], [{"role": "assistant", "content": "4"}], []):
        with pytest.raises(BadRow, match="no user message with content"):
            as_prompt(turns)


# the assistant's turns at the end


def test_closing_turns_of_the_assistant_are_dropped_and_reported_once(jsonl: Any, caplog: Any) -> None:
    question, answer = {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}
    again = {"role": "user", "content": "2+2?"}
    rows = [[question, answer], [question, answer, again, {"role": "assistant", "content": "4"}, answer], [question]]
    data = PromptDataModule(train=jsonl([{"prompt": turns, "answer": "4"} for turns in rows]))
    assert [sample.prompt for sample in data.load("train")] == [[question], [question, answer, again], [question]]
    file = data.locations["train"]
    assert caplog.messages == [
        f"{file}: dropped the assistant's turns at the end of 2 of 3 prompts, because they hold the answer; a text "
        "that every answer starts with belongs into `prefill`"
    ]


def test_where_an_environment_speaks_first_closing_turns_stay(jsonl: Any) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    data = PromptDataModule(train=jsonl([{"prompt": turns, "answer": "4"}]))
    data.use_environment(Dice())
    assert data.load("train")[0].prompt == turns


# parts


@pytest.mark.parametrize(
    "part",
    [
        text("q", image=None),
        text("q", image=""),
        text("q", image={"bytes": None, "path": None}, image_url=None, video=None),
        {"text": "q"},
        {"text": "q", "image": None},
        {"type": "input_text", "text": "q"},
    ],
)
def test_text_parts_have_no_empty_keys_of_other_parts(part: dict[str, Any]) -> None:
    assert as_prompt(user(part)) == user(text("q"))


@pytest.mark.parametrize(
    "part,reason",
    [
        (
            {"type": "video", "video": "a.mp4", "fps": 1, "nframes": 4},
            "a part of type 'video' with fps, nframes; set data",
        ),
        ({"type": "audio", "audio": "a.wav"}, "a part of type 'audio': audio is not supported yet"),
        ({"type": "audio_url", "audio_url": "a.wav"}, "a part of type 'audio_url': audio is not"),
        ({"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}}, "a part of type 'input_audio': audio"),
        ({"type": "file", "file": {"file_id": "f"}}, "a part of type 'file': use text, image or video"),
        ({"type": "refusal", "refusal": "no"}, "a part of type 'refusal': use text, image or video"),
        ({"type": "tool_result", "content": "x"}, "a part of type 'tool_result'"),
        (text("q", image="a.png"), "a part of type 'text' that also holds 'image'"),
        (text("q", video="a.mp4"), "a part of type 'text' that also holds 'video'"),
        ({"type": "image", "image": "a.png", "text": "a cat"}, "a part of type 'image' that also holds text"),
        ("words", "neither text nor a list of parts"),
        ({}, "neither text nor a list of parts"),
    ],
)
def test_other_parts_are_bad_rows_that_name_them(part: Any, reason: str, jsonl: Any) -> None:
    with pytest.raises(UserError, match=f"train.jsonl:1: prompt: .*{reason}"):
        PromptDataModule(train=jsonl([{"prompt": user(part, text("q")), "answer": "A"}])).load("train")


def test_text_parts_are_one_text_for_a_model_without_images(chat_tokenizer: Any, plain_tokenizer: Any) -> None:
    sample = Sample("a", user(text("Given 3."), text("Double?")), "6")
    for tokenizer, wanted in (
        (chat_tokenizer, "<bos><|im_start|>user\nGiven 3.\nDouble?!<|im_end|>\n<|im_start|>assistant\n"),
        (plain_tokenizer, "<bos>Given 3.\nDouble?!\n"),
    ):
        data = PromptDataModule(train="unused", chat=Chat(template="{prompt}!"))
        data.tokenizer = tokenizer
        assert data.render(sample) == wanted


def test_text_rows_of_a_parquet_file_with_image_rows_keep_their_question(tmp_path: Path, vlm_folder: Path) -> None:
    image = {"bytes": png(), "path": None}
    rows = [
        {"prompt": user({"type": "image", "text": None, "image": image}, text("how red?", image=None)), "answer": "a"},
        {"prompt": user(text("2+3?", image=None)), "answer": "5"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    data = PromptDataModule(train=str(tmp_path / "train.parquet"))
    assert seen(data, vlm_folder) == ["Ihow red?", "2+3?"]
    assert [len(sample.images) for sample in data.load("train")] == [1, 0]


DATA_URL = f"data:image/png;base64,{base64.b64encode(png()).decode()}"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}},
        {"type": "image_url", "image_url": "a.png"},
        {"type": "image_url", "image_url": {"url": "FILE"}},
        {"type": "image_url", "image_url": {"url": DATA_URL}},
        {"type": "input_image", "image_url": DATA_URL},
        {"type": "image", "image": "a.png"},
        {"type": "image", "image": "FILE"},
        {"type": "image", "image": {"bytes": base64.b64encode(png()).decode(), "path": None}},
        {"type": "image", "url": "a.png"},
        {"type": "image", "path": "a.png"},
        {"type": "image", "base64": DATA_URL.partition(",")[2]},
        {"type": "image", "data": DATA_URL.partition(",")[2], "mimeType": "image/png"},
        {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/png", "data": DATA_URL.partition(",")[2]},
        },
        {"type": "image", "source": {"type": "url", "url": "a.png"}},
        {"image": "a.png"},
        {"image": "a.png", "text": None},
    ],
)
def test_the_image_of_a_part_is_seen_in_its_place(part: Any, jsonl: Any, tmp_path: Path, vlm_folder: Path) -> None:
    (tmp_path / "a b.png").write_bytes(png())
    (tmp_path / "a.png").write_bytes(png())
    part = json.loads(json.dumps(part).replace('"FILE"', json.dumps(f"file://{tmp_path}/a%20b.png")))
    data = PromptDataModule(train=jsonl([{"prompt": user(text("see "), part, text(" here")), "answer": "A"}]))
    assert seen(data, vlm_folder) == ["see I here"]
    (sample,) = data.load("train")
    assert sample.images[0].getpixel((3, 3)) == (255, 0, 0)


@pytest.mark.parametrize("as_cell", [list, np.array, json.dumps, str, lambda names: {"url": names[0]}])
def test_every_form_of_an_image_column_is_read(as_cell: Any) -> None:
    assert as_images(as_cell(["a.png"])) in (("a.png",), ({"url": "a.png"},))
    assert as_images(as_cell(["a.png", "b.png"])) in (("a.png", "b.png"), ({"url": "a.png"},))


def test_images_of_parts_and_of_the_column_fill_their_places_in_order(
    jsonl: Any, tmp_path: Path, vlm_folder: Path
) -> None:
    for color in ("red", "lime", "blue"):
        (tmp_path / f"{color}.png").write_bytes(png(color))
    lime = {"type": "image_url", "image_url": {"url": "lime.png"}}
    turns = [
        {"role": "user", "content": [text("<image> then "), lime]},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "and <image>"},
    ]
    repeated = user({"type": "image", "image": "red.png"}, text("?"))
    data = PromptDataModule(
        train=jsonl(
            [
                {"prompt": turns, "images": ["red.png", "blue.png"], "answer": "A"},
                {"prompt": repeated, "images": ["red.png"], "answer": "A"},
            ]
        )
    )
    first, second = seen(data, vlm_folder)
    assert (first.startswith("I then I<|im_end|>"), first.endswith("and I"), second) == (True, True, "I?")
    samples = data.load("train")
    assert [image.getpixel((3, 3)) for image in samples[0].images] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert len(samples[1].images) == 1


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": user({"type": "image_url", "image_url": {"url": "a.png"}}, text("q"))},
        {"prompt": user({"type": "video", "video": "a.mp4"}, text("q"))},
        {"prompt": "<video>What happens?", "videos": ["a.mp4"]},
    ],
)
def test_a_text_model_refuses_images_and_videos(
    row: dict[str, Any], tiny_model_folder: Path, jsonl: Any, tmp_path: Path
) -> None:
    from lit_rlvr.algorithms import GRPO

    (tmp_path / "a.png").write_bytes(png())
    write_clip(tmp_path / "a.mp4")
    data = PromptDataModule(train=jsonl([row | {"answer": "A"}] * 2))
    data.use_model(GRPO(model=str(tiny_model_folder)))
    with pytest.raises(UserError, match="takes no images or videos, and the data or the environment has some"):
        data.setup("fit")


# columns


@pytest.mark.parametrize(
    "cells,reason",
    [
        ({"audio": {"array": [0.0, 0.1], "sampling_rate": 16000}}, "audio: audio is not supported yet"),
        ({"audios": ["a.wav"]}, "audios: audio is not supported yet"),
        ({"image_1": {"bytes": png(), "path": None}}, "image_1: images that are not read; map the column"),
        ({"picture": "pics/1.png"}, "picture: images that are not read"),
        ({"decoded_image": Image.new("RGB", (4, 4))}, "decoded_image: images that are not read"),
        ({"scan": png()}, "scan: images that are not read"),
        ({"image_url": "https://x.org/a"}, "image_url: images that are not read"),
    ],
)
def test_media_that_would_not_reach_the_model_are_bad_rows(cells: dict[str, Any], reason: str) -> None:
    row = {"prompt": "<video>\nWhat happens?", "answer": "A", **cells}
    with pytest.raises(BadRow, match=reason):
        map_columns(row, {}, "1", "f:1")
    with pytest.raises(BadRow, match=reason):
        TextMath(train="unused").sample(row, 0, "f:1")
    with pytest.raises(BadRow, match=reason):
        MultipleChoice(train="unused").sample(row | {"question": "q", "choices": ["x", "y"]}, 0, "f:1")


@pytest.mark.parametrize("cells", [{"videos": ["a.mp4"]}, {"video": "a.mp4"}, {"video": {"bytes": b"x", "path": None}}])
def test_videos_that_would_not_reach_the_model_are_bad_rows(cells: dict[str, Any]) -> None:
    row = {"images": ["a.png"], "problem": "<image>q", "answer": "1", **cells}
    for data in (Geometry(train="unused"), TextMath(train="unused")):
        with pytest.raises(BadRow, match=r"videos?: videos that are not read"):
            data.sample(row, 0, "f:1")
    with pytest.raises(BadRow, match=r"videos?: videos that are not read"):
        map_columns({"prompt": "q", "clips": "b.mp4", **row, **cells}, {"video": "clips"}, "1", "f:1")


@pytest.mark.parametrize(
    "cells",
    [
        {"video": None, "videos": [], "audio": "", "audios": [None], "image_2": {"bytes": None, "path": None}},
        {"video": False, "audio": float("nan"), "videos": 0},
        {"image_caption": "a red square", "url": "https://x.org/a.png", "imagery": 3},
    ],
)
def test_columns_without_media_are_no_media(cells: dict[str, Any]) -> None:
    row = {"prompt": "What does the <video> tag do?", "answer": "A", **cells}
    assert map_columns(row, {}, "1", "f:1").prompt == row["prompt"]
    assert map_columns({**row, "video": "spoken words"}, {"prompt": "video"}, "1", "f:1").prompt == "spoken words"


# what a chat template shows


def templated(tokenizer: Any, template: str) -> Any:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    return tokenizer


ONLY_USERS = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|im_start|>{{ m['content'] }}<|im_end|>{% endif %}"
    "{% if m['role'] == 'assistant' %}{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
)
QUESTION = {"role": "user", "content": "q"}


@pytest.mark.parametrize(
    "messages,what",
    [
        ([{"role": "system", "content": "s!"}, QUESTION], "messages of the role 'system'"),
        ([QUESTION, {"role": "assistant", "content": "x"}, {"role": "tool", "content": "7"}], "the role 'tool'"),
        ([QUESTION, {"role": "assistant", "content": "", "tool_calls": [CALL]}, QUESTION], "tool calls"),
    ],
)
def test_messages_that_the_template_drops_are_refused(chat_tokenizer: Any, messages: Any, what: str) -> None:
    with pytest.raises(UserError, match=f"f:3: the model's chat template does not show .*{what}; use another template"):
        Chat().text(messages, templated(chat_tokenizer, ONLY_USERS), "f:3")


def test_a_system_message_that_only_switches_the_template_is_shown(chat_tokenizer: Any) -> None:
    switch = "{% if messages[0]['content'] == '/no_think' %}[quiet]{% endif %}" + ONLY_USERS
    messages = [{"role": "system", "content": "/no_think"}, QUESTION]
    assert Chat().text(messages, templated(chat_tokenizer, switch)).startswith("[quiet]")


def test_the_role_developer_needs_a_template_that_knows_it(chat_tokenizer: Any) -> None:
    messages = [{"role": "developer", "content": "d"}, QUESTION]
    with pytest.raises(UserError, match="f:3: the model's chat template does not know the role 'developer'; use 'sys"):
        Chat().text(messages, chat_tokenizer, "f:3")
    knows = "{# developer #}" + chat_tokenizer.chat_template
    assert "<|im_start|>developer\nd" in Chat().text(messages, templated(chat_tokenizer, knows))


def test_a_template_that_takes_arguments_as_text_gets_text(chat_tokenizer: Any) -> None:
    deepseek = (
        "{% for m in messages %}{{ m['content'] }}{% for call in m['tool_calls'] or [] %}"
        "{{ call['function']['name'] + '(' + call['function']['arguments'] + ')' }}{% endfor %}{% endfor %}"
    )
    prompt = as_prompt([QUESTION, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "7"}])
    assert Chat().text(prompt, templated(chat_tokenizer, deepseek)) == 'qadd({"a": 1})7'  # type: ignore[arg-type]
    assert prompt[1]["tool_calls"] == [CALL]  # type: ignore[index]
    dicts = deepseek.replace("call['function']['arguments']", "(call['function']['arguments'] | tojson)")
    assert Chat().text(prompt, templated(chat_tokenizer, dicts)) == 'qadd({"a": 1})7'  # type: ignore[arg-type]
