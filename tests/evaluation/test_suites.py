"""Which questions a suite has, by name, by file, and by a suite file."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lit_rlvr.configs import config_folder
from lit_rlvr.errors import UserError
from lit_rlvr.evaluation.protocols import make_protocol, read_protocol
from lit_rlvr.evaluation.suites import Suite, find_suites
from lit_rlvr.sampling import Sampling

NAMES = sorted(path.stem for path in (config_folder() / "suites").glob("*.yaml"))
OPTIONS = {"evaluation": {"limit": 5}}


def one(asked: str, **options: Any) -> Suite:
    (suite,) = find_suites(asked, OPTIONS | options, {})
    return suite


@pytest.mark.parametrize("name", NAMES)
def test_shipped_suites_are_built(name: str) -> None:
    suite = one(name)
    assert suite.name == suite.data.name == name and suite.rewards
    assert suite.data.locations["test"] and suite.data.evaluation.limit == 5
    mine = one(f"{name}=mine.jsonl")
    assert mine.data.locations["test"] == "mine.jsonl" and type(mine.data) is type(suite.data)


@pytest.mark.slow
def test_suites_alone_know_all_rewards() -> None:
    """As in `lit-rlvr evaluate`, which imports nothing of the other commands."""
    suites = "find_suites(','.join(shipped_files('suites')), {}, {})"
    source = f"from lit_rlvr.evaluation.suites import *; print(*(s.name for s in {suites}))"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.split() == NAMES, done.stderr


ROWS: list[tuple[dict[str, Any], str, str]] = [
    ({"problem": "1+1?", "answer": "2"}, "TextMath", "MathAnswer"),
    ({"question": "1+1?", "answer": "#### 2"}, "TextMath", "MathAnswer"),
    ({"images": ["a.png"], "problem": "<image>?", "answer": "48"}, "Geometry", "Choice"),
    ({"image": "a.png", "question": "Normal?", "answer": "yes"}, "MedicalVQA", "Choice"),
    ({"question": "Sun?", "choices": ["a", "b"], "answer": 1, "subject": "x"}, "MultipleChoice", "Choice"),
    ({"db_id": "x", "question": "How many?", "query": "select 1"}, "TextToSQL", "SQLExecution"),
]


@pytest.mark.parametrize(("row", "data", "reward"), ROWS)
def test_a_file_is_told_by_its_columns(tmp_path: Path, row: dict[str, Any], data: str, reward: str) -> None:
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    path = tmp_path / "own.jsonl"
    path.write_text("broken\n" + json.dumps(row) + "\n")
    suite = one(str(path), reading={"max_bad_rows": 0.6})
    assert (suite.name, type(suite.data).__name__, type(suite.rewards[0]).__name__) == ("own", data, reward)
    if data != "TextToSQL":
        assert len(suite.data.load("test")) == 1


def test_the_example_in_the_message_is_a_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("odd rows.jsonl").write_text('{"q": "1+1?", "level": 3, "gold: a": "2"}\n')
    with pytest.raises(UserError, match=r"columns are q, level, gold: a; write mine.yaml") as error:
        one("mine=odd rows.jsonl")
    _, _, rest = str(error.value).partition("such as ")
    Path("mine.yaml").write_text(rest.partition(" and give --suite mine.yaml")[0])
    suite = one("mine.yaml")
    (sample,) = suite.data.load("test")
    assert (sample.prompt, sample.answer, type(suite.rewards[0]).__name__) == ("1+1?", "2", "MathAnswer")


def test_what_is_no_suite_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("odd.jsonl").write_text('{"a": 1}\n')
    Path("empty.jsonl").write_text("")
    Path("bad.yaml").write_text("data: {class_path: TextMath}\n")
    for asked, said in (
        ("maths500", "there is no suite 'maths500'; did you mean 'math500'"),
        ("odd.jsonl", "no known layout, its columns are a"),
        ("empty.jsonl", "no usable row"),
        ("none.jsonl", "no such file"),
        ("bad.yaml", "must hold `data` and `rewards`"),
        ("math500,math500=x.jsonl", "two suites are called math500"),
    ):
        with pytest.raises(UserError) as error:
            list(find_suites(asked, OPTIONS, {}))
        assert said in str(error.value) and "\n" not in str(error.value), str(error.value)


def test_a_system_prompt_replaces_the_suites_instruction() -> None:
    """Not both the boxed template and another instruction; a template that is given stays."""
    question = "What is 1+1?"
    for given, system, user in (
        ({}, None, "within \\boxed{}."),
        ({"system_prompt": "aapo-eval"}, "Therefore, the final answer is", question),
        ({"protocol": "aapo"}, "Therefore, the final answer is", question),
        ({"protocol": "aapo", "template": "boxed"}, "Therefore, the final answer is", "within \\boxed{}."),
        ({"protocol": "agrae"}, "Please reason step by step", question),
    ):
        (suite,) = find_suites("math500", {}, given)
        chat = suite.data.chat
        assert (chat.system_prompt is None) == (system is None) and (system or "") in (chat.system_text or "")
        assert chat.template_text.replace("{prompt}", question).endswith(user)
    (sql,) = find_suites("spider", {}, {"system_prompt": "Be brief."})
    (own,) = find_suites("spider", {}, {})
    assert sql.data.chat.template == own.data.chat.template, "a class's own form is no second instruction"


def test_the_protocols_are_the_papers() -> None:
    """A-GRAE C.2; AAPO C.3 and its released scripts; APMPO 5.1, without A-GRAE's system prompt for images."""
    agrae, aime = (make_protocol(name, {}, {"protocol": "agrae"}) for name in ("minerva", "aime25"))
    assert (agrae.samples, aime.samples, agrae.temperature, agrae.top_p, agrae.max_tokens) == (4, 16, 0.6, 0.95, 4096)
    assert read_protocol("agrae", "geometry3k")["system_prompt"] == "agrae-vision" and not agrae.greedy
    aapo = make_protocol("aime24", {}, {"protocol": "aapo"})
    assert (aapo.samples, aapo.greedy, aapo.prompts) == (1, False, {"system_prompt": "aapo-eval"})
    assert (aapo.temperature, aapo.top_p) == (0.6, 0.95)
    apmpo, small = (make_protocol(name, {}, {"protocol": "apmpo"}) for name in ("math500", "amc23"))
    assert (apmpo.samples, small.samples, apmpo.temperature, apmpo.prompts) == (1, 16, 0.6, {})
    for name in ("geometry3k", "huatuo"):  # A-GRAE's prompt comes with its protocol alone
        (own,), (theirs,) = (find_suites(name, {}, {"protocol": paper}) for paper in ("apmpo", "agrae"))
        assert own.data.chat.system_prompt is None and "within \\boxed{}" in own.data.chat.template_text
        assert "internal monologue" in theirs.data.chat.system_text and "boxed" not in theirs.data.chat.template_text


def test_the_nearest_setting_counts() -> None:
    """The suite's own, its own protocol's, the given one, the given protocol's, the default."""
    given = {"protocol": "agrae", "temperature": 0.9, "top_p": None}
    found = make_protocol("aime25", {"suite": "aime25", "protocol": "apmpo", "samples": 2}, given)
    assert (found.samples, found.temperature, found.top_p, found.max_tokens) == (2, 0.6, 1.0, 4096)
    found = make_protocol("aime25", {"suite": "aime25"}, given)
    assert (found.samples, found.temperature, found.top_p) == (16, 0.9, 0.95)
    default = make_protocol("aime25", {}, {})
    assert (default.samples, default.greedy, default.max_tokens) == (8, True, None)
    parts = default.parts(Sampling(max_tokens=99))
    assert {part: (s.temperature, s.max_tokens, n) for part, (s, n) in parts.items()} == {
        "sampled": (0.6, 99, 8),
        "greedy": (0.0, 99, 1),
    }


def test_unknown_settings_of_a_suite_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("{samples: 4, temprature: 1}")
    (tmp_path / "list.yaml").write_text("[1]")
    for item, said in (
        ({"suite": "math500", "sample": 4}, "--suite: unknown key 'sample'; did you mean 'samples'?"),
        ({"samples": 4}, "names no `suite`"),
        (
            {"suite": "math500", "samples": "many"},
            "--suite: math500: protocol.samples: give a whole number",
        ),
        ({"suite": "math500", "max_tokens": 0}, "protocol.max_tokens: 0 must lie in [1, inf)"),
        ({"suite": "math500", "temperature": -1}, "sampling.temperature"),
        ({"suite": "math500", "protocol": str(tmp_path / "bad.yaml")}, "unknown key 'temprature'; did you mean"),
        ({"suite": "math500", "protocol": str(tmp_path / "list.yaml")}, "a config is a mapping of keys to values"),
    ):
        with pytest.raises(UserError) as error:
            list(find_suites([item], OPTIONS, {}))
        assert said in str(error.value) and "\n" not in str(error.value), str(error.value)
