"""PromptDataModule without a trainer: sets, splits, limits, position, options."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pandas
import pytest
from datasets import Dataset, DatasetDict

from lit_rlvr.datamodules import Arithmetic, CellArea, PromptDataModule, TextToSQL
from lit_rlvr.datamodules.base import EvaluationData
from lit_rlvr.datamodules.reading.chat import Chat
from lit_rlvr.datamodules.reading.options import ReadingOptions
from lit_rlvr.environments import Environment
from lit_rlvr.errors import UserError
from lit_rlvr.types import Sample


def rows(count: int, **extra) -> list[dict]:
    return [{"prompt": f"What is {i}?", "answer": str(i), "id": f"r{i}", **extra} for i in range(count)]


def ids(samples) -> list[str]:
    return [getattr(sample, "sample", sample).id for sample in samples]


@pytest.fixture
def ready(jsonl, chat_tokenizer):
    """A base module on a file of `count` rows, set up."""

    def make(
        count: int = 20, stage: str = "fit", data: list | None = None, environment: Environment | None = None, **options
    ) -> PromptDataModule:
        module = PromptDataModule(train=jsonl(data or rows(count)), **options)
        module.tokenizer = chat_tokenizer
        if environment is not None:
            module.use_environment(environment)
        module.setup(stage)
        return module

    return make


# rows


@pytest.mark.parametrize("form", ["list", "dataset", "transformed", "streamed"])
def test_rows_are_given_in_python(jsonl, chat_tokenizer, form):
    """They are the same training set as the file of these rows, so that a run can be resumed with either."""
    given = rows(6, tags=["a"])
    dataset = Dataset.from_list(given)
    forms = {
        "list": given,
        "dataset": dataset,
        "transformed": dataset.with_transform(lambda batch: {name: list(cells) for name, cells in batch.items()}),
        "streamed": dataset.to_iterable_dataset(),
    }
    fingerprints = []
    for train in (jsonl(given), forms[form]):
        data = PromptDataModule(train=train, validation_split=2, prompts_per_rollout=2)
        data.tokenizer = chat_tokenizer
        data.setup("fit")
        fingerprints.append(data.state_dict()["fingerprint"])
    assert fingerprints[0] == fingerprints[1]
    (sample, *_) = data.load("train")
    assert sample.source.startswith("data.train:") and sample.row["tags"] == ["a"]


def test_given_rows_are_named_in_errors():
    for train, message in (
        (
            DatasetDict(train=Dataset.from_list(rows(2))),
            r"data.train: give the rows of one set, .*\['train'\]",
        ),
        (pandas.DataFrame(rows(2)), "data.train:1: a row is a dict of columns, not a str"),
        (["1+1?"], r"data.train: '1\+1\?' is no file and no hub name"),
        ([], "data.train: no usable row in it"),
        ([{"prompt": "1+1?"}], "data.train:1"),
    ):
        with pytest.raises(UserError, match=message):
            PromptDataModule(train=train, reading=ReadingOptions(max_bad_rows=0)).load("train")


def test_a_module_of_ones_own_needs_rows_only(chat_tokenizer):
    class Doubles(PromptDataModule):
        """Twice a number."""

        def rows(self, split: str) -> Iterator[Sample]:
            numbers = {"train": range(20), "validation": range(20, 24), "test": ()}[split]
            for n in numbers:
                yield Sample(f"double-{n}", f"What is twice {n}?", str(2 * n))

    data = Doubles(prompts_per_rollout=4)
    data.tokenizer = chat_tokenizer
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert len(batch) == 4 and batch.name == data.name == "doubles"
    assert ids(next(iter(data.val_dataloader()[0])).prompts) == [f"double-{n}" for n in range(20, 24)]


def test_two_rows_with_one_id_are_refused(jsonl):
    path = jsonl([*rows(3), *rows(2)])
    with pytest.raises(UserError, match=f"^{path}:1 and {path}:4: both rows have the id 'r0'; give every row"):
        PromptDataModule(train=path).load("train")
    mapped = PromptDataModule(
        train=jsonl([{**row, "n": n} for n, row in enumerate([*rows(3), *rows(2)])]), columns={"id": "n"}
    )
    assert ids(mapped.load("train")) == ["0", "1", "2", "3", "4"]


# splits and limits


@pytest.mark.parametrize("size,count", [(5, 5), (0.25, 10), (0.001, 1)])
def test_validation_rows_leave_train_by_the_data_seed_alone(jsonl, monkeypatch, size, count):
    path = jsonl(rows(40))
    data = PromptDataModule(train=path, validation_split=size)
    train, validation = ids(data.load("train")), ids(data.load("validation"))
    assert len(validation) == count and sorted(train + validation) == sorted(f"r{i}" for i in range(40))
    monkeypatch.setenv("PL_GLOBAL_SEED", "9")
    assert ids(PromptDataModule(train=path, validation_split=size).load("validation")) == validation
    if count > 1:
        assert ids(PromptDataModule(train=path, validation_split=size, seed=1).load("validation")) != validation


@pytest.mark.parametrize("size", [0, 40, -1, 0.0, 1.0, 1.5])
def test_splits_that_leave_nothing_are_refused(jsonl, size):
    with pytest.raises(UserError, match="validation_split="):
        PromptDataModule(train=jsonl(rows(40)), validation_split=size).load("train")


def test_limits_are_drawn_by_seed_in_file_order(jsonl):
    path = jsonl(rows(60))
    data = PromptDataModule(
        train=path, validation_split=20, reading=ReadingOptions(limit=10), evaluation=EvaluationData(limit=5)
    )
    whole = PromptDataModule(train=path, validation_split=20)
    for split, count in (("train", 10), ("validation", 5)):
        few, all_of_it = ids(data.load(split)), ids(whole.load(split))
        assert (len(few), few, few != all_of_it[:count]) == (count, [i for i in all_of_it if i in few], True)
    assert ids(PromptDataModule(train=path, reading=ReadingOptions(limit=10)).load("train")) != ids(
        PromptDataModule(train=path, reading=ReadingOptions(limit=10), seed=1).load("train")
    )
    assert len(PromptDataModule(train=path, reading=ReadingOptions(limit=1000)).load("train")) == 60


# what stands in both sets, and what repeats


def test_validation_questions_that_stand_in_training_are_counted(ready, jsonl, caplog):
    seen = [{**row, "id": f"v{i}"} for i, row in enumerate(rows(22))][18:]  # 18 and 19 are in training, 20 and 21 not
    path = jsonl(seen, "validation.jsonl")
    data = ready(validation=path)
    train = data.locations["train"]
    assert caplog.messages == [
        "prompt_data_module: 2 of 4 validation questions also stand in training, and count in its accuracy: "
        f"{path}:1 ({train}:19); {path}:2 ({train}:20)"
    ]
    data.setup("fit")
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("count", [20, 5])
def test_validation_on_nothing_but_training_questions_is_refused(ready, jsonl, count):
    path = jsonl(rows(count), "validation.jsonl")
    with pytest.raises(
        UserError, match=rf"^prompt_data_module: all {count} validation questions also stand in"
    ) as error:
        ready(validation=path)
    assert [text in str(error.value) for text in ("also_validate", f"{path}:1 (", "\n")] == [True, True, False]


def test_of_a_question_with_several_answers_the_same_one_counts(ready, jsonl, caplog):
    asked = [{"prompt": "guess", "answer": str(i)} for i in range(9)]
    data = ready(
        data=asked,
        prompts_per_rollout=4,
        validation=jsonl([*asked[:1], {"prompt": "guess", "answer": "12"}], "v.jsonl"),
    )
    train, validation = data.locations["train"], data.locations["validation"]
    assert caplog.messages == [
        "prompt_data_module: 1 of 2 validation questions also stand in training, and count in its accuracy: "
        f"{validation}:1 ({train}:1)",
    ]


# prompts and batches


def test_long_prompts_are_dropped_counted_and_named_never_cut(ready, caplog):
    data = [*rows(20), *({"prompt": "x" * n, "answer": "1", "id": f"long{n}"} for n in (200, 300))]
    module = ready(data=data, reading=ReadingOptions(max_prompt_tokens=120))
    assert ids(module.prompts["train"]) == [f"r{i}" for i in range(20)]
    assert module.too_long["train"] == ["long200", "long300"]
    overhead = len(module.encode(Sample("x", "", "a")).token_ids)
    assert caplog.messages[0] == (
        "prompt_data_module train: dropped, 2 of 22 prompts are longer than max_prompt_tokens=120: "
        f"long200 ({overhead + 200} tokens); long300 ({overhead + 300} tokens)"
    )
    longest = max(len(prompt.token_ids) for prompt in module.prompts["train"])
    assert len(ready(reading=ReadingOptions(max_prompt_tokens=longest)).prompts["train"]) == 20
    assert len(ready(reading=ReadingOptions(max_prompt_tokens=longest - 1)).prompts["train"]) == 10
    with pytest.raises(
        UserError,
        match=r"20 of 20 prompts are longer than max_prompt_tokens=5: .*raise data.init_args.reading.max_prompt_tokens",
    ):
        ready(reading=ReadingOptions(max_prompt_tokens=5))


def test_a_prompt_that_is_far_too_long_is_not_tokenised_to_its_end(ready, caplog, monkeypatch):
    """The tokens of 20 million characters took a minute."""
    texts = {"shorter": "x" * 900, "longer": "x" * 1000, "endless": "12 " * 2_000_000}
    data = [*rows(20), *({"prompt": text, "answer": "1", "id": name} for name, text in texts.items())]
    module = ready(data=data, reading=ReadingOptions(max_prompt_tokens=120))
    overhead = len(module.encode(Sample("x", "", "a")).token_ids)
    assert f"shorter ({overhead + 900} tokens); longer (960 tokens or more); endless (960 " in caplog.messages[0]
    tokenised, tokenizer = [], type(module.tokenizer)
    tokenise = tokenizer.__call__

    def counted(self, text, **options):
        tokenised.append(len(text))
        return tokenise(self, text, **options)

    monkeypatch.setattr(tokenizer, "__call__", counted)
    module.encode(Sample("x", texts["endless"], "a"))
    assert tokenised == [960 * 16]


@pytest.mark.parametrize("does", ["break", "keep", "refuse"])
def test_rows_with_special_tokens_are_counted_and_named(ready, jsonl, caplog, does):
    mixed = [*rows(18), {"prompt": "a<eos>", "answer": "1"}, {"prompt": "b<eos>", "answer": "1"}]
    where = re.escape(jsonl(mixed))
    found = rf"prompt_data_module train: special tokens of the model in 2 of 20 rows \({where}:19; {where}:20\)"
    if does == "refuse":
        with pytest.raises(UserError, match=f"^{found}. Remove them, or choose `data.chat.special_tokens: break`$"):
            ready(data=mixed, chat=Chat(special_tokens=does))
        return
    assert (1 in ready(data=mixed, chat=Chat(special_tokens=does)).prompts["train"][-1].token_ids) == (does == "keep")
    said = {"break": "are broken up with a zero-width space", "keep": "stay control tokens"}[does]
    assert re.fullmatch(rf"{found} {said} \(data.chat.special_tokens: {does}\)", caplog.messages[0])
    assert not any("special" in message for message in caplog.messages[1:])


def test_sizes_are_checked_in_setup_before_weights_load(ready):
    with pytest.raises(UserError, match="20 training prompts, fewer than prompts_per_rollout=21"):
        ready(prompts_per_rollout=21)


def test_the_order_follows_seed_everything_and_the_data_seed(ready, monkeypatch):
    first = ids(next(iter(ready().train_dataloader())).prompts)
    assert ids(next(iter(ready().train_dataloader())).prompts) == first
    assert ids(next(iter(ready(seed=1).train_dataloader())).prompts) != first
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    assert ids(next(iter(ready().train_dataloader())).prompts) != first


# position


@pytest.mark.parametrize("before_setup", [True, False])
@pytest.mark.parametrize(
    "change,what",
    [
        ({"data": rows(21)}, "the number of training prompts was 20, is 21"),
        ({"data": rows(20)[::-1]}, "the prompts' ids or their order in the file"),
        ({"chat": Chat(system_prompt="Think.")}, "the prompts' text or tokens"),
        ({"data": [*rows(19), {**rows(20)[19], "answer": "no"}]}, "the reference answers"),
        ({"data": [*rows(19), {**rows(20)[19], "answer": [rows(20)[19]["answer"], "no"]}]}, "the reference answers"),
        ({"seed": 3}, "the seeds of the order (data seed, seed_everything) was 0, 0, is 3, 0"),
    ],
)
def test_other_training_data_are_refused(ready, jsonl, chat_tokenizer, change, what, before_setup):
    state = ready().state_dict()
    if before_setup:
        options = dict(change)
        data = PromptDataModule(train=jsonl(options.pop("data", rows(20))), **options)
        data.tokenizer = chat_tokenizer
        data.load_state_dict(state)
        with pytest.raises(UserError) as error:
            data.setup("fit")
    else:
        data = ready(**change)
        with pytest.raises(UserError) as error:
            data.load_state_dict(state)
    assert what in str(error.value) and "\n" not in str(error.value)
    assert "`lit-rlvr export RUN --to FOLDER`, then model.init_args.model: FOLDER" in str(error.value)


def test_a_checkpoint_can_be_validated_without_its_training_data(ready, jsonl, chat_tokenizer):
    state = ready().state_dict()
    data = PromptDataModule(validation=jsonl(rows(2), "validation.jsonl"))
    data.tokenizer = chat_tokenizer
    data.setup("validate")
    data.load_state_dict(state)
    assert len(data.val_dataloader()) == 1


# options


@pytest.mark.parametrize(
    "options,message",
    [
        ({"prompts_per_rollout": 0}, r"data.prompts_per_rollout: 0 must lie in \[1, inf\)"),
        ({"columns": {"promt": "q"}}, "unknown field 'promt'; did you mean 'prompt'"),
        (
            {"columns": {"zzz": "q"}},
            "unknown field 'zzz'; known fields: prompt, answer, image, video, id, category, options",
        ),
    ],
)
def test_options_that_cannot_be_meant(options, message):
    with pytest.raises(UserError, match=message):
        PromptDataModule(**options)


def test_a_partial_group_keeps_the_defaults_of_the_class():
    data = TextToSQL(chat=Chat(system_prompt="Think."), reading=ReadingOptions(limit=3))
    assert (data.chat.template, data.reading.max_prompt_tokens) == ("sql", 4096)
    assert Arithmetic(chat=Chat(prefill="<")).chat.system_prompt == "You are a calculator."
    assert CellArea(reading=ReadingOptions(limit=3)).reading.max_bad_rows == 0.0
