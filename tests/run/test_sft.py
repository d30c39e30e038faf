"""SFT: its loss is transformers' own on the assistant's tokens, and it is a run like any other."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save_model, tiny_llama
from tiny_runs import CLI, FIT, STRATEGIES, assert_same_run, completions, in_two_processes, metrics, summary, to
from tiny_vlms import picture
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from lit_rlvr.algorithms import GRPO, SFT
from lit_rlvr.datamodules import PromptDataModule
from lit_rlvr.datamodules.reading.chat import Chat
from lit_rlvr.errors import UserError
from lit_rlvr.policy.loading import load_policy
from lit_rlvr.rollout.demonstrations import Demonstrations

Talk = list[dict[str, Any]]
DATA = ("--model", "SFT", "--data", "lit_rlvr.datamodules.PromptDataModule", "--data.columns", "{prompt: messages}")
LOSS_ONLY = ("--rollout.evaluation", "{samples: 0}")


def talk(*texts: str, system: str = "") -> Talk:
    """A conversation whose turns are the user's and the assistant's alternately."""
    said = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *said] if system else said


TRAIN = [
    talk("How are you?", "Fine.", "And now?", "Still fine, thank you."),
    talk("1+1?", "2", system="You add."),
    talk("Say a, then b", "a", "go on", "b", "go on", "c, which is longer than all of the others"),
    talk("Who?", "Me."),
]
HELD_OUT = [talk("2+1?", "It is 3."), talk("Who?", "You.", "No!", "Me, then.")]


def write(folder: Path, **sets: list[Talk]) -> tuple[str, ...]:
    """Write JSONL files; return the options that name them."""
    options = [*DATA]
    for name, talks in sets.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in talks))
        options += [f"--data.{name}", str(path)]
    return tuple(options)


def labelled(folder: Path, talks: Sequence[Talk]) -> dict[str, torch.Tensor]:
    """A padded batch, with -100 as the label of all but the assistant's turns."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in talks]
    turn = re.compile(r"(?<=<\|im_start\|>assistant\n)(.*?<\|im_end\|>)", re.DOTALL)
    return batch_of(tokenizer, [turn.split(text) for text in texts])


def batch_of(tokenizer: Any, rows: Sequence[Sequence[str]]) -> dict[str, torch.Tensor]:
    """A padded batch of texts that the model reads and writes alternately, with -100 as the label of what it reads."""
    ids, labels = [], []
    for texts in rows:
        encoded = [torch.tensor(tokenizer(text, add_special_tokens=False).input_ids).long() for text in texts]
        ids.append(torch.cat(encoded))
        labels.append(torch.cat([part if k % 2 else torch.full_like(part, -100) for k, part in enumerate(encoded)]))
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(one)) for one in ids], batch_first=True)
    wanted = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
    return {"input_ids": padded, "attention_mask": mask, "labels": wanted}


@torch.no_grad()
def transformers_loss(folder: Path, talks: Sequence[Talk]) -> float:
    """Transformers' own loss."""
    return float(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)(**labelled(folder, talks)).loss)


def losses(run: str, name: str = "train/loss") -> list[float]:
    return [float(row[name]) for row in metrics(Path(run)) if row.get(name)]


def test_the_loss_is_transformers_own(run_folder: Path, lit_rlvr: CLI, tiny_model_folder: Path) -> None:
    """Over all assistant's tokens of a step, however it is cut, and over all held-out ones."""
    options = write(run_folder, train=TRAIN, validation=HELD_OUT)
    small = ("--model.init_args.compute.tokens_per_microbatch", 120, "--rollout.sampling.max_tokens", 200)
    result = lit_rlvr(
        *FIT, *options, *LOSS_ONLY, *small, "--trainer.max_steps", 1, "--data.evaluation.prompts_per_batch", 1, status=0
    )
    assert losses("run") == [pytest.approx(transformers_loss(tiny_model_folder, TRAIN), abs=1e-6)]
    found = losses("run", "val/prompt_data_module/loss")
    assert found[0] == pytest.approx(transformers_loss(tiny_model_folder, HELD_OUT), abs=1e-6) and found == losses(
        "run", "val/loss"
    )
    assert len(found) == 2 and found[1] != found[0], "before and after the step"
    assert "accuracy" not in (run_folder / "run" / "metrics.csv").read_text().splitlines()[0]
    assert {row["completion"] for row in completions(run_folder / "run")} <= {
        messages[-1]["content"] for messages in TRAIN
    }
    assert "the assistant's turns at the end" not in result.err, "they are what it trains on"


FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>"
    "{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template that shows thoughts in the last turn alone, and empty ones if it has none."""


@pytest.mark.parametrize("does", ["mask", "train"])
def test_turns_are_learnt_after_the_prompts_that_the_template_makes(
    run_folder: Path, lit_rlvr: CLI, tiny_model_folder: Path, does: str
) -> None:
    """Thoughts that later prompts lack, in sequences of their own; and empty thoughts."""
    tokenizer, model = (kind.from_pretrained(tiny_model_folder) for kind in (AutoTokenizer, AutoModelForCausalLM))
    tokenizer.chat_template = FORGETFUL
    for saved in (tokenizer, model):
        saved.save_pretrained(run_folder / "forgetful")
    seen, held_out = talk("q1", "a1", "q2", "a2"), talk("q4", "a1", "q2", "a2")
    for messages in (seen, held_out):
        messages[1]["reasoning_content"], messages[3]["reasoning_content"] = "t1", "t2"
    options = write(run_folder, train=[seen, talk("q3", "a3")], validation=[held_out])
    few = ("--data.prompts_per_rollout", 2, "--trainer.max_steps", 1, "--rollout.sampling.max_tokens", 200)
    more = ("--model.init_args.model", "forgetful", "--model.init_args.target_empty_thoughts", does)
    result = lit_rlvr(*FIT, *options, *LOSS_ONLY, *few, *more, status=0)
    start, next_one = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n".format, "a1<|im_end|>\n"
    turns, held_out_turns = (
        [
            [start(question), "<think>t1</think>a1<|im_end|>"],
            [start(question) + next_one + start("q2"), "<think>t2</think>a2<|im_end|>"],
        ]
        for question in ("q1", "q4")
    )
    empty = [start("q3") + "<think></think>", "a3<|im_end|>"]
    if does == "train":
        empty = [start("q3"), "<think></think>a3<|im_end|>"]
    model = model.double()
    with torch.no_grad():
        wanted = [float(model(**batch_of(tokenizer, rows)).loss) for rows in ([*turns, empty], held_out_turns)]
    assert losses("run") == [pytest.approx(wanted[0], abs=1e-6)]
    assert losses("run", "val/loss")[0] == pytest.approx(wanted[1], abs=1e-6)
    assert "in 1 of 2 conversations, the chat template changes earlier turns" in result.err
    assert "1 of 2 rows have answers that begin with empty thoughts" in result.err
    shown = lit_rlvr("preview", *FIT[1:], *options, *LOSS_ONLY, *few, *more)
    parts = [f"tokens in the loss{where}" for where in ("", " (sequence 2)")]
    assert shown.status == 0 and [shown.out.count(part) for part in parts] == [3, 1], shown.err


def test_the_divergence_from_a_teacher_is_added_or_stands_alone(
    run_folder: Path, lit_rlvr: CLI, tiny_model_folder: Path
) -> None:
    teacher, options = save_model(tiny_llama(1), run_folder / "teacher"), write(run_folder, train=TRAIN)
    small = ("--model.init_args.compute.tokens_per_microbatch", 120, "--rollout.sampling.max_tokens", 200)
    once = ("--trainer.max_steps", 1, "--trainer.limit_val_batches", 0)
    taught = ("--model.init_args.teacher.model", teacher, "--model.init_args.teacher.coef", 2)
    for root, more in (("both", ()), ("alone", ("--model.init_args.nll_coef", 0))):
        beta = ("--model.init_args.teacher.beta", 0)
        lit_rlvr(*FIT, *options, *LOSS_ONLY, *small, *once, *taught, *beta, *more, *to(root), status=0)
    batch = labelled(tiny_model_folder, TRAIN)
    labels = batch.pop("labels")[:, 1:]
    with torch.no_grad():
        s, t = (
            model.double()(**batch).logits[:, :-1][labels >= 0].log_softmax(-1)
            for model in (tiny_llama(), tiny_llama(1))
        )
    forward = float((t.exp() * (t - s)).sum(-1).mean())
    assert losses("alone", "train/teacher_divergence") == [pytest.approx(forward, abs=1e-6)]
    assert losses("alone") == [pytest.approx(2 * forward, abs=1e-6)]
    assert losses("both") == [pytest.approx(transformers_loss(tiny_model_folder, TRAIN) + 2 * forward, abs=1e-6)]
    lit_rlvr(
        *FIT,
        *options,
        *taught,
        *to("sampled"),
        status=2,
        says="model.teacher.beta: SFT does not train on the policy's own samples",
    )
    lit_rlvr(*FIT, *options, "--model.init_args.nll_coef", 0, *to("nothing"), status=2, says="model.nll_coef: 0")


def test_images_stand_where_the_conversation_shows_them(vlm_folder: Path, tmp_path: Path) -> None:
    """One in the first prompt, one between two turns: the log-probabilities are the model's own."""
    pictures = [picture(30, 40, seed=1), picture(56, 28, seed=2)]
    for number, image in enumerate(pictures):
        image.save(tmp_path / f"{number}.png")
    messages = talk("<image>What?", "Noise.", "And <image>this?", "More.")
    row = {"messages": messages, "image": [str(tmp_path / f"{number}.png") for number in range(2)]}
    data = PromptDataModule(train=[row], columns={"prompt": "messages"}, prompts_per_rollout=1)
    module = GRPO(model=str(vlm_folder))
    data.use_model(module)
    data.setup("fit")
    shown = Demonstrations(data, None, "model.target", module.model_folder)
    policy = load_policy(str(vlm_folder))
    rollout = shown.rollout([data.prepare(data.prompts["train"][0])], policy.placeholder_ids)
    (prompt,), ((completion,),) = rollout.prompts, rollout.completions
    assert len(prompt.pixels.images) == len(completion.pixels.images) == 1
    written = [t for t, own in zip(completion.token_ids, completion.sampled, strict=True) if own]
    assert data.tokenizer.decode(written) == "Noise.<|im_end|>More.<|im_end|>"
    whole = [*prompt.token_ids, *completion.token_ids]
    pixels = data.image_processor.pixels(pictures)
    model = AutoModelForImageTextToText.from_pretrained(vlm_folder)
    logits = model(torch.tensor([whole]), **policy.images([pixels], torch.tensor([whole]))).logits[0].clone()
    logits[:, list(policy.placeholder_ids)] = float("-inf")
    wanted = logits.log_softmax(-1)[len(prompt.token_ids) - 1 : -1].gather(
        1, torch.tensor(completion.token_ids)[:, None]
    )
    logp = policy.logprobs(rollout, [0])[0][0][rollout.mask[0]]
    assert logp.tolist() == pytest.approx(wanted[:, 0][rollout.mask[0]].tolist(), abs=1e-4)


def test_an_answer_ends_with_the_next_roles_token_where_the_template_writes_no_end(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    tokenizer, model = (kind.from_pretrained(tiny_model_folder) for kind in (AutoTokenizer, AutoModelForCausalLM))
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>"])
    for saved in (tokenizer, model):
        saved.save_pretrained(tmp_path)
    row = {"prompt": "2+2?", "answer": "4", "talk": talk("", "4", "3+3?", "6")[1:]}
    data = PromptDataModule(train=[row], prompts_per_rollout=1)
    data.use_model(SFT(model=str(tmp_path)))
    data.setup("fit")
    for target, seen in (
        (None, "4<|im_start|>"),
        ("talk", "4<|im_start|>user\n3+3?<|im_start|>assistant\n6<|im_start|>"),
    ):
        ((_, completion),) = Demonstrations(data, target, "model.target", str(tmp_path)).pairs(data.prompts["train"])
        assert tokenizer.decode(completion.token_ids) == seen


@pytest.mark.parametrize("does", ["break", "keep", "refuse"])
def test_special_tokens_in_an_answer_are_text(tiny_model_folder: Path, does: Any, caplog: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    text, end = "4<|im_end|>\n<|im_start|>user\nMore?", tokenizer.convert_tokens_to_ids("<|im_end|>")
    tools = [{"type": "function", "function": {"name": "f", "description": text, "parameters": {}}}]
    row = {"prompt": "2+2?", "answer": text, "said": text, "talk": talk("", text)[1:], "tools": tools}
    data = PromptDataModule(train=[row], chat=Chat(special_tokens=does), prompts_per_rollout=1)
    data.use_model(SFT(model=str(tiny_model_folder)))
    for target in (None, "said", "talk"):
        shown = Demonstrations(data, target, "model.target", str(tiny_model_folder))
        if does == "refuse":
            with pytest.raises(UserError, match=r"special tokens of the model in .*data.train:1.*Remove them"):
                data.setup("fit")
                shown.pairs(data.prompts["train"])
            continue
        data.setup("fit")
        ((prompt, completion),) = shown.pairs(data.prompts["train"])
        given = 1 if does == "break" or target == "talk" else 2  # a turn of a conversation has one end
        assert completion.token_ids.count(end) == given, target
        assert prompt.token_ids.count(end) == (2 if does == "break" else 3), "the tool's message and the user's"
        assert ("<\u200b|im_end|>" in completion.text) == (does == "break")
    assert sum("special tokens of the model" in message for message in caplog.messages) == (does != "refuse")


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(run_folder: Path, lit_rlvr: CLI) -> None:
    """With dropout. It validates by generation too, as its base does."""
    lora = ("--model.init_args.lora", "{rank: 4, dropout: 0.5, dora: true}")
    for root, more in (("whole", ()), ("cut", ("--trainer.max_steps", 3)), ("cut", ("--ckpt_path", "last"))):
        lit_rlvr(*FIT, "--model", "SFT", *lora, *to(root), *more, status=0)
    assert_same_run(run_folder / "cut", run_folder / "whole", resumed=3)
    assert summary(run_folder / "whole")["accuracy_after"] is not None
    assert losses("whole")[-1] < losses("whole")[0] and losses("whole", "val/arithmetic/loss")
    lit_rlvr(
        *FIT,
        "--model",
        "SFT",
        *lora,
        *to("cut"),
        "--ckpt_path",
        "last",
        "--trainer.max_steps",
        9,
        "--model.init_args.target",
        "solution",
        "--data.init_args.solution",
        "= {answer}",
        status=2,
        says="the completions in the training data (model.target) are not those",
    )


@pytest.mark.slow
def test_two_processes_have_the_loss_of_one(run_folder: Path, lit_rlvr: CLI) -> None:
    shared = (
        "--model",
        "SFT",
        "--data.init_args.held_out",
        "17",
        "--model.init_args.compute.tokens_per_microbatch",
        "60",
    )
    lit_rlvr(*FIT, *shared, *to("one"), status=0)
    in_two_processes(run_folder, *([*FIT, *way, *shared, *to(name)] for name, way in STRATEGIES.items()))
    for name in STRATEGIES:
        for metric in ("train/loss", "val/arithmetic/loss", "val/arithmetic/accuracy", "train/grad_norm"):
            assert losses(name, metric) == pytest.approx(losses("one", metric), rel=1e-5, abs=1e-6), (name, metric)


def test_adapters_alone_are_trained(run_folder: Path, lit_rlvr: CLI, tiny_model_folder: Path) -> None:
    lora = ("--model.init_args.lora.rank", 4, "--trainer.limit_val_batches", 0, "--model.init_args.lr", 1e-2)
    lit_rlvr(*FIT, "--model", "SFT", *lora, *to("lora"), status=0)
    assert losses("lora")[-1] < losses("lora")[0]
    assert lit_rlvr(*FIT, "--model", "SFT", *lora, "--model.init_args.lora.dropout", 0.5, *to("less")).status == 0
    assert losses("less")[0] == losses("lora")[0] and losses("less")[1] != losses("lora")[1], "B is 0 at first"
    assert lit_rlvr("export", "lora", "--to", "merged").status == 0
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (tiny_model_folder, "merged"))
    assert torch.equal(before.model.norm.weight, after.model.norm.weight)
    assert not torch.equal(before.model.layers[0].mlp.up_proj.weight, after.model.layers[0].mlp.up_proj.weight)


@pytest.mark.first_case_fast
@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"messages": talk("?", "a" * 300)},
            r"train.jsonl:2: answer: a completion of 301 tokens, and rollout.sampling",
        ),
        ({"messages": talk("?", " ", "?", "a")}, r"train.jsonl:2: prompt: the assistant's message 2 is empty"),
        ({"messages": talk("?", "a"), "said": 3}, r"train.jsonl:2: has no text in column 'said'; name the column"),
        (
            {"messages": talk("?", "a"), "said": talk("b")},
            r"train.jsonl:2: column 'said' has no message of the assistant",
        ),
        ({"messages": talk("?", "a", "b")}, r"train.jsonl:2: no turn of the assistant ends it, and it has no answer"),
        ({"messages": talk("?", "a"), "said": " "}, r"train.jsonl:2: has no text in column 'said'"),
    ],
)
def test_rows_without_an_answer_to_train_on_are_named(
    run_folder: Path, lit_rlvr: CLI, row: dict[str, Any], said: str
) -> None:
    rows = [{"messages": talk("Who?", "Me."), "said": "You."}, {"said": "x"} | row]
    (run_folder / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    target = ("--model.init_args.target", "said") if "said" in row else ()
    less = ("--rollout.rewards", "[]")
    result = lit_rlvr(
        *FIT, *DATA, *target, *LOSS_ONLY, *less, "--data.train", "train.jsonl", "--data.prompts_per_rollout", 1
    )
    (line,) = [line for line in result.err.splitlines() if "error: " in line]
    assert result.status == 2 and re.search(f"model.target: 1 of 2 rows cannot be used: .*{said}", line), line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (LOSS_ONLY, ""),
        (
            (*LOSS_ONLY, "--model.init_args.target", "nope"),
            "3 of 3 rows cannot be used: train.jsonl:1: has no text in ",
        ),
        (("--data.validation_split", 1), "rewards judge validation, and 1 of its rows have no answer (train.jsonl:"),
    ],
)
def test_rows_need_no_answer_where_none_is_judged(
    run_folder: Path, lit_rlvr: CLI, options: tuple[str, ...], said: str
) -> None:
    """Those of TRL have `prompt` and `completion`."""
    rows = [{"prompt": "1+1?", "completion": "2"}, {"prompt": talk("Who?"), "completion": talk("", "You")[1:]}]
    rows.append({"prompt": "2+2?", "completion": "4"})
    (run_folder / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    few = ("--data.train", "train.jsonl", "--data.prompts_per_rollout", 2, "--dry-run")
    once = ("--trainer.max_steps", -1, "--trainer.max_epochs", 1)
    result = lit_rlvr(*FIT, *DATA[:4], *few, *once, *options, status=2 if said else 0, says=said)
    assert said or "2 optimizer steps" in result.out, "an epoch has each of the three rows"


@pytest.mark.slow
def test_settings_that_do_not_apply_are_refused(run_folder: Path, lit_rlvr: CLI) -> None:
    lit_rlvr(*FIT, "--model", "SFT", "--rollout.replay.record", 1, status=2, says="SFT samples nothing to train on")
    lit_rlvr("tune", *FIT[1:], "--model", "SFT", status=2, says="tune: SFT samples nothing to train on")
    lit_rlvr(*FIT, *LOSS_ONLY, status=2, says="rollout.evaluation.samples: 0 for arithmetic measures the loss alone")
