"""A teacher: its term in the advantages, what it needs of memory, and which teachers are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import VOCAB, byte_tokenizer, plain_divergence, plain_logprobs, save_model, tiny_llama
from tiny_environments import Dice
from tiny_fit import T_MAX, Recorder, assert_same, fit
from tiny_runs import FIT

from lit_rlvr.advantages import GPGAdvantage
from lit_rlvr.algorithms import GRPO, GSPO, OPD
from lit_rlvr.datamodules import PromptDataModule, TextMath
from lit_rlvr.datamodules.reading.cells import BadRow
from lit_rlvr.datamodules.reading.options import ReadingOptions
from lit_rlvr.errors import UserError
from lit_rlvr.options import Lora, Teacher
from lit_rlvr.policy.sources import weights_version
from lit_rlvr.rollout.record import Replay
from lit_rlvr.sampling import Sampling
from lit_rlvr.sizing.memory import Strategy
from lit_rlvr.training.teachers import Demonstration
from lit_rlvr.types import Completion, Prompt, Sample


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the tokens of the tiny Llama and other weights."""
    return save_model(tiny_llama(1), tmp_path_factory.mktemp("teacher") / "model")


@pytest.mark.parametrize(("algorithm", "coef"), [(OPD, 1.0), (GRPO, 0.3)], ids=["OPD", "GRPO"])
def test_the_gradient_is_that_of_the_divergence_and_of_the_rewards(
    algorithm: Any, coef: float, teacher: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """Against one unpadded sequence at a time; the rewards are no part of OPD."""
    given = {"teacher": Teacher(str(teacher), coef), "loss": {"aggregation": "token_mean"}}
    _, seen = fit(tiny_model_folder, tmp_path, algorithm=algorithm, **given)
    rollout, student, other = seen.rollouts[0], tiny_llama(), tiny_llama(1)
    rewards, tokens = rollout.rewards, int(rollout.mask.sum())
    standard = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, correction=0, keepdim=True) + 1e-6)
    total, divergence = torch.zeros(()), 0.0
    for p, group in enumerate(rollout.completions):
        for g, completion in enumerate(group):
            ids = rollout.prompts[p].token_ids, completion.token_ids, rollout.sampling
            mine, its = (plain_logprobs(model, *ids)[0] for model in (student, other))
            closer = (its - mine).detach()
            divergence -= float(closer.sum())
            advantage = coef * closer + (standard[p, g].float() if algorithm is GRPO else 0.0)
            assert float(rollout.advantages[p, g]) == pytest.approx(float(advantage.mean()), abs=1e-5)
            total = total - (advantage * mine).sum() / tokens
    assert seen.metrics[0]["train/teacher_kl"] == pytest.approx(divergence / tokens, abs=1e-5)
    assert seen.metrics[0]["train/no_signal"] == 0
    wanted = torch.autograd.grad(total, [*student.parameters()])
    for (name, _), gradient in zip(student.named_parameters(), wanted, strict=True):
        torch.testing.assert_close(seen.gradients[0][name], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.first_case_fast
@pytest.mark.parametrize(
    ("algorithm", "beta", "top_k", "aggregation"),
    [
        (OPD, 0.0, None, "token_mean"),
        (GRPO, 0.4, 12, "sequence_mean"),
        (OPD, 1.0, None, "sequence_mean"),
    ],
)
def test_the_divergence_over_the_vocabulary_is_a_term_of_the_loss(
    algorithm: Any,
    beta: float,
    top_k: int | None,
    aggregation: str,
    teacher: Path,
    tiny_model_folder: Path,
    tmp_path: Path,
) -> None:
    """Against one unpadded sequence and one token at a time, with the temperature and the banned tokens of sampling."""
    sampling = Sampling(temperature=0.8, max_tokens=T_MAX, banned_token_ids=(60, 200))
    given = {"teacher": Teacher(str(teacher), 0.5, beta=beta, top_k=top_k), "loss": {"aggregation": aggregation}}
    _, seen = fit(tiny_model_folder, tmp_path, algorithm=algorithm, sampling=sampling, **given)
    rollout, student, other = seen.rollouts[0], tiny_llama(), tiny_llama(1)
    tokens, total, divergence = int(rollout.mask.sum()), torch.zeros(()), 0.0
    rewards = rollout.rewards
    standard = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, correction=0, keepdim=True) + 1e-6)
    for p, group in enumerate(rollout.completions):
        for g, completion in enumerate(group):
            ids = rollout.prompts[p].token_ids, completion.token_ids, rollout.sampling
            logp, mine = plain_logprobs(student, *ids)
            with torch.no_grad():
                its = plain_logprobs(other, *ids)[1]
            each = torch.stack([plain_divergence(s, t, beta, top_k) for s, t in zip(mine, its, strict=True)])
            divergence += float(each.detach().sum())
            share = 1 / tokens if aggregation == "token_mean" else 1 / (len(rollout.mask) * len(each))
            reward = standard[p, g].float() if algorithm is GRPO else 0.0
            total = total + (0.5 * each - reward * logp).sum() * share
    metrics = seen.metrics[0]
    assert metrics["train/teacher_divergence"] == pytest.approx(divergence / tokens, rel=1e-5)
    assert "train/teacher_kl" not in metrics
    wanted = torch.autograd.grad(total, [*student.parameters()])
    assert_same(seen.gradients[0], dict(zip(dict(student.named_parameters()), wanted, strict=True)))


@pytest.mark.parametrize("beta", [None, 0.5])
def test_what_a_teacher_has_no_embedding_for_is_not_sampled(beta: float | None, teacher: Path, tmp_path: Path) -> None:
    """As Qwen2.5 of 7B with 3B as its teacher, whose output embeddings are padded differently."""
    student = tiny_llama()
    student.resize_token_embeddings(4 * VOCAB, mean_resizing=False)
    student.generation_config = tiny_llama().generation_config
    _, seen = fit(
        save_model(student, tmp_path / "wide"), tmp_path, algorithm=OPD, teacher=Teacher(str(teacher), beta=beta)
    )
    rollout, total = seen.rollouts[0], 0.0
    assert int(rollout.token_ids.max()) < VOCAB
    for prompt, group in zip(rollout.prompts, rollout.completions, strict=True):
        for completion in group:
            mine, all_mine = plain_logprobs(student, prompt.token_ids, completion.token_ids, rollout.sampling)
            its, all_its = plain_logprobs(tiny_llama(1), prompt.token_ids, completion.token_ids)
            each = (
                mine - its
                if beta is None
                else torch.stack([plain_divergence(s[:VOCAB], t, beta) for s, t in zip(all_mine, all_its, strict=True)])
            )
            total += float(each.detach().sum())
    name = "train/teacher_kl" if beta is None else "train/teacher_divergence"
    assert seen.metrics[0][name] == pytest.approx(total / int(rollout.mask.sum()), rel=1e-4)


def questions(folder: Path, reading: ReadingOptions | None = None, **changed: Any) -> TextMath:
    """Rows with a subject and a demonstration."""
    rows = [
        {"prompt": f"{n}+1=", "answer": str(n + 1), "subject": ("one", "two")[n % 2], "solution": f"It is {{{n + 1}}}."}
        for n in range(4)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row | changed) + "\n" for row in rows))
    return TextMath(train=str(folder / "rows.jsonl"), prompts_per_rollout=4, reading=reading or ReadingOptions())


def assert_taught(seen: Recorder, teacher_of: Callable[[int, Prompt], tuple[Any, list[int]]], iteration: int) -> None:
    """Compare the advantages of an iteration with those of a teacher's model behind its prompt."""
    rollout, student = seen.rollouts[iteration], tiny_llama()
    student.load_state_dict(seen.weights[iteration], strict=False)
    for p, group in enumerate(rollout.completions):
        model, asked = teacher_of(p, rollout.prompts[p])
        for g, completion in enumerate(group):
            mine, _ = plain_logprobs(student, rollout.prompts[p].token_ids, completion.token_ids, rollout.sampling)
            its, _ = plain_logprobs(model, asked, completion.token_ids, rollout.sampling)
            assert float(rollout.advantages[p, g]) == pytest.approx(float((its - mine).mean()), abs=1e-5)


def test_each_row_has_the_teacher_that_a_column_names(teacher: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    third = save_model(tiny_llama(2), tmp_path / "third")
    taught = Teacher({"one": str(teacher), "two": str(third)}, column="subject")
    numbered: Any = {1: "folder", 2: "other"}  # as YAML reads such labels
    assert Teacher(numbered, column="grade").models == {"1": "folder", "2": "other"}
    _, seen = fit(tiny_model_folder, tmp_path, algorithm=OPD, teacher=taught, data=questions(tmp_path))
    models = {"one": tiny_llama(1), "two": tiny_llama(2)}
    subjects = [prompt.sample.row["subject"] for prompt in seen.rollouts[0].prompts]
    assert {*subjects} == {*models}
    assert_taught(seen, lambda p, prompt: (models[subjects[p]], prompt.token_ids), 0)
    with pytest.raises(UserError, match=r"model.teacher: 4 of 4 rows.*rows.jsonl:1: subject: 'art' names no teacher"):
        fit(tiny_model_folder, tmp_path, algorithm=OPD, teacher=taught, data=questions(tmp_path, subject="art"))


def judges_half(completion: Completion, sample: Sample) -> float | None:
    return None if len(completion.text) % 2 else float(len(completion.text))


@pytest.mark.parametrize("rewards", [[], [judges_half]], ids=["none", "half"])
def test_completions_without_a_reward_learn_from_the_teacher_alone(
    rewards: list[Any], teacher: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """And, without any reward, from rows without an answer."""
    rows = [{"prompt": f"{n}+1="} | ({"answer": "1"} if rewards else {}) for n in range(4)]
    given: dict[str, Any] = {"algorithm": GRPO, "rewards": rewards}
    data = PromptDataModule(train=rows, prompts_per_rollout=4)
    module, seen = fit(tiny_model_folder, tmp_path, 3, data=data, teacher=Teacher(str(teacher)), **given)
    rollout, student, other = seen.rollouts[0], tiny_llama(), tiny_llama(1)
    lengths = torch.tensor([[float(len(one.text)) for one in group] for group in rollout.completions])
    judged = lengths % 2 == 0 if rewards else torch.zeros_like(lengths, dtype=torch.bool)
    assert (bool(rollout.mask.any(1).all()), module.skipped.total, len(seen.gradients)) == (True, 0, 3)
    for p, group in enumerate(rollout.completions):
        paid = lengths[p][judged[p]].double()
        for g, completion in enumerate(group):
            ids = rollout.prompts[p].token_ids, completion.token_ids, rollout.sampling
            mine, its = (plain_logprobs(model, *ids)[0].detach() for model in (student, other))
            reward = (lengths[p, g] - paid.mean()) / (paid.std(correction=0) + 1e-6) if judged[p, g] else 0.0
            wanted = float((its - mine).mean()) + float(reward)
            assert float(rollout.advantages[p, g]) == pytest.approx(wanted, abs=1e-5)
    assert bool(judged.any()) == bool(rewards) and not judged.all()
    with pytest.raises(UserError, match="no column 'answer'" if rewards else "rewards is empty: give"):
        fit(tiny_model_folder, tmp_path, data=PromptDataModule(train=[{"prompt": "1"}], prompts_per_rollout=1), **given)
    validated = PromptDataModule(train=rows, validation=[{"prompt": "9+1="}], prompts_per_rollout=4)
    if not rewards:
        with pytest.raises(UserError, match=r"to a prompt of prompt_data_module validation is right; give a reward"):
            fit(tiny_model_folder, tmp_path, data=validated, teacher=Teacher(str(teacher)), **given)
        for more, said in (
            (
                {"advantage": GPGAdvantage(min_valid_fraction=0.5)},
                "dynamic_sampling, or the advantage's min_valid_fraction",
            ),
            ({"kl": {"coef": 0.1, "in_reward": True}}, "model.kl.in_reward: it needs rewards"),
            ({"loss": {"positive_nll_coef": 0.1}}, "model.loss.positive_nll_coef: it needs rewards"),
        ):
            data = PromptDataModule(train=rows, prompts_per_rollout=4)
            with pytest.raises(UserError, match=said):
                fit(tiny_model_folder, tmp_path, data=data, teacher=Teacher(str(teacher)), **given, **more)


def test_a_replay_masks_by_its_own_teacher(teacher: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    """Completions without a judge are in the loss if the new run has a teacher, whether or not the recorded one had."""
    rows = [{"prompt": f"{n}+1=", "answer": "1"} for n in range(4)]
    found: dict[str, Any] = {}

    def train(name: str, taught: bool, recorded: str | None = None) -> None:
        replay = Replay(record=1.0) if recorded is None else Replay(record=0.0, rollouts_from=str(tmp_path / recorded))
        _, seen = fit(
            tiny_model_folder,
            tmp_path / name,
            algorithm=GRPO,
            rewards=[judges_half],
            replay=replay,
            teacher=Teacher(str(teacher)) if taught else None,
            data=PromptDataModule(train=rows, prompts_per_rollout=4),
        )
        found[name] = seen

    train("alone", False)
    train("taught", True)
    train("alone again", False, "taught")
    train("taught again", True, "alone")
    assert not torch.equal(found["alone"].rollouts[0].mask, found["taught"].rollouts[0].mask)
    for name in ("alone", "taught"):
        assert torch.equal(found[name].rollouts[0].mask, found[f"{name} again"].rollouts[0].mask)
        assert_same(found[name].gradients[0], found[f"{name} again"].gradients[0], relative=0.0)
    assert "teacher" in json.loads((tmp_path / "taught/record/run.json").read_text())


@pytest.mark.parametrize("ema", [None, 0.25], ids=["live", "average"])
def test_a_policy_learns_from_itself_behind_a_demonstration(
    ema: float | None, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """The teacher's prompt holds the column's text as it is, and the student's tokens follow it unchanged."""
    taught = Teacher(prompt=Demonstration("solution", "{prompt} Hint: {demonstration}"), ema=ema)
    data = questions(tmp_path)
    _, seen = fit(tiny_model_folder, tmp_path, 3, algorithm=OPD, teacher=taught, data=data)
    own = tiny_llama()

    def teacher_of(p: int, prompt: Prompt) -> tuple[Any, list[int]]:
        row = prompt.sample.row
        text = data.tokenizer.apply_chat_template(
            [{"role": "user", "content": f"{row['prompt']} Hint: {row['solution']}"}],
            tokenize=False,
            add_generation_prompt=True,
        )
        return own, data.tokenizer(text, add_special_tokens=False).input_ids

    for iteration in range(3):
        with torch.no_grad():
            for name, parameter in own.named_parameters():
                parameter.lerp_(seen.weights[iteration][name], 1.0 if ema is None else ema)
        assert_taught(seen, teacher_of, iteration)


def test_what_a_demonstration_may_be() -> None:
    asks = Demonstration("shown", "{prompt} Hint: {demonstration}").ask
    talk = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]
    rules, question = {"role": "system", "content": "Add."}, {"role": "user", "content": "2+2="}

    def asked(shown: Any, prompt: Any = "2+2=") -> Any:
        return asks(Sample("a", prompt, "4", row={"shown": shown})).prompt

    for hint, text in (
        ("It is 4.", "It is 4."),
        (talk[1:], "2"),
        (["one", "two"], "one, two"),
        ("<image>", "<\u200bimage>"),
    ):
        assert asked(hint) == [{"role": "user", "content": f"2+2= Hint: {text}"}]
    assert asked(talk, [rules, question]) == [rules, *talk, question]
    assert asked(json.dumps(talk)) == [*talk, question]
    for wrong in (talk[:1], [{"role": "nobody", "content": "2"}], [*talk, question], ""):
        with pytest.raises(BadRow) as refused:
            asked(wrong)
        assert refused.value.field == "shown"


def test_the_divergence_from_oneself_is_behind_the_demonstration_too(tiny_model_folder: Path, tmp_path: Path) -> None:
    """With the live policy as the teacher, in a step of several micro-batches."""
    taught = Teacher(prompt=Demonstration("solution", "{prompt} Hint: {demonstration}"), beta=0.0)
    data = questions(tmp_path)
    given = {"teacher": taught, "data": data, "compute": {"tokens_per_microbatch": 100}}
    _, seen = fit(tiny_model_folder, tmp_path, algorithm=OPD, **given)
    rollout, own, total = seen.rollouts[0], tiny_llama(), torch.zeros(())
    for prompt, group in zip(rollout.prompts, rollout.completions, strict=True):
        text = f"{prompt.sample.row['prompt']} Hint: {prompt.sample.row['solution']}"
        asked = data.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for completion in group:
            mine = plain_logprobs(own, prompt.token_ids, completion.token_ids, rollout.sampling)[1]
            its = plain_logprobs(own, asked, completion.token_ids, rollout.sampling)[1].detach()
            total = total + sum(plain_divergence(s, t, 0.0) for s, t in zip(mine, its, strict=True))
    total = total / int(rollout.mask.sum())
    assert seen.metrics[0]["train/teacher_divergence"] == pytest.approx(float(total.detach()), rel=1e-5)
    wanted = torch.autograd.grad(total, [*own.parameters()])
    assert_same(seen.gradients[0], dict(zip(dict(own.named_parameters()), wanted, strict=True)))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"kl": {"coef": 0.1}}, torch.bfloat16),
        ({"kl": {"coef": 0.1, "reference_update_every": 1}}, torch.float32),
        ({"teacher": Teacher(prompt=Demonstration("solution"), ema=0.5)}, torch.float32),
    ],
    ids=["reference", "renewed", "average"],
)
def test_frozen_weights_have_the_type_of_products_unless_they_are_renewed(
    options: dict[str, Any], wanted: torch.dtype, tmp_path: Path
) -> None:
    folder = save_model(tiny_llama().bfloat16(), tmp_path / "published")
    half = {"precision": "bf16-mixed"}
    module, _ = fit(folder, tmp_path, data=questions(tmp_path), trainer_options=half, **options)
    (policy,) = [one for one in (module.reference.policy, *module.teachers.policies) if one is not None]
    assert {parameter.dtype for parameter in policy.parameters()} == {wanted}


@pytest.mark.parametrize("first", ["none", "average"])
def test_a_run_resumes_with_another_teacher(first: str, teacher: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    """A folder's weights stay its own, and an average that is new begins at the initial weights."""
    average = Teacher(prompt=Demonstration("subject"), ema=0.5)
    folder = Teacher(str(teacher), prompt=Demonstration("subject"))
    before, after = {"none": (None, average), "average": (average, folder)}[first]
    given: dict[str, Any] = {"algorithm": GRPO, "rewards": ["tiny_rewards.graded"]}
    module, _ = fit(tiny_model_folder, tmp_path, data=questions(tmp_path), teacher=before, **given)
    module.trainer.save_checkpoint(tmp_path / "1.ckpt")
    more = {"data": questions(tmp_path), "teacher": after, "checkpoint": tmp_path / "1.ckpt"} | given
    resumed, _ = fit(tiny_model_folder, tmp_path, 2, **more)
    held = resumed.teachers.held[""].policy.model.state_dict()
    begun = tiny_llama(1 if after is folder else 0).state_dict()
    for name, weight in resumed.policy.model.state_dict().items():
        wanted = begun[name] if after is folder else (begun[name] + weight) / 2
        torch.testing.assert_close(held[name], wanted)


def test_a_resumed_run_says_which_frozen_weights_have_changed(
    teacher: Path,
    tiny_model_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A teacher's version is in the checkpoint; it is that of all its files, wherever in them a weight lies."""
    copy = shutil.copytree(teacher, tmp_path / "copy")
    given = {"algorithm": GRPO, "teacher": Teacher(str(copy)), "kl": {"coef": 0.1}}
    module, _ = fit(tiny_model_folder, tmp_path, **given)
    module.trainer.save_checkpoint(tmp_path / "1.ckpt")
    fit(tiny_model_folder, tmp_path, 2, checkpoint=tmp_path / "1.ckpt", **given)
    assert "resumed with changed" not in caplog.text
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: "models--a--b/snapshots/0c1d/config.json")
    assert weights_version("a/b") == "0c1d"
    before = weights_version(copy)
    assert before == weights_version(teacher) == module.models.frozen_versions()["teacher"]
    for part in ("embed_tokens", "down_proj"):
        other = tiny_llama(1)
        with torch.no_grad():
            next(p for name, p in other.named_parameters() if part in name)[0, 0] += 1
        assert weights_version(save_model(other, tmp_path / part)) != before
    save_model(tiny_llama(2), copy)
    fit(tiny_model_folder, tmp_path, 2, checkpoint=tmp_path / "1.ckpt", **given)
    assert "resumed with changed weights that it does not train: teacher;" in caplog.text


def test_a_run_resumes_without_the_reference_that_it_renewed(tiny_model_folder: Path, tmp_path: Path) -> None:
    module, _ = fit(tiny_model_folder, tmp_path, kl={"coef": 0.1, "reference_update_every": 1})
    module.trainer.save_checkpoint(tmp_path / "1.ckpt")
    resumed, _ = fit(tiny_model_folder, tmp_path, 2, checkpoint=tmp_path / "1.ckpt")
    assert resumed.iteration == 2 and resumed.reference.policy is None


def test_another_tokenizer_is_refused_by_its_first_difference(tiny_model_folder: Path, tmp_path: Path) -> None:
    other = save_model(tiny_llama(1), tmp_path / "other")
    for old, new, message in (
        (
            "<|im_start|>",
            "<|start|>",
            r"is '<\|start\|>' in .*other and '<\|im_start\|>' in .*prompts or thoughts have it",
        ),
        ('"a":', '"qq":', r"is 'qq' in .*other and 'a' in .*; use a model with the same tokenizer"),
    ):
        byte_tokenizer().save_pretrained(other)
        file = other / "tokenizer.json"
        file.write_text(file.read_text().replace(old, new))
        with pytest.raises(UserError, match=rf"model.teacher.model: token \d+ {message}"):
            fit(tiny_model_folder, tmp_path, algorithm=OPD, teacher=Teacher(str(other)))


def test_a_teacher_may_have_other_names_of_tokens_that_no_prompt_has(
    tiny_model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = save_model(tiny_llama(1), tmp_path / "other")
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|more|>"]})
    tokenizer.save_pretrained(other)
    fit(tiny_model_folder, tmp_path, algorithm=OPD, teacher=Teacher(str(other)))
    assert "1 added tokens have other names (token" in caplog.text and "no prompt has one" in caplog.text


def test_teachers_that_a_run_cannot_use_are_refused(
    teacher: Path, tiny_model_folder: Path, vlm_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"model.teacher: it gives each token an advantage, and GSPO weighs whole"):
        GSPO(teacher=Teacher(str(teacher)))
    assert GSPO(teacher=Teacher(str(teacher), beta=1.0)).teachers.in_loss
    for wrong, said in (
        (dict(model="folder", coef=0.0), "coef: 0"),
        (dict(), "model: null is the policy itself, which needs another prompt"),
        (dict(model={"a": "folder"}), "column: it names the row's model in a dict"),
        (dict(model="folder", ema=0.1), "ema: it averages the policy's weights"),
        (dict(prompt=Demonstration("solution"), ema=2.0), "ema: 2"),
        (dict(model="folder", beta=1.5), r"beta: 1.5 must lie in \[0, 1\]"),
        (dict(model="folder", beta=1.0, top_k=0), "top_k: 0 must lie in"),
        (dict(model="folder", top_k=20), "top_k: the divergence of the sampled token needs no others"),
        (dict(model="http://host:1", beta=1.0), "beta: the divergence over the vocabulary needs all of one teacher's"),
        (dict(model={"a": "folder"}, column="c", beta=1.0), "beta: the divergence over the vocabulary needs all of"),
    ):
        with pytest.raises(UserError, match=f"model.teacher.*{said}"):
            Teacher(**wrong)
    with pytest.raises(UserError, match=r"template: there is no {demonstration} in '{prompt} please'"):
        Demonstration("solution", "{prompt} please")
    shutil.copytree(vlm_folder, tmp_path / "vlm")
    byte_tokenizer().save_pretrained(tmp_path / "vlm")
    own, short = Teacher(prompt=Demonstration("solution")), ReadingOptions(max_prompt_tokens=40)
    cases: list[tuple[str, Teacher | None, dict[str, Any], dict[str, Any]]] = [
        (r"teacher: 4 of 4 rows cannot be used: .*rows.jsonl:1: solution: empty", own, {"solution": ""}, {}),
        (r"teacher: prompt .* has \d+ tokens, which with rollout.sampling.max_t", own, {"solution": "1" * 2040}, {}),
        (r"teacher.prompt: a teacher with a prompt of its own would not see what", own, {}, {"environment": Dice()}),
        (r"rows.jsonl:1: the teacher's prompt: 320 tokens or more; raise data.init_ar", own,
         {"solution": "1" * 400, "reading": short}, {}),
        (r"teacher.ema: there is no average of adapters", Teacher(prompt=Demonstration("solution"), ema=0.1), {},
         {"lora": Lora()}),
        (r"teacher.model: a server scores without images and at temperature 1", Teacher("http://localhost:1"), {},
         {"sampling": Sampling(temperature=0.7, max_tokens=9)}),
        (r"teacher.model: there is no folder './none'", Teacher("./none"), {}, {}),
        (r"teacher.model: OPD learns from a teacher", None, {}, {}),
        (r"teacher.model: .*vlm takes other images than .*; use a teacher of the", Teacher(str(tmp_path / "vlm")), {},
         {}),
    ]  # fmt: skip
    for said, chosen, row, options in cases:
        given = options | {"data": questions(tmp_path, **row), "teacher": chosen}
        with pytest.raises(UserError, match=said):
            fit(tiny_model_folder, tmp_path, algorithm=OPD, **given)


@pytest.mark.slow
def test_a_plan_counts_the_teacher(
    teacher: Path, run_folder: Path, lit_rlvr: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, float]] = []
    monkeypatch.setattr(
        "lit_rlvr.cli.subcommands.show_plan",
        lambda job, gpus, *_: seen.append(job.plan(Strategy(False, True), gpus, job.budget).terms),
    )
    named = ("--model.init_args.teacher.model", str(teacher))
    for more in ((), named, (*named, "--model.init_args.teacher.beta", "0.5")):
        lit_rlvr("plan", *FIT[1:], "--gpus", "1x80GB", *more, status=0)
    alone, taught, compared = seen
    assert compared["temporary"] - taught["temporary"] > 12 * 4 * VOCAB  # bytes of the logits of one micro-batch
    assert compared | {"temporary": taught["temporary"]} == taught
    assert taught == alone | {"teacher": 4 * sum(parameter.numel() for parameter in tiny_llama().parameters())}
