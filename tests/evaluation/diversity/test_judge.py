"""The judge: what it is asked, how its replies are read, and a server that misbehaves in every way."""

import logging
import pickle
from typing import Any

import pytest
from judge_server import Answer, JudgeServer, completion, serve

from lit_rlvr.errors import UserError
from lit_rlvr.evaluation.diversity import JudgeScore, measure_diversity
from lit_rlvr.evaluation.diversity.judge import JUDGE_PROMPT, parse_score

pytest.importorskip("openai")
SOON = {"retry-after-ms": "1"}
KEY = "sk-4711-secret"


def score(server: JudgeServer, *names: str, **options: Any) -> dict[str, float]:
    """What is measured on one group per name; a group's solutions tell the server which it is."""
    judge = JudgeScore(server.url, "judge", **options)
    return measure_diversity([[f"<{name}> first", f"<{name}> second"] for name in names], [judge])


def name_of(message: str) -> str:
    return message.split("<", 1)[1].split(">", 1)[0]


def test_the_mean_score_and_what_is_asked() -> None:
    with serve(lambda message, _: {"a": "0", "b": "3", "c": "2"}[name_of(message)]) as server:
        found = score(server, "a", "b", "c", request={"temperature": 0, "max_tokens": 4})
    assert found == {
        "judge_score": pytest.approx(5 / 3), "judge_score/prompts": 3,
        "judge_score/unparsed": 0, "judge_score/failed": 0,
    }  # fmt: skip
    asked = next(request for _, request in server.requests if name_of(request["messages"][0]["content"]) == "a")
    assert asked == {
        "model": "judge", "temperature": 0, "max_tokens": 4,
        "messages": [
            {"role": "user", "content": f"{JUDGE_PROMPT}\n\nSolution 1:\n<a> first\n\nSolution 2:\n<a> second"},
        ],
    }  # fmt: skip
    assert "a single integer score from 0 to 3" in JUDGE_PROMPT


def test_the_judge_sees_correct_solutions_only() -> None:
    with serve(lambda message, _: str(message.count("Solution "))) as server:
        judge = JudgeScore(server.url, "judge", prompt="Rate.")
        groups, correct = [["a", "b", "c"], ["d", "e"], ["f", "g"]], [[1, 0, 1], [1, 0], [0, 0]]
        found = measure_diversity(groups, [judge], [[bool(c) for c in row] for row in correct])
        assert (found["judge_score"], found["judge_score/prompts"]) == (2, 1)
        assert server.requests[0][1]["messages"][0]["content"] == "Rate.\n\nSolution 1:\na\n\nSolution 2:\nc"
        assert measure_diversity(groups, [judge])["judge_score"] == pytest.approx(7 / 3), "else all"


def test_rate_limits_and_server_errors_are_asked_again() -> None:
    def respond(message: str, attempt: int) -> Answer | str:
        return [Answer("{}", 429, SOON), Answer("oops", 500, SOON), Answer("", 503, SOON), "3"][attempt - 1]

    with serve(respond) as server:
        assert score(server, "a", "b", retries=3)["judge_score"] == 3
        assert set(server.attempts.values()) == {4}


def test_garbage_is_counted_and_said(caplog: pytest.LogCaptureFixture) -> None:
    bodies = ["<html>busy</html>", "{", "2", "null", "[]", "{}", '{"choices": []}', '{"choices": [{"message": 2}]}']
    bodies += [completion(None), completion("I give these 2 solutions a three."), completion("4"), completion("")]
    plain = Answer("2", headers={"Content-Type": "text/plain"})

    def respond(message: str, _: int) -> Answer | str:
        name = name_of(message)
        return "2" if name == "good" else plain if name == "plain" else Answer(bodies[int(name)])

    with serve(respond) as server, caplog.at_level(logging.WARNING, "lit_rlvr"):
        found = score(server, "good", "plain", *map(str, range(len(bodies))))
        assert len(server.requests) == len(bodies) + 2, "asked once each"
    assert (found["judge_score"], found["judge_score/prompts"]) == (2, 1)
    assert (found["judge_score/unparsed"], found["judge_score/failed"]) == (len(bodies) + 1, 0)
    assert "judge_score: 13 of 14 replies have no score, first: " in caplog.text


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("0", 0), (" 3\n", 3), ("2.", 2), ("2.0", 2), ("**1**", 1), ("Score: 2", 2), ("**Score:** 3", 3), ("[1]", 1),
        ('"2"', 2), ("<think>0 or 3?\nhm</think>\n\n1", 1),
        ("", None), ("4", None), ("-1", None), ("1.5", None), ("12", None), ("2/3", None), ("0 1", None),
        ("two", None), ("Score:", None), ("The score is 2 because of 3 ways", None), ("<think>3", None),
    ],
)  # fmt: skip
def test_scores_are_read_from_replies(reply: str, value: float | None) -> None:
    assert parse_score(reply) == value


def test_the_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another")

    def respond(message: str, _: int) -> Answer | str:
        echo = f'{{"error": {{"message": "what is {KEY}?"}}}}'
        return "1" if name_of(message) == "good" else Answer(echo, int(name_of(message)))

    with serve(respond) as server, caplog.at_level(logging.DEBUG):
        judge = JudgeScore(server.url, "judge", api_key_env="MY_KEY")
        judge.update([["<good>", "<good>"], ["<400>", "<400>"], ["<200>", "<200>"]])
        assert all(headers["authorization"] == f"Bearer {KEY}" for headers, _ in server.requests)
        for status in ("401", "403", "404"):
            with pytest.raises(UserError, match=f"HTTP {status} to model 'judge'") as error:
                score(server, status, api_key_env="MY_KEY")
            assert KEY not in str(error.value) and error.value.__suppress_context__
        score(server, "good")
        assert server.requests[-1][0]["authorization"] == "Bearer no-key", "no other service's key"
    assert caplog.text.count("what is [key]?") == 2 and KEY not in caplog.text
    assert KEY.encode() not in pickle.dumps(judge) and KEY not in repr(vars(judge))


def test_a_wrong_address_and_wrong_options_are_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_THERE", raising=False)
    with serve(lambda *_: "1") as server:
        url = server.url
        with pytest.raises(UserError, match="HTTP 404"):
            score(JudgeServer(server.respond, url.removesuffix("/v1")), "a")
    with pytest.raises(UserError, match=f"{url} cannot be reached"):
        score(JudgeServer(lambda *_: "1", url), "a", retries=0)
    for options, said in (
        ({"api_key_env": "NOT_THERE"}, "environment variable NOT_THERE is not set"),
        ({"concurrency": 0}, r"JudgeScore\.concurrency: 0"), ({"retries": -1}, r"JudgeScore\.retries: -1"),
        ({"timeout": 0}, r"JudgeScore\.timeout: 0"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            JudgeScore(url, "judge", **options)
    with pytest.raises(UserError, match="must begin with http"):
        JudgeScore("api.openai.com/v1", "judge")
