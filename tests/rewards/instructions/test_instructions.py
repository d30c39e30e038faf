"""InstructionFollowing: every check against the papers' code, rows as published, and the papers' four accuracies."""

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from lit_rlvr.datamodules import PromptDataModule
from lit_rlvr.datamodules.reading.options import ReadingOptions
from lit_rlvr.errors import UserError
from lit_rlvr.evaluation.suites import find_suites
from lit_rlvr.rewards import InstructionFollowing
from lit_rlvr.rewards.instructions.ifbench import CORPORA
from lit_rlvr.rewards.instructions.reward import accuracies
from lit_rlvr.rewards.instructions.rows import CHECKS, Instruction, instructions_of
from lit_rlvr.rewards.instructions.verdict import check_instructions, loose_variants
from lit_rlvr.types import Completion, RewardResult, Sample

FROZEN = json.loads(Path(__file__).with_name("verdicts.json").read_text())
NO_COMMA = "punctuation:no_comma"
TITLE = "detectable_format:title"
KEYWORD = "keywords:existence"


def row(*instructions: tuple[str, dict[str, Any]], **columns: Any) -> Sample:
    names, arguments = zip(*instructions, strict=True)
    return Sample("r", "?", "", row={"instruction_id_list": list(names), "kwargs": list(arguments), **columns})


def judge(text: str, sample: Sample, reason: str = "stop", **options: Any) -> RewardResult:
    completion = Completion(text, (1,), reason)  # type: ignore[arg-type]
    (result,) = InstructionFollowing(**options).score([(completion, sample)])
    return result


def test_every_check_agrees_with_the_code_of_its_paper() -> None:
    verdicts = defaultdict(set)
    for name, arguments, number, strict, loose in FROZEN["cases"]:
        (followed,) = check_instructions(FROZEN["texts"][number], [Instruction(name, arguments)])
        assert (*followed,) == (strict, loose), (name, arguments, FROZEN["texts"][number])
        verdicts[name].add(strict)
    assert {name: found for name, found in verdicts.items() if len(found) < 2} == {}
    assert verdicts.keys() == CHECKS.keys() and len(CHECKS) == 25 + 29 + 25


def test_loose_variants_are_the_eight_of_the_paper() -> None:
    assert loose_variants("a*\nb\nc") == ["a*\nb\nc", "b\nc", "a*\nb", "b", "a\nb\nc", "b\nc", "a\nb", "b"]
    assert loose_variants("one") == ["one", "", "", "", "one", "", "", ""]


PADDED = {"keywords": None, "num_words": None, "relation": None}
FORMS: list[dict[str, Any]] = [
    {
        "prompt": "?",
        "key": 1,
        "instruction_id_list": [NO_COMMA, "length_constraints:number_words"],
        "kwargs": [PADDED, PADDED | {"num_words": 3.0, "relation": "at least"}],
    },
    {
        "messages": [{"role": "user", "content": "?"}],
        "dataset": ["ifeval"],
        "ground_truth": "[{'instruction_id': ['punctuation:no_comma', 'length_constraints:number_words'], "
        "'kwargs': [None, {'num_words': 3, 'relation': 'at least'}]}]",
    },
    {
        "messages": [{"role": "user", "content": "?"}],
        "dataset": "ifeval",
        "constraint_type": "Words",
        "ground_truth": json.dumps(
            {
                "func_name": "validate_word_constraint",
                "N": 3,
                "quantifier": "at least",
                "keyword_list": None,
                "end_phrase": None,
            }
        ),
    },
]


@pytest.mark.parametrize("columns", FORMS)
def test_published_rows_are_read(columns: dict[str, Any]) -> None:
    data = PromptDataModule(train=[columns], reading=ReadingOptions(answers="object"))
    data.use_environment(None, [reward := InstructionFollowing()])
    (sample,) = data.load("train")
    reward.check_reference(sample)
    assert judge("two words", sample).correct is False and judge("these are words", sample).correct is True


def test_numbers_that_arrow_made_floats_are_whole_again() -> None:
    sample = row(("keywords:keyword_specific_position", {"keyword": "sea", "n": 1.0, "m": 2.0, "letter": None}))
    assert instructions_of(sample)[0].arguments == {"keyword": "sea", "n": 1, "m": 2}
    assert judge("A sea.", sample).correct is True


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (row(("punctuation:no_coma", {})), "did you mean 'punctuation:no_comma'?"),
        (row((KEYWORD, {})), "keywords:existence has other arguments (missing a required argument: 'keywords')"),
        (row((NO_COMMA, {"keywords": ["a"]})), "got an unexpected keyword argument 'keywords'"),
        (row((KEYWORD, {"keywords": ["("]})), "cannot be checked with {'keywords': ['(']} ("),
        (row(("length_constraints:number_words", {"num_words": 3, "relation": "most"})), "the relation 'most' is"),
        (Sample("r", "?", "", row={"instruction_id_list": [NO_COMMA], "kwargs": []}), "1 instructions and kwargs of"),
        (Sample("r", "?", "42"), "r: no instructions in '42'; the forms are {instruction_id_list"),
        (Sample("r", "?", "", answer_object={"instruction_id": []}), "no list of instructions"),
    ],
)
def test_rows_without_readable_instructions_are_refused(sample: Sample, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        InstructionFollowing().check_reference(sample)


PALINDROMES = "level kayak racecar madam civic radar refer rotor tenet stats"


def test_ifbench_is_refused_without_its_package_or_data(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = row(("format:emoji", {}))
    monkeypatch.setattr("lit_rlvr.rewards.instructions.ifbench.is_installed", lambda module: False)
    with pytest.raises(UserError, match=r"--no-deps if-verifiable, and .* emoji immutabledict nltk syllapy$"):
        InstructionFollowing().check_reference(sample)
    monkeypatch.undo()
    pytest.importorskip("if_verifiable")
    monkeypatch.setattr("lit_rlvr.rewards.instructions.ifbench._has_data", lambda path: "punkt" not in path)
    with pytest.raises(UserError, match=r"punkt_tab are not there; python -m nltk.downloader punkt_tab$"):
        InstructionFollowing().check_reference(sample)
    monkeypatch.setattr("lit_rlvr.rewards.instructions.ifbench._has_data", lambda path: path.split("/")[1] in CORPORA)
    check = Instruction("words:palindrome", {}).find_check()  # needs none of the data
    assert not check("no such word") and check(PALINDROMES)
    with pytest.raises(UserError, match="is not of IFEval, IFTrain, Tulu 3 or IFBench"):
        InstructionFollowing().check_reference(row(("no:such", {})))


TWO = row((NO_COMMA, {}), (TITLE, {}))


def test_strict_loose_and_partial() -> None:
    followed, half, neither = "<<a>> b", "a b", "a, b"
    assert [judge(text, TWO).value for text in (followed, half, neither)] == [1, 0, 0]
    assert [judge(text, TWO, partial=True).value for text in (followed, half, neither)] == [1, 0.5, 0]
    framed = "Well, yes:\n<<a>> b"
    assert judge(framed, TWO).value == 0 and judge(framed, TWO, partial=True).value == 0.5
    result = judge(framed, TWO, loose=True)
    assert result == RewardResult(1.0, True, "ok", "", result.criteria)
    assert result.criteria == {
        f"strict 1. {NO_COMMA}": 0,
        f"loose 1. {NO_COMMA}": 1,
        f"strict 2. {TITLE}": 1,
        f"loose 2. {TITLE}": 1,
    }
    assert judge(half, TWO).detail == f"not followed: {TITLE}"


def test_only_the_answer_counts() -> None:
    comma = row((NO_COMMA, {}))
    assert judge("<think>a, b</think>\nc", comma).correct is True
    assert judge("<think>a b", comma).correct is False, "an empty answer follows nothing"
    assert judge("a b", comma, reason="length").correct is False
    assert judge("a b", comma, reason="length", truncated_is_wrong=False).correct is True


def test_a_pattern_that_never_ends_is_a_timeout() -> None:
    """It counts as following none in all four accuracies."""
    sample = row((KEYWORD, {"keywords": ["(a+)+$"]}), (NO_COMMA, {}))
    reward = InstructionFollowing(cpu_seconds=1.0, partial=True)
    (result,) = reward.score([(Completion("a" * 60 + "b", (1,), "stop"), sample)])
    assert (result.value, result.correct, result.status) == (0.0, False, "timeout")
    assert result.detail.endswith("it counts as following none") and set(result.criteria.values()) == {0.0}
    assert reward.metrics == {
        "instruction_following/prompt_strict": [0.0],
        "instruction_following/instruction_strict": [0.0, 0.0],
        "instruction_following/prompt_loose": [0.0],
        "instruction_following/instruction_loose": [0.0, 0.0],
    }
    assert set(reward.summarise([result.criteria]).values()) == {0.0}


def test_four_accuracies_as_the_papers_count() -> None:
    reward = InstructionFollowing(name="if")
    one = row((NO_COMMA, {}))
    texts = [("<<a>> b", TWO), ("Well, yes:\n<<a>> b", TWO), ("a, b", TWO), ("a", one)]
    results = reward.score([(Completion(text, (1,), "stop"), sample) for text, sample in texts])
    wanted = {"prompt_strict": 2 / 4, "instruction_strict": 4 / 7, "prompt_loose": 3 / 4, "instruction_loose": 5 / 7}
    assert accuracies([result.criteria for result in results]) == pytest.approx(wanted)
    logged = {name: sum(values) / len(values) for name, values in reward.metrics.items()}
    assert logged == pytest.approx({f"if/{name}": value for name, value in wanted.items()})
    assert accuracies([{}, {}]) == {}


def test_evaluate_reports_them(tmp_path: Path, lit_rlvr: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"key": 1, "prompt": "?"} | dict(TWO.row),
        {"key": 2, "prompt": "!", "instruction_id_list": [NO_COMMA], "kwargs": [{}]},
    ]
    Path("mine.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    given = [("1", "Well, yes:\n<<a>> b"), ("2", "a b")]
    Path("given.jsonl").write_text("".join(json.dumps({"id": i, "completion": text}) + "\n" for i, text in given))
    (suite,) = find_suites("mine.jsonl", {}, {})
    assert [type(reward).__name__ for reward in suite.rewards] == ["InstructionFollowing"]
    lit_rlvr("evaluate", "--suite", "ifeval=mine.jsonl", "--completions", "given.jsonl", "--out", "out", status=0)
    results = json.loads(Path("out/results.json").read_text())["ifeval"]
    assert results["pass@1"] == 0.5
    found = {
        name.partition("/")[2]: value for name, value in results.items() if name.startswith("instruction_following")
    }
    assert found == pytest.approx(
        {"prompt_strict": 0.5, "instruction_strict": 2 / 3, "prompt_loose": 1.0, "instruction_loose": 1.0}
    )
    assert "| instruction_following/prompt_loose | 1.000 | 1.000 |" in Path("out/results.md").read_text()
