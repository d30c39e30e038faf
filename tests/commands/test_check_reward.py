"""`lit-rlvr check` of a reward: it finds out what a bad reward pays or misses, by kind, and nothing of a good one."""

from __future__ import annotations

import json
import logging
import math
import re
import unicodedata
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from stub_judge import StubJudge
from tiny_runs import CLI

from lit_rlvr.commands.check.checkup import GOLD, Checkup, Rate, check_reward, read_golds, texts_of, written
from lit_rlvr.commands.check.gold import may_answer, read_gold
from lit_rlvr.commands.check.rewrites import REWRITES
from lit_rlvr.commands.check.sets import read_set
from lit_rlvr.errors import UserError
from lit_rlvr.rewards import (
    Boxes,
    Choice,
    CodeTests,
    MathAnswer,
    OpenAnswer,
    PairwiseJudge,
    PointwiseJudge,
    Reward,
    SQLExecution,
)
from lit_rlvr.types import Completion, Sample

LONG = 1e6
NUMBERS = ["7", "-3", "0.5", "12500", "2.75", "41", "1,234"]
ROOT = Path(__file__).parents[2]


def rows(*answers: str, **fields: Any) -> list[Sample]:
    return [Sample(f"row-{k}", f"Question {k} of {k + 50}?", answer, **fields) for k, answer in enumerate(answers)]


def errors(found: Checkup, keeps: bool) -> set[str]:
    return {name for name, kind in found.kinds.items() if kind.keeps is keeps and kind.rate.errors}


# ---- rewards, bad and good ---------------------------------------------------------------------------------------


class Boxed(Reward):
    """The base of the rewards here."""

    def gold_completion(self, sample: Sample) -> str:
        return f"\\boxed{{{sample.answer}}}"


class AnyNumber(Boxed):
    """Pays whatever has a digit."""

    def __call__(self, completion: Completion, sample: Sample) -> bool:
        return any(map(str.isdigit, completion.text))


class Exact(Boxed):
    """Reads the last box after the thoughts as one number, in all forms that the check-up writes."""

    forms = (r"\\d?frac\{(\d+)\}\{(\d+)\}",)

    def __call__(self, completion: Completion, sample: Sample) -> bool:
        boxes = re.findall(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}", completion.text.rpartition("</think>")[2])
        if len(set(boxes)) > 1 and " or " in completion.text:
            return False
        return bool(boxes) and self.value(boxes[-1]) == self.value(sample.answer) is not None

    def value(self, text: str) -> Fraction | None:
        text = unicodedata.normalize("NFKC", text).strip().replace("\N{MINUS SIGN}", "-").strip("$")
        text = "".join(str(unicodedata.digit(c)) if c.isdigit() else c for c in text)
        text = re.sub(r"\{,\}|\\,|,", "", re.sub(r"^x = |^\+", "", text))
        text = re.sub(r"^\\(?:text|mathbf)\{(.*)\}$", r"\1", text)
        if power := re.fullmatch(r"(-?[\d.]+) \\times 10\^\{(\d+)\}", text):
            return Fraction(power[1]) * 10 ** int(power[2])
        sign, text = (-1, text[1:]) if text[:1] == "-" else (1, text)
        for form in self.forms:
            if found := re.fullmatch(form, text):
                return Fraction(sign * int(found[1]), int(found[2]))
        return sign * Fraction(text) if re.fullmatch(r"\d+(?:\.\d+)?", text) else None


class NoFractions(Exact):
    """Misses fractions."""

    forms = ()


def test_a_good_reward_is_clean() -> None:
    found = check_reward(Exact(), rows(*NUMBERS), LONG)
    assert errors(found, True) | errors(found, False) == set() and not found.failures
    assert (found.rows, found.right_texts.texts > 150, found.wrong_texts.texts > 250) == (7, True, True)


def test_a_reward_that_pays_any_number_is_found_out() -> None:
    found = check_reward(AnyNumber(), rows(*NUMBERS), LONG)
    assert errors(found, True) == set()
    wrong = errors(found, False)
    assert {"next number", "another sign", "ten times", "very long", "all at once", "answer only in the thought",
            "short text: constant", "short text: number of the prompt",
            "short text: boxes with 0 to 20"} <= wrong  # fmt: skip
    assert not {"empty", "only space", "no answer", "empty box", "short text: filler"} & wrong
    assert found.kinds["next number"].rate.value == 1 and found.wrong_texts.value > 0.5
    assert found.paid_short_texts()[0][1].value == 1


def test_a_reward_that_misses_fractions_is_found_out() -> None:
    found = check_reward(NoFractions(), rows("0.5", "2.75", "-0.125", "8"), LONG)
    assert errors(found, True) == {"as a fraction"} and errors(found, False) == set()
    kind = found.kinds["as a fraction"]
    assert (kind.rate.errors, kind.rate.texts) == (3, 3)
    assert {"0.5": "\\boxed{\\frac{1}{2}}"}.items() <= {e["reference"]: e["text"] for e in kind.examples}.items()


def test_a_gold_answer_that_is_not_paid_counts_once_by_kind() -> None:
    found = check_reward(NoFractions(), rows("1/2", "8"), LONG)
    assert (found.gold.errors, found.gold.texts) == (1, 2)
    assert errors(found, True) == {GOLD} and found.right_texts.errors >= 20


class Half(Boxed):
    """Reports no `correct`: -1, or 2 for the reference."""

    def __call__(self, completion: Completion, sample: Sample) -> float:
        return 2.0 if completion.text.strip().endswith(self.gold_completion(sample)) else -1.0


class Always(Boxed):
    """Pays everything."""

    def __call__(self, completion: Completion, sample: Sample) -> float:
        return 1.0


class Broken(Boxed):
    """Fails on what has no box, and does not judge what has two."""

    def __call__(self, completion: Completion, sample: Sample) -> float | None:
        count = completion.text.count("boxed")
        return None if count > 1 else 1.0 / count


def test_without_correct_the_value_of_the_gold_completion_decides() -> None:
    found = check_reward(Half(), rows("7", "18"), LONG)
    assert GOLD not in errors(found, True) and "prose after" in errors(found, True)
    assert errors(found, False) <= {"answer taken back", "every box at once"}
    always = check_reward(Always(), rows("7", "18"), LONG)
    assert always.right_texts.errors == 0 and always.wrong_texts.value == 1


def test_a_judge_is_asked_no_more_than_is_said_first(caplog: pytest.LogCaptureFixture) -> None:
    """Against all other texts of its row, the comparisons alone would be 30,000 for 4 rows."""

    def right(text: str, fields: dict[str, list[Any]]) -> Any:
        shown = re.findall(r"\[answer[\w ]* \w{16}\]\n(.*?)\n\[end", text, re.DOTALL)
        good = [bool(re.search(r"\b(7|41)\b", answer)) for answer in shown]
        if "better" not in fields:
            return 10 * good[0]
        return {"better": "tie" if good[0] == good[1] else "A" if good[0] else "B"}

    with StubJudge(right) as stub, caplog.at_level(logging.INFO, "lit_rlvr"):
        for judge in (PairwiseJudge(stub.server()), PointwiseJudge(server=stub.server())):
            stub.calls = 0
            found = check_reward(judge, rows("7", "41"), LONG)
            said = re.findall(r"asks its judge at most (\d+) questions about 2 rows", caplog.text)
            assert found.gold.value == 0 and found.wrong_texts.texts > 50
            assert 0.3 * int(said[-1]) < stub.calls <= int(said[-1]) < 700, (said, stub.calls)


def test_a_failed_check_is_counted_and_an_unjudged_text_is_not() -> None:
    found = check_reward(Broken(), rows("7"), LONG)
    assert sum(found.failures.values()) > 3 and all("ZeroDivisionError" in detail for detail in found.failures)
    assert "the same box twice" not in found.kinds and "empty" not in found.kinds


def test_a_check_that_always_fails_ends_the_check_up() -> None:
    class Fails(Exact):
        def __call__(self, completion: Completion, sample: Sample) -> float:
            raise LookupError("no judge")

    with pytest.raises(UserError, match=r"check: reward '.*' failed on every text; first: .*LookupError: no judge"):
        check_reward(Fails(), rows("7"), LONG)


def test_the_time_ends_it_after_a_batch_of_rows() -> None:
    found = check_reward(Exact(), rows(*map(str, range(30))), 0.0)
    assert (found.rows, found.rows_wanted) == (8, 30)


class Tagged(Reward):
    """Reads tags, and has no `gold_completion`."""

    def __call__(self, completion: Completion, sample: Sample) -> bool:
        return f"<answer>{sample.answer}</answer>" in completion.text


def test_a_reward_without_gold_completion_gets_the_form_that_it_reads() -> None:
    found = check_reward(Tagged(), rows("7", "18"), LONG)
    assert found.form == "<answer> tags" and found.gold.errors == 0


# ---- answers and rewrites ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("7", "number"), ("-1,234.5", "number"), ("$7$", "number"), ("1/2", "fraction"), (r"-\frac12", "fraction"),
        (r"50\%", "percent"), ("5 cm", "quantity"), (r"12\text{ km}", "quantity"), (r"\{1, 2\}", "set"),
        ("{1,2}", "set"), ("(1,2)", "tuple"), (r"\left(1,2,3\right)", "tuple"), ("[1,2)", "interval"),
        (r"(-\infty, 3]", "interval"), ("[2,3]", "other"), ("1, 2", "list"), ("(1,2),(3,4)", "other"),
        (r"3\sqrt{2}", "expression"), ("x = 3", "other"), ("Paris", "text"), (r"\text{left lung}", "text"),
        ("xy", "other"),
        (r"\$32,\!348", "other"), (r"15\mbox{ cm}^2", "other"), ("3:45", "other"), ("C++", "other"),
        ("No", "yes_no"), ("B", "choice"), ("(b)", "choice"),
    ],
)  # fmt: skip
def test_kinds_of_answers(answer: str, kind: str) -> None:
    assert read_gold(rows(answer)[0], str).kind == kind


def test_rows_with_a_database_or_tests_are_programs() -> None:
    assert read_gold(rows("SELECT 1;", row={"databases": ["a.sqlite"]})[0], str).answer == "SELECT 1"
    assert read_gold(rows("2 tests", row={"tests": ["[]"], "solution": "print(1)"})[0], str).answer == "print(1)"
    assert read_gold(rows("liver", options=("lung", "Liver"))[0], str).answer == "B"


@pytest.mark.parametrize(
    ("answer", "name", "text"),
    [
        ("7", "trailing zero", "7.0"), ("0.5", "trailing zero", "0.50"), ("12500", "thousands comma", "12,500"),
        ("-0.5", "as a fraction", r"-\frac{1}{2}"),
        ("7", "full width", "\uff17"), ("3/8", "as a decimal", "0.375"),
        ("1/3", "as a decimal", None), ("50%", "percent sign", r"50\%"),
        ("{1,2}", "elements in another order", "{2, 1}"),
        ("7", "next number", "8"), ("12", "digits reversed", "21"), ("11", "digits reversed", None),
        ("2/1", "only the numerator", None), ("1/2", "upside down", r"\frac{2}{1}"), ("5 cm", "another unit", "5 m"),
        ("0", "another sign", None), ("[1,2)", "another left end", "(1, 2)"), ("(1,1)", "parts in another order", None),
        ("(1,2)", "parts in another order", "(2, 1)"), ("1, 2, 3", "a missing part", "1, 2"),
        ("CBA", "letters in another order", "ABC"), ("B", "small letter", "b"), ("B", "two letters", "B and A"),
    ],
)  # fmt: skip
def test_rewrites(answer: str, name: str, text: str | None) -> None:
    (rewrite,) = [rewrite for rewrite in REWRITES if rewrite.name == name]
    gold = read_gold(rows(answer)[0], str)
    assert gold.kind in rewrite.kinds and rewrite.apply(gold) == text


def test_a_rewrite_that_hits_another_reference_is_left_out() -> None:
    (sample,) = rows("7", aliases=("8",))
    texts = {text.kind: text.text for text in texts_of(read_gold(sample, str), [])}
    assert "next number" not in texts and texts["another sign"] == "-7"


def test_a_short_text_that_may_be_the_answer_is_not_tried() -> None:
    gold = read_gold(rows("1.0")[0], str)
    assert may_answer("1", gold) and not may_answer("2", gold)
    assert may_answer("0.5", read_gold(rows("50%")[0], str)) and may_answer("8", read_gold(rows("2^3")[0], str))
    assert "1" not in [text.short for text in texts_of(gold, ["1", "3"])]


def test_every_kind_of_answer_gets_its_own_texts_and_the_same_ones_again() -> None:
    answers = ["7", "1/2", "50%", "5 cm", "{1,2}", "[1,2)", "(1,2)", "1, 2", r"3\sqrt{2}", "Paris", "B", "yes", "x = 3"]

    def texts() -> list[list[tuple[str, str]]]:
        golds = read_golds(Exact(), rows(*answers), "")
        return [[(text.kind, text.text) for text in texts_of(gold, ["7"])] for gold in golds]

    assert texts() == texts()
    assert all(len({text for _, text in row}) == len(row) > 25 for row in texts())
    assert len({rewrite.name for rewrite in REWRITES}) == len(REWRITES) > 120


# ---- rates -------------------------------------------------------------------------------------------------------


def test_wilson_intervals() -> None:
    """Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for hits, texts, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert Rate(hits, texts).interval == pytest.approx((low, high), abs=5e-5)
    assert math.isnan(Rate(0, 0).value) and Rate(3, 3).interval[1] == 1


# ---- shipped rewards ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reward", "data"),
    [(MathAnswer, "math"), (Choice, "choice"), (OpenAnswer, "open"), (SQLExecution, None), (CodeTests, "code")],
)
def test_gold_completions_of_shipped_rewards_are_paid(reward: type[Reward], data: str | None) -> None:
    judge = reward()
    samples = read_set(f"{ROOT}/docs/scripts/checkup/{data}.jsonl" if data else "SyntheticSQL", 12, 0)
    golds = read_golds(judge, samples, "")
    results = judge.score([(Completion(gold.text, (), "stop"), gold.sample) for gold in golds])
    assert all(result.correct for result in results)


def test_rows_with_images_are_as_the_model_of_the_config_sees_them(vlm_folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "boxes.yaml"
    config.write_text(
        f"model: {{class_path: GRPO, init_args: {{model: {vlm_folder}}}}}\n"
        "data: {class_path: ShapeBox, init_args: {pictures: 8, held_out: 4}}\n"
    )
    samples = read_set(str(config), 3, 0)
    reward = Boxes()
    assert all(reward(written(reward.gold_completion(sample)), sample).correct for sample in samples)
    with pytest.raises(UserError, match=r"\(to `check`, a config with both as --data\)"):
        reward(written("[1, 2, 3, 4]"), read_set("ShapeBox", 1, 0)[0])


def test_a_choice_leaves_open_answers_to_the_other_reward() -> None:
    judge = Choice(otherwise=SQLExecution())
    assert judge.gold_completion(rows("SELECT 1")[0]) == "```sql\nSELECT 1\n```"
    assert judge.gold_completion(rows("B")[0]) == "\\boxed{B}"


# ---- the command -------------------------------------------------------------------------------------------------

MY_TASK = """
from lit_rlvr.rewards import Reward
from lit_rlvr.types import Completion, Sample

def pays_any_digit(completion: Completion, sample: Sample) -> bool:
    return any(map(str.isdigit, completion.text))

class Staged(Reward):
    def __call__(self, completion, sample):
        return completion.text == sample.answer

    def explain(self, completion, sample):
        return [("found", completion.text), ("options", " ".join(sample.options)), ("shop", sample.row["shop"])]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("graded_task.py").write_text(MY_TASK)
    lines = [json.dumps({"question": f"What is {k} + 11?", "answer": str(k + 11)}) for k in range(12)]
    Path("sums.jsonl").write_text("\n".join(lines))
    Path("data.yaml").write_text("data: {class_path: TextMath, init_args: {validation: sums.jsonl}}")
    Path("none.yaml").write_text("trainer: {max_steps: 1}")
    return tmp_path


@pytest.mark.parametrize("data", ["sums.jsonl", "TextMath=sums.jsonl", "data.yaml"])
def test_the_command_prints_kinds_and_rates(folder: Path, lit_rlvr: CLI, data: str) -> None:
    done = lit_rlvr("check", "graded_task.pays_any_digit", "--data", data, "--rows", "3")
    assert (done.status, [text for text in ("3 rows", "next number", "100.0%") if text not in done.out]) == (0, [])
    assert "pays where it is no answer" in done.out


def test_the_command_prints_one_document(folder: Path, lit_rlvr: CLI) -> None:
    first, second = (
        json.loads(lit_rlvr("check", "graded_task.pays_any_digit", "--data", "sums.jsonl", "--json").out)
        for _ in range(2)
    )
    kinds = {kind["kind"]: kind for kind in first["kinds"]}
    assert first["rows"] == 12 and kinds["next number"]["rate"] == 1
    assert kinds["next number"]["examples"][0].keys() == {"reference", "text", "detail"}
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_a_budget_that_is_used_up_is_said_for_this_command(folder: Path, lit_rlvr: CLI) -> None:
    with StubJudge(lambda question: {"reason": "", "score": 5}) as stub:
        server = json.dumps(stub.server(max_calls=3))
        arguments = ("--init_args.server", server, "--data", "sums.jsonl", "--rows", "2")
        refusal = lit_rlvr("check", "PointwiseJudge", *arguments).refusal
    assert refusal.endswith("max_calls: the budget is used up (3 of 3); raise it, and run the command again")


def test_one_text_is_judged_stage_by_stage(folder: Path, lit_rlvr: CLI) -> None:
    arguments = ("--text", "\x1b[31mB [red]", "--reference", "B", "--options", "lung", "liver", "--row.shop", "open")
    done = lit_rlvr("check", "graded_task.Staged", *arguments)
    assert done.status == 0 and "\x1b" not in done.out
    assert done.out.splitlines() == [
        "found: \N{REPLACEMENT CHARACTER}[31mB [red]",
        "options: lung liver",
        "shop: open",
        "graded_task.Staged: wrong, value 0, status ok",
    ]
    document = json.loads(lit_rlvr("check", "graded_task.Staged", *arguments, "--json").out)
    assert document["correct"] is False and document["stages"][1] == {"stage": "options", "result": "lung liver"}


def test_a_text_is_taken_as_it_stands(folder: Path, lit_rlvr: CLI) -> None:
    for text in ("null", "010", "true", "1e3", "[1]"):
        document = json.loads(lit_rlvr("check", "OpenAnswer", "--text", text, "--reference", text, "--json").out)
        assert document["correct"] is True and document["detail"] == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MathAnswer"], "MathAnswer is a reward; give rows to check it on with --data, or a --text to judge"),
        (["MathAnswer", "--text", "1"], "--text: give the --reference answer, too"),
        (["--data", "sums.jsonl"], "give a reward, such as"),
        (["Mathanswer", "--data", "sums.jsonl"], "'Mathanswer' is no reward; there are LCPO, Boxes, Choice"),
        (["GRPO", "--data", "sums.jsonl"], "'GRPO' is no reward"),
        (["graded_task.nothing", "--data", "sums.jsonl"], "'graded_task.nothing' cannot be imported"),
        (["MathAnswer", "--data", "nothing.jsonl"], "nothing.jsonl: no such file"),
        (["MathAnswer", "--data", "nothing"], "--data: there is no file 'nothing'"),
        (["MathAnswer", "--data", "none.yaml"], "--data: none.yaml has no `data`"),
        (["MathAnswer", "--data", "TextMath"], "no training data"),
        (["MathAnswer", "--data", "sums.jsonl", "--rows", "0"], "check.rows: 0 must lie in [1, inf)"),
        (["MathAnswer", "--data", "sums.jsonl", "--init_args.foo", "1"], "has no option 'foo'"),
        (["Choice", "--data", "sums.jsonl"], "rewards.Choice: the answer"),
        (["Reward", "--data", "sums.jsonl"], "'Reward' is no reward"),
    ],
)  # fmt: skip
def test_rewards_rows_and_texts_that_cannot_be_checked_are_refused(
    folder: Path, lit_rlvr: CLI, arguments: list[str], message: str
) -> None:
    done = lit_rlvr("check", *arguments)
    assert message in done.refusal and not done.out


class LastLine(Reward):
    def __call__(self, completion: Completion, sample: Sample) -> float:
        """Reads no mathematics in display."""
        return float(sample.answer in completion.text and not completion.text.endswith("\\]"))


def test_answers_stand_in_ordinary_endings_if_the_reward_reads_them() -> None:
    kind = "in an ordinary ending"
    assert not check_reward(MathAnswer(), rows("7", "31"), LONG).kinds[kind].rate.errors
    assert kind not in check_reward(MathAnswer(boxed_only=True), rows("7", "31"), LONG).kinds
    found = check_reward(LastLine(), rows("7", "31"), LONG).kinds[kind]
    assert found.rate.errors == 2 and found.examples[0]["text"].endswith("\\]")
