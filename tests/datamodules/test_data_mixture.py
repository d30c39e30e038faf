"""Several sets as one: shares, orders, the curriculum, whose prompt a sample gets, and what is refused."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_rlvr.datamodules import Arithmetic, Mixture, PromptDataModule, TextMath
from lit_rlvr.datamodules.base import EvaluationData
from lit_rlvr.datamodules.reading.chat import Chat
from lit_rlvr.datamodules.reading.curriculum import Curriculum
from lit_rlvr.datamodules.reading.mixing import named_files
from lit_rlvr.datamodules.reading.stream import START_CURSOR, TrainLoader, difficulty_of
from lit_rlvr.errors import UserError
from lit_rlvr.rewards import MathAnswer, PairwiseJudge, PointwiseJudge, RewardModelServer, RubricJudge
from lit_rlvr.types import Sample

Write = Callable[..., str]


def rows(count: int, offset: int = 0) -> list[dict[str, Any]]:
    return [
        {"id": str(i), "question": f"{i}+{offset}=", "answer": str(i + offset), "level": f"Level {9 - i % 3}"}
        for i in range(count)
    ]


def built(data: PromptDataModule, tokenizer: Any) -> PromptDataModule:
    data.tokenizer = tokenizer
    data.setup("fit")
    return data


def taken(data: PromptDataModule, count: int) -> list[Any]:
    return [prompt.sample for prompt in data.stream.take(count, data.cursor)[0]]


def test_files_are_sets_with_distinct_ids_and_weights(jsonl: Write, chat_tokenizer: Any) -> None:
    a, b = jsonl(rows(30), "a.jsonl"), jsonl(rows(10, 5), "b.v2.jsonl")
    together = built(TextMath(train=[a, b]), chat_tokenizer)
    assert together.datasets == ["a", "b"] and len({p.sample.id for p in together.stream.prompts}) == 40
    assert Counter(sample.dataset for sample in taken(together, 40)) == {"a": 30, "b": 10}
    weighted = built(TextMath(train={a: 1, b: 3}), chat_tokenizer)
    assert abs(Counter(sample.dataset for sample in taken(weighted, 4000))["b"] / 4000 - 0.75) < 0.02
    own = [sample.id for sample in taken(weighted, 400) if sample.dataset == "b"]
    assert all(sorted(own[k : k + 10]) == sorted(own[:10]) for k in range(0, 250, 10)), "each epoch has all its rows"


def test_the_draw_is_a_function_of_the_cursor_on_any_number_of_ranks(jsonl: Write, chat_tokenizer: Any) -> None:
    data = built(TextMath(train={jsonl(rows(7), "a.jsonl"): 2, jsonl(rows(5), "b.jsonl"): 1}), chat_tokenizer)
    whole = [sample.id for sample in taken(data, 60)]
    for world in (1, 2):
        cursor, seen = dict(START_CURSOR), []
        for _ in range(15):
            batches = [TrainLoader(data.stream, 4, dict, r, world).take(cursor) for r in range(world)]
            seen += [prompt.sample.id for batch in batches for prompt in batch.prompts]
            cursor = batches[0].cursor
        assert (seen, cursor["epoch"], {*cursor}) == (whole, 5, {"epoch", "position", "set/a", "set/b"})


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.9), (2.0, 0.75), (1e9, 0.5), (1e-3, 1.0)])
def test_a_temperature_evens_out_the_sets(temperature: float, share: float, chat_tokenizer: Any) -> None:
    sets = [
        Arithmetic(high=9, held_out=0, name="large"),
        Arithmetic(high=3, held_out=0, name="small", operation="multiply"),
    ]
    data = built(Mixture(sets=sets, temperature=temperature), chat_tokenizer)  # 81 and 9 rows
    assert data.weights["large"] / sum(data.weights.values()) == pytest.approx(share, abs=1e-6)


def test_sets_are_evaluated_as_the_mixture_says_and_further_ones_too(chat_tokenizer: Any) -> None:
    further = Arithmetic(held_out=9, name="further")
    own = Arithmetic(held_out=9, name="own", evaluation=EvaluationData(limit=3, also_validate=[further]))
    sets = [own, Arithmetic(held_out=9, name="other", operation="multiply")]
    data = built(Mixture(sets=sets, evaluation=EvaluationData(limit=5)), chat_tokenizer)
    sizes = {loader.name: len(loader.prompts) for loader in data.val_dataloader()}
    assert sizes == {"own": 3, "further": 9, "other": 5}


def test_each_set_of_a_mixture_formats_and_names_its_own(jsonl: Write, chat_tokenizer: Any) -> None:
    sums = Arithmetic(high=5, held_out=5, name="sums", chat=Chat(system_prompt="Add."), rewards=["exact"])
    shared = next(sample.id for sample in sums.load("train"))
    facts = PromptDataModule(
        train=jsonl([{"q": "Six?", "a": "6", "id": shared}, {"q": "Seven?", "a": "7"}]),
        columns={"prompt": "q", "answer": "a"},
        rewards={"loose": 0.5},
        name="facts",
    )
    data = built(Mixture(sets=[sums, facts], prompts_per_rollout=4), chat_tokenizer)
    prompts = {prompt.sample.id: prompt for prompt in data.stream.prompts}
    one, other = (prompts[f"{name}:{shared}"].sample for name in ("sums", "facts"))
    assert ("Add." in data.render(one), "Add." in data.render(other), "facts:2" in prompts) == (True, False, True)
    assert (one.rewards, other.rewards) == ({"exact": None}, {"loose": 0.5})
    assert all(data.encode(prompt.sample).token_ids == prompt.token_ids for prompt in prompts.values())
    assert [loader.name for loader in data.val_dataloader()] == ["sums"]


def test_a_set_that_names_an_unknown_reward_is_refused_itself(chat_tokenizer: Any) -> None:
    """Not its first row."""
    sets = [Arithmetic(name="sums"), Arithmetic(name="products", operation="multiply", rewards=["math_answr"])]
    said = r"^data.rewards of the set products: there is no reward 'math_answr'; did you mean 'math_answer'\?$"
    with pytest.raises(UserError, match=said):
        Mixture(sets=sets).use_environment(None, [MathAnswer()])
    Mixture(sets=sets).use_environment(None, [])  # without rewards none judges


@pytest.mark.parametrize(
    ("weights", "line"),
    [
        (
            {"sums": 0.7, "products": 0.7},
            "data.weights: the shares sum to 1.4 and not to 1; only their ratios",
        ),
        ({"sums": 0.3, "products": 0.7}, ""),
        ({"sums": 1 / 3, "products": 0.667}, ""),
        ({"sums": 3, "products": 1}, ""),
        ({"sums": 1, "products": 1}, ""),
    ],
)
def test_shares_that_do_not_sum_to_1_are_said(
    weights: Any, line: str, chat_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "lit_rlvr"):
        built(mixture(weights=weights), chat_tokenizer)
    assert line in caplog.text if line else "shares sum" not in caplog.text


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["x/math.jsonl.gz", "x/essays.v2.jsonl"], ["math", "essays"]),
        (["gsm8k/train.jsonl", "math/train.jsonl"], ["gsm8k", "math"]),
        (["level.1.jsonl", "level.2.jsonl"], ["level.1", "level.2"]),
        (["a.jsonl", "a.parquet"], ["a.jsonl", "a.parquet"]),
        (["x/train.jsonl", "x/test.jsonl", "y/train.jsonl"], ["x_train", "x_test", "y_train"]),
        (["org/name:train", "org/name:test"], ["name_train", "name_test"]),
    ],
)
def test_files_are_called_by_what_tells_them_apart(files: list[str], names: list[str]) -> None:
    assert [*named_files(files)[0]] == names
    assert named_files(dict.fromkeys(files, 0.5))[1] == dict.fromkeys(names, 0.5)


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("1e-05", 1e-5), (1e-05, 1e-5), (".25", 0.25), ("Level 3", 3), ("level3", 3), ("-2", -2), ("3 of 5", 5),
        ("1,234", 1234), ("L-3", 3), ("-.5", -0.5), ("10%", 10), ([3], 3), ("[4]", 4), ("+7", 7), ("2.5E+2", 250),
    ],
)  # fmt: skip
def test_a_difficulty_is_the_last_number_of_its_cell(cell: Any, number: float) -> None:
    assert difficulty_of(Sample("a", "?", "", row={"level": cell}), "level") == number


NOWHERE = {"base_url": "http://127.0.0.1:9/v1", "model": "none"}


def test_rows_that_only_judges_judge_need_no_answer(tmp_path: Path, chat_tokenizer: Any) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [
        {"prompt": "Why?", "by": "rubric_judge"},
        {"prompt": "1+1?", "by": "math_answer", "answer": "2"},
        {"prompt": "1+2?", "by": "math_answer"},
        {"prompt": "How?", "by": ["rubric_judge", "math_answer"]},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge, rule = RubricJudge(server=NOWHERE, rubric={"a": 1}), MathAnswer()

    def read(judging: list[Any] | None, **options: Any) -> PromptDataModule:
        data = PromptDataModule(train=str(file), reading={"max_bad_rows": 0.75}, prompts_per_rollout=1, **options)  # type: ignore[arg-type]
        data.tokenizer = chat_tokenizer
        data.use_environment(None, judging)
        data.load("train")
        return data

    by = {"columns": {"reward": "by"}}
    mixed = read([judge, rule], **by)
    assert [sample.prompt for sample in mixed.load("train")] == ["Why?", "1+1?"]
    assert "missing, and the reward math_answer judges by it" in str(mixed.bad_rows["train"][0])
    assert len(read([judge]).load("train")) == 4
    assert len(read([judge, rule], rewards=["rubric_judge"]).load("train")) == 4
    assert len(read([rule]).load("train")) == len(read(None).load("train")) == 1
    assert not any(
        reward.needs_answer
        for reward in (PointwiseJudge(server=NOWHERE), PairwiseJudge(NOWHERE), RewardModelServer(NOWHERE))
    )


@pytest.mark.parametrize("order", ["given", "difficulty"])
def test_orders(order: Any, jsonl: Write, chat_tokenizer: Any) -> None:
    data = TextMath(train=jsonl(rows(12)), order=order, columns={"difficulty": "level"})
    epochs = [[s.id for s in taken(built(data, chat_tokenizer), 24)][k : k + 12] for k in (0, 12)]
    if order == "given":
        assert epochs == [[str(i) for i in range(12)]] * 2
    else:
        assert [[int(name) % 3 for name in epoch] for epoch in epochs] == [[2] * 4 + [1] * 4 + [0] * 4] * 2
        assert epochs[0] != epochs[1], "equal ones are shuffled"


def test_prompts_outside_the_band_are_retired_and_come_back(jsonl: Write, chat_tokenizer: Any) -> None:
    curriculum = Curriculum(band=(0.2, 0.8), epochs=2, memory=0.5)
    data = built(TextMath(train=jsonl(rows(6)), curriculum=curriculum, prompts_per_rollout=6), chat_tokenizer)
    _, cursor = data.stream.take(6, data.cursor)
    shares = {"0": (0, 4), "1": (4, 4), "2": (2, 4), "3": (0, 0), "4": (1, 4)}
    data.commit(cursor | {"epoch": 0, "position": 5}, shares)
    before = data.state_dict()
    data.commit(cursor)
    epochs = [[s.id for s in taken(data, 16)][k : k + 4] for k in (0, 4)]  # epochs 1 and 2; then 0 and 1 are back
    assert all(sorted(epoch) == ["2", "3", "4", "5"] for epoch in epochs)
    assert sorted(s.id for s in taken(data, 14)[8:]) == ["0", "1", "2", "3", "4", "5"]
    assert data.stream.retired_share(cursor) == 2 / 6
    data.commit(cursor, {"0": (2, 4), "4": (0, 4)})
    assert data.success is not None and data.success.known["0"][0] == 0.5, "it begins anew"
    assert data.success.known["4"] == (0.125, 1), "half of 1/4 and half of 0"
    other = TextMath(train=jsonl(rows(6)), curriculum=curriculum, prompts_per_rollout=6)
    other.load_state_dict(before)
    built(other, chat_tokenizer)
    assert (other.success.known["2"], "3" in other.success.known) == ((0.5, 0), False)


def test_if_all_prompts_are_retired_epochs_pass(chat_tokenizer: Any) -> None:
    sets = [Arithmetic(high=2, held_out=0, name=name, operation=operation) for name, operation in SETS]
    data = built(
        Mixture(sets=sets, weights={"sums": 1, "products": 1}, curriculum=Curriculum(epochs=3)), chat_tokenizer
    )
    data.commit(data.cursor, {sample.id: (0, 4) for sample in (p.sample for p in data.stream.prompts)})
    prompts, cursor = data.stream.take(8, data.cursor)
    assert len(prompts) == 8 and min(cursor["set/sums"], cursor["set/products"]) > 4 * 4
    assert data.stream.retired_share(data.cursor) == 1 and data.stream.retired_share(cursor) == 0


SETS: Any = (("sums", "add"), ("products", "multiply"))


def mixture(**options: Any) -> Mixture:
    sets = [Arithmetic(high=3, held_out=0, name=name, operation=operation) for name, operation in SETS]
    return Mixture(**{"sets": sets} | options)


BAD: dict[str, tuple[Callable[[Path], PromptDataModule], str]] = {
    "no set": (lambda _: mixture(sets=[]), r"data\.sets: give at least one data module"),
    "infinite": (lambda _: mixture(weights={"sums": 1e308, "products": 1e308}), r"data\.weights: the weights sum to"),
    "all zero": (lambda _: mixture(weights={"sums": 0, "products": 0}), r"data\.weights: all weights are 0"),
    "negative": (lambda _: mixture(weights={"sums": -1, "products": 1}), r"data\.weights\.sums: -1 must lie in"),
    "unknown": (lambda _: mixture(weights={"sums": 1, "product": 1}), r"no set 'product' .* are sums, products"),
    "missing": (lambda _: mixture(weights={"sums": 1}), r"data\.weights: products has no weight"),
    "both": (lambda _: mixture(weights={"sums": 1}, temperature=2), r"weights or a temperature, not both"),
    "cold": (lambda _: mixture(temperature=0), r"data\.temperature: 0 must lie in \(0, inf\)"),
    "same name": (lambda _: mixture(sets=[Arithmetic(), Arithmetic()]), r"two sets are called arithmetic"),
    "own order": (lambda _: mixture(sets=[Arithmetic(order="given")]), r"arithmetic has an order, a curriculum or we"),
    "no rows": (lambda folder: TextMath(train=[*_files(folder), str(folder / "empty.jsonl")]), r"empty\.jsonl: no usa"),
    "texts": (lambda _: TextMath(train=["What is 4/2?", "And 1+1?"]),
              r"^data\.train: 'What is 4/2\?' is no file and no hub name; give rows as dicts of columns, such as"),
    "a long text": (lambda _: TextMath(train=["What is 4/2? " * 99]), r"is no file and no hub name; give rows as"),
    "no spaces": (lambda _: TextMath(train=["1+1=?"]), r"^data\.train: '1\+1=\?' is no file and no hub name; give r"),
    "file weights": (lambda folder: TextMath(train=dict.fromkeys(_files(folder), 0)), r"data\.train: all weights a"),
    "same stem": (lambda folder: TextMath(train=_files(folder) * 2), r"data\.train: two files are called a;"),
    "other columns": (lambda folder: TextMath(train=[*_files(folder), str(folder / "odd.jsonl")]),
                      r"odd\.jsonl: 1 of 1 rows cannot be used.*no known layout, the columns are x"),
    "difficulty": (lambda folder: TextMath(train=_files(folder), order="difficulty"),
                   r"a\.jsonl:1: data\.order: difficulty needs a number in the column 'difficulty', not None"),
    "band": (lambda _: mixture(curriculum=Curriculum(band=(0.8, 0.2))), r"data\.curriculum\.band: \[0\.8, 0\.2\] must"),
    "nested": (lambda _: mixture(sets=[mixture()]), r"data\.sets: mixture is a mixture itself"),
    "no reward": (lambda _: Arithmetic(rewards=[]), r"data\.rewards: expected a reward's name"),
    "epochs": (lambda _: mixture(curriculum=Curriculum(epochs=0)), r"data\.curriculum\.epochs: 0 must lie in \[1, "),
}  # fmt: skip


def _files(folder: Path) -> list[str]:
    (folder / "a.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n' * 9)
    (folder / "odd.jsonl").write_text('{"x": 1}\n')
    (folder / "empty.jsonl").write_text("")
    return [str(folder / "a.jsonl")]


@pytest.mark.parametrize("name", BAD)
def test_wrong_sets_files_weights_and_curricula_are_refused(name: str, tmp_path: Path, chat_tokenizer: Any) -> None:
    make, message = BAD[name]
    with pytest.raises(UserError, match=message) as caught:
        built(make(tmp_path), chat_tokenizer)
    assert "\n" not in str(caught.value)
