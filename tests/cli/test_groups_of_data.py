"""The groups of options of data sets and rollouts, as the command line takes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_rlvr.cli.error_lines import class_arguments, explain_parse_error
from lit_rlvr.cli.lightning_cli import ConfigCheck
from lit_rlvr.datamodules import TextToSQL

FIRST = """
model: {class_path: GRPO}
data: {class_path: TextToSQL, init_args: {train: x.jsonl, chat: {system_prompt: Think.}}}
rollout: {evaluation: {samples: 4}}
"""
SECOND = "{data: {init_args: {reading: {limit: 3}}}, rollout: {evaluation: {sampling: {temperature: 1.0}}}}"
Parse = Callable[..., Any]


@pytest.fixture
def parse(tmp_path: Path) -> Parse:
    """Parse the texts of config files, and then options."""

    def parsed(configs: list[str], *options: str) -> Any:
        files = []
        for number, text in enumerate(configs):
            files.append(f"--config={tmp_path / f'{number}.yaml'}")
            (tmp_path / f"{number}.yaml").write_text(text)
        return ConfigCheck().parser.parse_line(["fit", *files, *options]).fit

    return parsed


@pytest.mark.parametrize(
    ("options", "prefill", "most_bad"),
    [
        ((), "", 0.1),
        (("--data.init_args.chat.prefill", "SELECT", "--data.init_args.reading.max_bad_rows", "0.5"), "SELECT", 0.5),
        (("--data.chat.prefill", "SELECT", "--data.reading.max_bad_rows", "0.5"), "SELECT", 0.5),
    ],
)
def test_a_partial_group_keeps_what_the_class_and_earlier_files_set(
    parse: Parse, options: tuple[str, ...], prefill: str, most_bad: float
) -> None:
    config = parse([FIRST, SECOND], *options)
    chat, reading, evaluation = config.data.init_args.chat, config.data.init_args.reading, config.rollout.evaluation
    assert (chat.template, chat.system_prompt, chat.prefill) == ("sql", "Think.", prefill)
    assert (reading.max_prompt_tokens, reading.limit, reading.max_bad_rows) == (4096, 3, most_bad)
    assert (evaluation.samples, evaluation.sampling.temperature, evaluation.greedy) == (4, 1.0, False)


def test_another_class_has_its_own_defaults_there_and_back(parse: Parse) -> None:
    there = parse([FIRST, SECOND], "--data", "TextMath").data.init_args
    assert (there.chat.template, there.chat.system_prompt) == ("{prompt}", "Think.")
    assert (there.reading.max_prompt_tokens, there.reading.limit) == (512, 3)
    back = parse([FIRST, SECOND], "--data", "TextMath", "--data", "TextToSQL").data.init_args
    assert (back.chat.template, back.reading.max_prompt_tokens, back.reading.limit) == ("sql", 4096, 3)
    drawn = parse([FIRST, SECOND], "--data", "CellArea").data.init_args
    assert (drawn.reading.max_bad_rows, drawn.reading.limit) == (0.0, 3)


def test_further_validation_sets_have_groups_of_their_own(parse: Parse) -> None:
    other = "[{class_path: TextToSQL, init_args: {name: other, chat: {prefill: SELECT}}}]"
    (more,) = parse([FIRST], "--data.evaluation.also_validate", other).data.init_args.evaluation.also_validate
    assert (more.init_args.chat.prefill, more.init_args.chat.template) == ("SELECT", "sql")


@pytest.mark.parametrize(
    ("configs", "options", "said"),
    [
        ([], ("--data.chat.sytem_prompt", "x"), "data.chat: unknown key 'sytem_prompt'; did you mean 'chat.system_pro"),
        (
            ["data: {init_args: {reading: {limt: 3}}}"],
            (),
            "data.reading: unknown key 'limt'; did you mean 'reading.lim",
        ),
        (
            [],
            ("--rollout.replay.recrd", "1"),
            "unknown option '--rollout.replay.recrd'; did you mean '--rollout.replay",
        ),
        (
            ["rollout: {safeguards: {probe: 1}}"],
            (),
            "unknown key 'rollout.safeguards.probe'; did you mean 'rollout.saf",
        ),
        (["trainer: {val_check_interval: 3}"], (), "unknown key 'trainer.val_check_interval'; it would count rollouts"),
    ],
)
def test_an_unknown_key_of_a_group_is_refused(
    parse: Parse, configs: list[str], options: tuple[str, ...], said: str
) -> None:
    with pytest.raises(Exception) as error:  # the parser's
        parse([FIRST, *configs], *options)
    assert said in explain_parse_error(error.value)


def test_what_nobody_can_give_is_no_option() -> None:
    """An environment has the tools, so `chat.tools` is neither accepted early nor proposed."""
    known = class_arguments(TextToSQL)
    assert {"chat.template", "reading.limit"} <= known and "chat.tools" not in known
