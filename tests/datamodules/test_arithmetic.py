"""Generated sums."""

from __future__ import annotations

from collections import Counter

import pytest

from lit_rlvr.datamodules import Arithmetic, MultiStepArithmetic
from lit_rlvr.errors import UserError


def test_pairs_are_split_by_seed_and_none_is_in_both():
    data = Arithmetic()
    train, validation = data.load("train"), data.load("validation")
    assert (len(train), len(validation)) == (272, 128)
    ids = {s.id for s in train} | {s.id for s in validation}
    assert ids == {f"{a}+{b}" for a in range(1, 21) for b in range(1, 21)}
    assert [s.id for s in Arithmetic().load("validation")] == [s.id for s in validation]
    assert [s.id for s in Arithmetic(seed=1).load("validation")] != [s.id for s in validation]
    assert Arithmetic().load("test") == []


def test_the_held_out_pairs_do_not_depend_on_the_run_seed(monkeypatch: pytest.MonkeyPatch):
    held_out = [s.id for s in Arithmetic().load("validation")]
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert [s.id for s in Arithmetic().load("validation")] == held_out


def test_answers_are_the_sums_as_text(chat_tokenizer):
    data = Arithmetic(low=-2, high=3, held_out=6)
    assert all(s.answer == str(s.row["a"] + s.row["b"]) for s in data.load("train"))
    sample = next(s for s in Arithmetic(held_out=0).load("train") if s.id == "3+4")
    assert (sample.prompt, sample.answer) == ("What is 3 + 4?", "7")
    data.tokenizer = chat_tokenizer
    assert "system\nYou are a calculator.<|im_end|>" in data.render(sample)


def test_the_question_can_be_worded():
    data = Arithmetic(low=1, high=2, held_out=0, question="{b} plus {a}, {c}?")
    assert [s.prompt for s in data.load("train")][:2] == ["1 plus 1, {c}?", "2 plus 1, {c}?"]
    with pytest.raises(UserError, match=r"must hold \{a\} and \{b\}"):
        Arithmetic(question="What is {a} + b?")


def test_products_and_solutions_by_turns():
    data = Arithmetic(
        low=3, high=4, held_out=0, operation="multiply", question="{a}*{b}=", solution=["call {a} {b}", "{answer}."]
    )
    rows = {s.id: s for s in data.load("train")}
    assert rows["3*4"].prompt == "3*4=" and rows["3*4"].answer == "12"
    assert rows["3*4"].row["solution"] == ["call 3 4", "12."]
    assert Arithmetic(high=2, held_out=0).load("train")[0].row["solution"] == "2"


@pytest.mark.parametrize("options", [{"held_out": 400}, {"low": 1, "high": 9}])
def test_something_must_be_left_to_train(options: dict):
    with pytest.raises(UserError, match="pairs, one must be left to train on"):
        Arithmetic(**options)


def test_each_step_of_a_problem_is_right_and_no_problem_is_in_two_sets():
    data = MultiStepArithmetic(terms=4, high=30)
    sets = {split: data.load(split) for split in ("train", "validation", "test")}
    assert [len(samples) for samples in sets.values()] == [3500, 128, 128]
    everything = [sample for samples in sets.values() for sample in samples]
    assert len({sample.id for sample in everything}) == len(everything)
    minus = 0
    for sample in everything:
        lines = [sample.prompt.removesuffix("="), *sample.row["solution"].split("\n")]
        assert len(lines) == 4 and lines[-1] == sample.answer
        assert len({eval(line) for line in lines}) == 1, "every line has the same value"
        totals = [int(line.replace("-", "+").split("+")[0]) for line in lines]
        assert min(totals) >= 0 and "--" not in sample.prompt
        minus += "-" in sample.prompt
    assert 0.6 < minus / len(everything) < 0.9
    assert [s.id for s in MultiStepArithmetic(terms=4, high=30).load("test")] == [s.id for s in sets["test"]]
    assert [s.id for s in MultiStepArithmetic(terms=4, high=30, seed=1).load("test")] != [s.id for s in sets["test"]]


def test_lengths_can_be_mixed_and_are_categories():
    data = MultiStepArithmetic(terms=[2, 3, 5], high=30, problems=600)
    for split, size in (("train", 200), ("validation", 42.6)):
        samples = data.load(split)
        assert all(len(s.row["solution"].split("\n")) + 1 == int(s.category.removesuffix(" terms")) for s in samples)
        counts = Counter(s.category for s in samples)
        assert counts.keys() == {"2 terms", "3 terms", "5 terms"}
        assert all(count == pytest.approx(size, abs=1) for count in counts.values())
    assert {s.category for s in MultiStepArithmetic().load("validation")} == {""}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"terms": 1}, "terms=1 must be at least 2"),
        ({"terms": []}, "must be at least 2"),
        ({"terms": [2, 3], "problems": 545}, "2 numbers up to 20 make too few different problems; at most 400 of this"),
        ({"problems": 0}, "problems=0"),
        ({"tested": -1}, "tested=-1"),
        ({"terms": 2, "high": 9}, "make too few different problems; at most 81 of this length in all"),
    ],
)
def test_there_must_be_enough_problems(options: dict, said: str):
    with pytest.raises(UserError, match=said):
        MultiStepArithmetic(**options)
