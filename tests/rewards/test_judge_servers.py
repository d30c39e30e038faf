"""Judges on servers as they are: options of requests, the question at the start, answers that cannot be read, usage,
spending, and files that are not theirs."""

from __future__ import annotations

import json
import logging
import re
import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stub_judge import Raw, StubJudge

from lit_rlvr.errors import UserError
from lit_rlvr.rewards import PairwiseJudge, PointwiseJudge, RewardModelServer, RubricJudge
from lit_rlvr.rewards.base import reaches
from lit_rlvr.types import Completion, Sample

SAMPLE = Sample("a", "Which organ makes insulin?", "pancreas", source="set.jsonl:3")
SORRY = {"content": "Sorry, I cannot say."}


def paired(*texts: str) -> list[Any]:
    return [(Completion(text, (1, 2), "stop"), SAMPLE) for text in texts]


def seven(text: str, fields: dict[str, list[Any]]) -> Any:
    return 7


def test_an_answer_that_cannot_be_read_is_asked_for_again_and_never_kept(tmp_path: Path) -> None:
    file = str(tmp_path / "answers.sqlite")
    with StubJudge(seven) as stub:
        server = stub.server(answers=file, max_concurrent=1, temperature=0.5)
        judge = PointwiseJudge(server=server)
        stub.faults = [SORRY, None, SORRY, SORRY, SORRY]
        first, second = judge.score(paired("one", "two"))
        assert (first.value, first.status, second.status) == (0.7, "ok", "error")
        assert "the judge's answer cannot be read" in second.detail and stub.calls == 2 + 3
        assert judge.metrics["pointwise_judge/asked_again"] == [1.0, 1.0]
        assert judge.metrics["pointwise_judge/unreadable"] == [0.0, 1.0]
        assert len({body["seed"] for body in stub.bodies}) == 5
        reminded = ["could not be read" in body["messages"][-1]["content"] for body in stub.bodies]
        assert reminded == [False, True, False, True, True]
        resumed = PointwiseJudge(server=server)
        assert [result.value for result in resumed.score(paired("one", "two"))] == [0.7, 0.7]
        assert stub.calls == 6, "the one that was read is kept, the other one is asked anew"
        stub.faults = [SORRY]
        once = PointwiseJudge(server={**server, "max_unreadable_retries": 0})
        assert once.score(paired("three"))[0].status == "error" and stub.calls == 7


def test_an_answer_kept_by_an_earlier_version_that_cannot_be_read_is_asked_for_anew(tmp_path: Path) -> None:
    file = tmp_path / "answers.sqlite"
    with StubJudge(seven) as stub:
        PointwiseJudge(server=stub.server(answers=str(file))).score(paired("one"))
        with sqlite3.connect(file) as table:
            table.execute("UPDATE answers SET text = 'sorry'")
        judge = PointwiseJudge(server=stub.server(answers=str(file)))
        assert judge.score(paired("one"))[0].value == 0.7 and stub.calls == 2
        with sqlite3.connect(file) as table:
            assert [text for (text,) in table.execute("SELECT text FROM answers")] != ["sorry"]


@pytest.mark.parametrize(
    ("fault", "retries", "line"),
    [
        (Raw("<html><body>Bad gateway</body></html>", content_type="text/html"), 0, "sends a page and no answer"),
        (Raw('{"error": {"message": "overloaded"}}'), 0, "sends an error as an answer: 'overloaded'"),
        (Raw("[1, 2]"), 0, r"sends no answer but \[1, 2\]"),
        (Raw("12"), 0, "sends no answer but 12"),
        (Raw("null"), 0, "sends no answer but"),
        (Raw('{"choices": "\\ud800"}'), 0, "sends an answer without choices"),
        (Raw("[" * 100_000), 0, r"sends no JSON but .\[\["),
        ({"content": "", "finish_reason": "length", "reasoning_content": "hm"}, 0, "cut off in its thoughts; raise"),
        ({"content": None, "finish_reason": "content_filter"}, 0, "filter has stopped it"),
        ({"content": None, "refusal": "no"}, 0, "the judge refuses: 'no'"),
        ({"content": 12}, 0, "cannot be read"),
        ({"content": "\ud800"}, 0, "cannot be read"),
        ("drips", 0, "no whole answer within server.timeout=0.7 s, .* lower server.max_concurrent"),
        (Raw('{"error": "busy"}'), 1, ""),
        ("drips", 1, ""),
        ({"content": '{"score_1": 7, "reason": "\ud800"}'}, 0, ""),
        ({"content": [{"type": "text", "text": '{"score_1": 7}'}]}, 0, ""),
        ({"usage": {"prompt_tokens": 10**20, "completion_tokens": None}}, 0, ""),
    ],
)
def test_what_a_server_sends_is_read_or_named(tmp_path: Path, fault: Any, retries: int, line: str) -> None:
    with StubJudge(seven) as stub:
        server = stub.server(
            timeout=0.7, max_retries=retries, max_unreadable_retries=0, answers=str(tmp_path / "answers")
        )
        stub.faults = [fault]
        started = time.monotonic()
        (result,) = PointwiseJudge(server=server).score(paired("one"))
        assert time.monotonic() - started < 5
        again = PointwiseJudge(server=server).score(paired("one"))[0]
    assert result.status == ("error" if line else "ok"), result.detail
    assert re.search(line, result.detail), result.detail
    assert again.value == 0.7


def test_requests_are_as_the_options_say() -> None:
    with StubJudge(seven) as stub:
        server = stub.server(
            temperature=None,
            token_limit="max_tokens",
            structured=False,
            max_tokens=99,
            extra_body={"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "low"},
            extra_headers={"X-Team": "blue"},
        )
        judge = PointwiseJudge(server=server)
        judge.connect()
        assert judge.score(paired("one"))[0].value == 0.7
        default = PointwiseJudge(server=stub.server())
        default.connect()
    assert [{*body} for body in stub.bodies] == [
        *[{"model", "messages", "max_tokens", "chat_template_kwargs", "reasoning_effort"}] * 2,
        {"model", "messages", "max_completion_tokens", "temperature", "response_format"},
    ]
    assert stub.bodies[0]["chat_template_kwargs"] == {"enable_thinking": False} and stub.bodies[0]["max_tokens"] == 99
    assert [headers.get("x-team") for headers in stub.headers] == ["blue", "blue", None]


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("temperature", "'temperature' is set by lit-rlvr; use temperature"),
        ("stream", "'stream' is set by lit-rlvr; leave it out"),
        ("max_tokens", "use max_tokens, with token_limit: max_tokens"),
    ],
)
def test_an_entry_that_has_an_option_is_refused(key: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        PointwiseJudge(server={"base_url": "http://127.0.0.1:9/v1", "model": "none", "extra_body": {key: 1}})


def test_the_question_at_the_start_is_a_real_one() -> None:
    with StubJudge(seven) as stub:
        rubric = {"names the organ": 1.0, "is polite": 1.0}
        for judge in (
            PointwiseJudge(server=stub.server(temperature=0.5)),
            RubricJudge(server=stub.server(), rubric=rubric),
            RubricJudge(server=stub.server()),
            PairwiseJudge(stub.server()),
        ):
            judge.connect()
        pointwise, criteria, _, pairwise = stub.bodies
        assert {message["role"] for message in pointwise["messages"]} == {"system", "user"}
        assert {"seed", "temperature", "response_format"} <= pointwise.keys()
        assert "score_2: is polite" in criteria["messages"][0]["content"]
        assert "better" in json.dumps(pairwise["response_format"])
        stub.every = SORRY
        with pytest.raises(UserError, match=r"cannot be read: .*asked 3 times\..*help: a higher server\.max_tokens"):
            PointwiseJudge(server=stub.server()).connect()
        with pytest.raises(UserError, match=r"asked 3 times\..*help: server\.structured: true, a higher server\.max_"):
            PointwiseJudge(server=stub.server(structured=False)).connect()
        stub.every = {"content": "", "finish_reason": "length", "reasoning_content": "hm"}
        with pytest.raises(UserError, match=r"raise server\.max_tokens, .*else may help: another judge$") as error:
            PointwiseJudge(server=stub.server()).connect()
        assert str(error.value).count("server.max_tokens") == 1
        stub.every = Raw('{"error": {"message": "no temperature"}}', status=400)
        with pytest.raises(UserError, match=r"no temperature.*`server\.temperature: null`, `server\.token_limit: max_"):
            PointwiseJudge(server=stub.server()).connect()
        stub.every = None
        RewardModelServer(stub.server()).connect()


def test_usage_that_is_missing_counts_as_nothing_or_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    with StubJudge(seven) as stub, caplog.at_level(logging.WARNING, "lit_rlvr"):
        stub.every = {"usage": None}
        judge = PointwiseJudge(server=stub.server())
        judge.connect()
        assert judge.score(paired("one", "two"))[1].value == 0.7
        assert judge.client.spent() == {"calls": 3, "tokens": 0, "cost": 0}
        assert caplog.text.count("does not say how many tokens a call takes (`usage`)") == 1
        for option in ({"max_total_tokens": 100}, {"prompt_price": 1.0}, {"completion_price": 1.0}):
            with pytest.raises(
                UserError, match=rf"judge\.server\.{next(iter(option))}: .*does not say how many tokens"
            ):
                PointwiseJudge(server=stub.server(**option)).connect()


def test_each_judge_counts_its_own_calls_and_the_question_at_the_start_once(tmp_path: Path) -> None:
    with StubJudge(seven) as stub:
        judges = [
            PointwiseJudge(server=stub.server(max_calls=limit, max_concurrent=1), name=name)
            for name, limit in (("one", 4), ("two", 100))
        ]
        for judge in judges:
            judge.connect()
            judge.begin_run(tmp_path)
            judge.begin_run(tmp_path)
        assert [judge.client.spent()["calls"] for judge in judges] == [1, 1]
        judges[0].score(paired("a", "b"))
        judges[1].score(paired("c", "d", "e"))
        assert [judge.client.spent()["calls"] for judge in judges] == [3, 4]
        with pytest.raises(UserError, match=r"max_calls: the budget is used up \(4 of 4\)"):
            judges[0].score(paired("f", "g"))
        assert stub.calls == 4 + 4
        resumed = PointwiseJudge(server=stub.server(max_calls=4), name="one")
        resumed.begin_run(tmp_path)
        with pytest.raises(UserError, match=r"max_calls: the budget is used up \(4 of 4\)"):
            resumed.connect()
        assert stub.calls == 8


@pytest.mark.parametrize("table", ["answers (question TEXT, text TEXT)", "patients (name TEXT)", "spent (key TEXT)"])
def test_a_file_with_other_tables_is_refused_before_anything_is_written(tmp_path: Path, table: str) -> None:
    file = tmp_path / "mine?.sqlite"
    with sqlite3.connect(file) as database:
        database.execute(f"CREATE TABLE {table}")
    before = file.read_bytes()
    name = table.partition(" ")[0]
    with pytest.raises(UserError, match=rf"has the table '{name}'; nothing was written into it, name another file"):
        PointwiseJudge(server={"base_url": "http://127.0.0.1:9/v1", "model": "none", "answers": str(file)})
    assert file.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == [file.name]


CODE = (
    "<div><b>5</b></div>", "List<String> x; a[INDEX]", "vector<int>", "x[I]", "Map<String, List<Integer>> m", "a <| b",
    "[ERROR] <p class='x'>", "x[~mask]", "<T extends Comparable<T>>", "if (a<b && c>d) a[N] = 1;",
)  # fmt: skip
TOKENS = (
    "<|im_start|>", "<|channel>", "<channel|>", "<\uff5cUser\uff5c>", "</s>", "<s>", "<bos>", "<start_of_turn>", 
    "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "<<SYS>>", "<</SYS>>", "<extra_id_1>", "<seed:eos>", "]~b]", "[e~[",
    "\u25c1think\u25b7", "<end_of_utterance>", "<image>",
)  # fmt: skip


@pytest.mark.parametrize("text", [*CODE, *TOKENS])
def test_code_reaches_the_judge_unchanged_and_special_tokens_do_not(text: str) -> None:
    with StubJudge(seven) as stub:
        PointwiseJudge(server=stub.server()).score(paired(f"an answer {text} ends"))
    shown = stub.bodies[0]["messages"][-1]["content"]
    assert (f"an answer {text} ends" in shown) is (text in CODE)
    assert (text in shown) is (text in CODE)


def test_empty_answers_lose_comparisons_without_a_call() -> None:
    group = paired("one", "two", "", "<think>three</think>", "one")
    with StubJudge(lambda text, fields: {"better": "A"}) as stub:
        results = PairwiseJudge(stub.server()).score(group)
    assert [result.value for result in results] == pytest.approx([3 / 4, 3 / 4, 0.125, 0.125, 3 / 4])
    assert stub.calls == 2, "equal ones are compared once with the other one"


def test_a_value_at_the_threshold_is_right_whatever_rounding_does() -> None:
    rubric = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}
    with StubJudge(lambda text, fields: {"score_1": 1, "score_2": 1, "score_3": 0, "score_4": 1}) as stub:
        judge = RubricJudge(server=stub.server(), rubric=rubric, threshold=0.7)
        low = RubricJudge(server=stub.server(), rubric=rubric, threshold=0.701)
        (reached,), (missed,) = judge.score(paired("one")), low.score(paired("one"))
    assert (reached.correct, missed.correct) == (True, False)
    assert [reaches(0.1 + 0.2 + 0.3, 0.6), reaches(0.6, 0.1 + 0.2 + 0.3), reaches(0.599, 0.6)] == [True, True, False]


def test_the_judge_sees_what_the_model_was_told() -> None:
    told = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which organ? Use one word."})
    sample = replace(SAMPLE, conversation=told)
    pairs = [(Completion(text, (1,), "stop"), sample) for text in ("one", "two")]
    with StubJudge(lambda text, fields: dict.fromkeys(fields, "tie" if "better" in fields else 1)) as stub:
        for judge in (PointwiseJudge(server=stub.server()), PairwiseJudge(stub.server())):
            judge.score(pairs)
        assert all("Be brief." in body["messages"][-1]["content"] for body in stub.bodies)
        assert all("Use one word." in body["messages"][-1]["content"] for body in stub.bodies)
        stub.bodies.clear()
        RewardModelServer(stub.server()).score(pairs[:1])
        assert stub.bodies[0]["messages"] == [*told, {"role": "assistant", "content": "one"}]


def test_a_judge_says_once_that_it_sees_no_images(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "lit_rlvr"):
        judge = PointwiseJudge(server={"base_url": "http://127.0.0.1:9/v1", "model": "none", "max_pixels": 0})
        judge.check_reference(SAMPLE)
        assert not caplog.text
        for number in (4, 5):
            judge.check_reference(replace(SAMPLE, images=("a.png",), source=f"set.jsonl:{number}"))
    assert caplog.text.count("the judge sees no images and no videos") == 1 and "set.jsonl:4" in caplog.text
