"""Every paper recipe: its numbers against the papers', and one loss of what the command line builds from it."""

import json
import re
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from plans import plan_without_trainer
from tiny_built import Built, build_here, every_fourth
from transformers import PreTrainedTokenizerFast

from lit_rlvr import advantages as adv
from lit_rlvr.advantages import GroupBatch
from lit_rlvr.algorithms import RLVRModule
from lit_rlvr.configs import config_folder, load_config
from lit_rlvr.engines.base import EngineMemory
from lit_rlvr.objectives import LossInputs, aggregation_weights
from lit_rlvr.rewards.choice import Choice
from lit_rlvr.rewards.format import Format
from lit_rlvr.rewards.length import CosineScaled
from lit_rlvr.rewards.math import MathAnswer
from lit_rlvr.rewards.sql import SQLExecution
from lit_rlvr.rollout import RolloutCallback
from lit_rlvr.rollout.preflight.sizes import check_settings
from lit_rlvr.sizing.gpus import GPUs
from lit_rlvr.sizing.strategies import describe_job
from lit_rlvr.types import Completion, Sample

RECIPES = config_folder() / "recipes"
DOCS = (Path(__file__).parent.parent / "docs/recipes.md").read_text()
pytestmark = pytest.mark.filterwarnings("ignore:.*args parameter is intended to run from within Python.*")

IN_BLOCK = "Answer with one SQLite query in a ```sql block."
BOXED = "Please reason step by step, and put your final answer within \\boxed"


@dataclass
class Settings:
    """What a paper's runs on one model share, copied from the paper and, where it is silent, its released code.

    Args:
        prompts: per rollout; updates: optimizer steps per rollout. length, eval_length: tokens of a completion.
        eval: temperature and top_p. runs: completions per validation prompt.
        duration: ("epochs", n) or ("updates", n). decay: weight decay. schedule: name and warm-up steps.
        said: what the model is told, None = nothing. data: of the training set's location.
        validation: the validation set's location. options: further options of the data.
    """

    model: str
    prompts: int
    group: int
    updates: int
    temperature: float
    length: int
    eval_length: int
    gpus: int
    duration: tuple[str, int]
    said: str | None
    data: str
    validation: str = "HuggingFaceH4/MATH-500:test"
    prompt_length: int = 1024
    eval: tuple[float, float] = (0.6, 0.95)
    runs: int = 1
    decay: float = 0.0
    schedule: tuple[str, int] = ("constant", 0)
    lr: float = 1e-6
    validation: str | None = "HuggingFaceH4/MATH-500:test"
    options: dict[str, Any] = field(default_factory=dict)


def agrae_settings(model: str, eval_length: int = 4096) -> Settings:
    return Settings(
        model,
        prompts=1024,
        group=8,
        updates=1024 // 256,
        temperature=1.0,
        length=2048,
        eval_length=eval_length,
        gpus=8,
        duration=("epochs", 20),
        said=BOXED,
        data="MATH",
        runs=4,
        decay=0.01,
    )


def apmpo_settings(model: str) -> Settings:
    return Settings(
        model,
        prompts=512,
        group=8,
        updates=512 // 256,
        temperature=1.0,
        length=1024,
        eval_length=3072,
        gpus=4,
        duration=("updates", 400 * 2),
        said=BOXED,
        data="MATH",
        eval=(0.6, 1.0),
        decay=0.01,
    )


PIXELS = {"images": {"min_pixels": 256 * 28 * 28, "max_pixels": 1280 * 28 * 28}}
MODALITIES = {"train_modalities": {"MRI": 600}, "eval_modalities": {"MRI": 300, "CT": 300, "X-ray": 300}}


def agrae_vision_settings(prompts: int, epochs: int, data: str, **more: Any) -> Settings:
    return Settings(
        "Qwen/Qwen2.5-VL-3B-Instruct",
        prompts=prompts,
        group=5,
        updates=max(1, prompts // 256),
        temperature=1.0,
        length=2048,
        prompt_length=2048,
        eval_length=4096,
        gpus=8,
        duration=("epochs", epochs),
        runs=4,
        decay=0.01,
        said="The reasoning process MUST BE enclosed within <think> </think> tags.",
        data=data,
        **more,
    )


def llama_settings(model: str) -> Settings:
    return Settings(
        model,
        prompts=16 * 4 // 8,
        group=8,
        updates=1,
        temperature=1.0,
        length=3072,
        eval_length=3072,
        gpus=4,
        duration=("epochs", 1),
        said=None,
        data="simplelr_abel_level3to5",
        schedule=("constant", 32),
    )


SETTINGS = {
    "agrae/qwen2.5-math-7b": agrae_settings("Qwen/Qwen2.5-Math-7B", eval_length=4096 - 1024),
    "agrae/llama-3.2-3b": agrae_settings("meta-llama/Llama-3.2-3B-Instruct"),
    "agrae/deepseek-r1-7b": agrae_settings("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"),
    "apmpo/qwen2.5-math-1.5b": apmpo_settings("Qwen/Qwen2.5-Math-1.5B-Instruct"),
    "apmpo/qwen2.5-3b": apmpo_settings("Qwen/Qwen2.5-3B-Instruct"),
    "apmpo/deepseek-r1-1.5b": apmpo_settings("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"),
    "agrae/qwen2.5-vl-3b-geo3k": agrae_vision_settings(
        512, 20, "hiyouga/geometry3k:train", validation="hiyouga/geometry3k:test", options=PIXELS
    ),
    "agrae/qwen2.5-vl-3b-medical": agrae_vision_settings(
        32, 10, "medical_multimodel_evaluation_data.json", validation=None, options=PIXELS | MODALITIES
    ),
    "apmpo/qwen2.5-vl-3b-geo3k": replace(
        apmpo_settings("Qwen/Qwen2.5-VL-3B-Instruct"), length=2048, prompt_length=2048, eval_length=2048,
        data="hiyouga/geometry3k:train", validation="hiyouga/geometry3k:test", options=PIXELS,
    ),
    "apmpo/qwen2.5-coder-3b": replace(
        apmpo_settings("Qwen/Qwen2.5-Coder-3B-Instruct"), eval_length=1024, prompt_length=8192, said=IN_BLOCK,
        data="bird/train/train.json", validation="bird/dev/dev.json",
    ),
    "aapo/deepseek-r1-1.5b": Settings(
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", prompts=6 * 4 * 2 // 6, group=6, updates=1, temperature=0.7,
        length=3584, prompt_length=512, eval_length=32768 - 512, gpus=2, duration=("updates", 100),
        said="A conversation between User and Assistant.", data="knoveleng/open-rs", schedule=("cosine", 10),
    ),
    "aapo/qwen2.5-math-7b": Settings(
        "Qwen/Qwen2.5-Math-7B", prompts=8 * 4 * 8 // 8, group=8, updates=1, temperature=1.0, length=3072,
        eval_length=4096 - 1024, gpus=8, duration=("epochs", 1), said="You are a helpful AI Assistant, designed to",
        data="simplelr_qwen_level3to5", schedule=("constant", 8),
    ),
    "aapo/llama-3.2-1b": llama_settings("meta-llama/Llama-3.2-1B-Instruct"),
    "aapo/llama-3.2-3b": llama_settings("meta-llama/Llama-3.2-3B-Instruct"),
}  # fmt: skip


@dataclass
class Expected:
    """The algorithm of a recipe. `knobs` are attributes of the module."""

    algorithm: str
    advantage: Any
    knobs: dict[str, Any] = field(default_factory=dict)
    kl: float = 0.0


def expected() -> dict[str, Expected]:
    """Recipe -> algorithm, as the papers define them."""
    table: dict[str, Expected] = {}
    ppo, wide = {"clip_low": 0.2, "clip_high": 0.2}, {"clip_low": 0.2, "clip_high": 0.28}
    grpo, dr = adv.GRPOAdvantage(), adv.DrGRPOAdvantage()
    sequence, tokens, constant = ({"loss_options.aggregation": a} for a in ("sequence_mean", "token_mean", "constant"))
    for model in ("qwen2.5-math-7b", "llama-3.2-3b", "deepseek-r1-7b"):
        kl = 0.001 if model == "deepseek-r1-7b" else 0.0
        rows: dict[str, tuple[str, Any, dict[str, Any], float]] = {
            "grpo": ("GRPO", grpo, ppo | sequence, kl),
            "grpo_agrae": ("GRPO", adv.AGRAE(base="grpo", alpha=1.0), ppo | sequence, kl),
            "positive_dominant": ("GRPO", adv.PositiveDominant(base="grpo", beta=10.0), ppo | sequence, kl),
            "negative_dominant": ("GRPO", adv.NegativeDominant(base="grpo", beta=10.0), ppo | sequence, kl),
            "hard_focused": ("GRPO", adv.HardFocused(base="grpo", gamma=0.5), ppo | sequence, kl),
            "easy_focused": ("GRPO", adv.EasyFocused(base="grpo", gamma=0.5), ppo | sequence, kl),
            "dapo": ("DAPO", grpo, wide | tokens | {"selection.only_mixed": False}, 0.0),
            "dapo_agrae": ("DAPO", adv.AGRAE(base="grpo"), wide | tokens | {"selection.only_mixed": False}, 0.0),
            "dr_grpo": ("DrGRPO", dr, ppo | constant, 0.0),
            "dr_grpo_agrae": ("DrGRPO", adv.AGRAE(base="dr_grpo", alpha=1.0), ppo | constant, 0.0),
        }
        if model == "qwen2.5-math-7b":
            reinforce = adv.ReinforceAdvantage(positive_weight=0.1, negative_weight=1.0)
            rows["w_reinforce"] = ("GRPO", reinforce, ppo | tokens, 0.0)
            lead = adv.GRPOLeadAdvantage(alpha=0.05, weight_min=0.4, weight_max=1.5, slope=10.0, center=0.75)
            rows["grpo_lead"] = ("GRPOLead", lead, ppo | sequence, 0.0)
        table |= {f"agrae/{model}_{name}": Expected(*row) for name, row in rows.items()}
    for data in ("geo3k", "medical"):
        rows = {
            "grpo": ("GRPO", grpo, ppo | sequence, 0.0),
            "grpo_agrae": ("GRPO", adv.AGRAE(base="grpo", alpha=0.5), ppo | sequence, 0.0),
            "dapo": ("DAPO", grpo, wide | tokens | {"selection.only_mixed": False}, 0.0),
            "dapo_agrae": (
                "DAPO",
                adv.AGRAE(base="grpo", alpha=0.5),
                wide | tokens | {"selection.only_mixed": False},
                0.0,
            ),
            "dr_grpo": ("DrGRPO", dr, ppo | constant, 0.0),
            "dr_grpo_agrae": ("DrGRPO", adv.AGRAE(base="dr_grpo", alpha=0.5), ppo | constant, 0.0),
        }
        if data == "geo3k":
            rows["grpo_agrae_printed"] = rows["grpo_agrae"]  # other weights of the rewards
        table |= {f"agrae/qwen2.5-vl-3b-{data}_{name}": Expected(*row) for name, row in rows.items()}
    knobs = {"gamma": 0.8, "eps_low": 0.2, "eps_min": 0.2, "eps_max": 0.4, "adaptive_lower": False}
    knobs |= {
        f"schedule.{name}": value
        for name, value in {
            "delta": 1e-6,
            "power": None,
            "power_schedule": "exp",
            "squash": "tanh",
            "fss": "ratio",
            "statistics": "batch",
        }.items()
    }
    for model in ("qwen2.5-math-1.5b", "qwen2.5-3b", "deepseek-r1-1.5b", "qwen2.5-vl-3b-geo3k", "qwen2.5-coder-3b"):
        rows = {
            "apmpo": ("APMPO", grpo, knobs, 0.001),
            "grpo": ("GRPO", grpo, ppo | sequence, 0.001),
            "dapo": ("DAPO", grpo, wide | tokens | {"selection.only_mixed": False}, 0.001),
            "gmpo": ("GMPO", grpo, {"clip_low": 0.4, "clip_high": 0.4}, 0.001),
        }
        table |= {f"apmpo/{model}_{name}": Expected(*row) for name, row in rows.items()}
    for name, change in {
        "pmpo": {"eps_max": 0.2},
        "fac": {"schedule.power": 1.0},
        "fss_mean": {"schedule.fss": "mean"},
        "fss_inverse_std": {"schedule.fss": "inverse_std"},
        "linear_p": {"schedule.power_schedule": "linear"},
        "adaptive_lower": {"adaptive_lower": True},
        "gamma": {"gamma": 0.4},
        "eps": {"eps_min": 0.1, "eps_max": 0.3},
    }.items():
        table[f"apmpo/qwen2.5-math-1.5b_apmpo_{name}"] = Expected("APMPO", grpo, knobs | change, 0.001)
    per_group = {"loss_options.aggregation": "group_token_mean"}
    fresh = {"reference_completions.rollouts": "fresh", "reference.update_every": None}
    for model in ("deepseek-r1-1.5b", "qwen2.5-math-7b", "llama-3.2-1b", "llama-3.2-3b"):
        margin = adv.AAPOAdvantage(base="grpo", delta_low=-0.2, delta_high=0.28, clip=True, margin="paired")
        gpg = adv.GPGAdvantage(f_norm="one", rescale_valid=False)
        table[f"aapo/{model}_aapo"] = Expected("AAPO", margin, per_group | fresh)
        table[f"aapo/{model}_grpo"] = Expected("GRPO", grpo, sequence)
        table[f"aapo/{model}_gpg"] = Expected("GPG", gpg, per_group)
    return table


EXPECTED = expected()


def settings_of(recipe: str) -> Settings:
    return next(settings for name, settings in SETTINGS.items() if recipe.startswith(name + "_"))


@pytest.fixture(scope="module")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sums as text or geometry problems or questions to a database, four to train on and four held out; and eight as
    closed questions on MRI."""
    folder = tmp_path_factory.mktemp("data")
    sums = [
        {
            "problem": f"What is {i} + {i}?",
            "answer": str(2 * i),
            "images": [],
            "question": f"What is {i} + {i}?",
            "SQL": f"SELECT {2 * i}",
            "db_id": "sums",
        }
        for i in range(8)
    ]
    closed = [
        {
            "question": f"What is {i} + {i}?",
            "answer": str(2 * i),
            "options": ["1", str(2 * i)],
            "image": [],
            "subset": "MRI",
        }
        for i in range(8)
    ]
    for name, rows in (("sums", sums[:4]), ("held_out", sums[4:]), ("closed", closed)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "train_databases/sums").mkdir(parents=True)
    with closing(sqlite3.connect(folder / "train_databases/sums/sums.sqlite")) as database:
        database.execute("CREATE TABLE sums (a)")
    return folder


def build(recipe: str, model: Path, data: Path, root: Path) -> Built:
    """The recipe as the command line builds it, but for the model, the data and the machine."""
    medical = "medical" in recipe
    swapped = {
        "data.init_args.train": data / ("closed.jsonl" if medical else "sums.jsonl"),
        "data.init_args.validation": "null" if medical else data / "held_out.jsonl",
        **({f"data.init_args.{part}_modalities": "{MRI: 4}" for part in ("train", "eval")} if medical else {}),
    }
    return build_here(f"recipes/{recipe}", model, root, **swapped)


def test_every_recipe_is_in_the_table() -> None:
    files = {str(p.relative_to(RECIPES).with_suffix("")) for p in RECIPES.rglob("*.yaml")}
    assert {name for name in files if not name.startswith("base/")} == set(EXPECTED)


@pytest.mark.first_case_fast
@pytest.mark.parametrize("recipe", every_fourth(EXPECTED))
def test_a_recipe_runs_with_its_papers_settings(
    recipe: str,
    tmp_path: Path,
    tiny_model_folder: Path,
    tiny_data: Path,
    tiny_tokenizer: PreTrainedTokenizerFast,
    environment: None,
) -> None:
    wanted, settings = EXPECTED[recipe], settings_of(recipe)
    cli = build(recipe, tiny_model_folder, tiny_data, tmp_path)
    module, data, trainer = cli.model, cli.datamodule, cli.trainer
    rollout = next(c for c in trainer.callbacks if isinstance(c, RolloutCallback))

    assert type(module).__name__ == wanted.algorithm and module.advantage == wanted.advantage
    assert {name: attrgetter(name)(module) for name in wanted.knobs} == wanted.knobs
    assert module.kl.coef == wanted.kl and module.loss_options.entropy_coef == 0
    assert (module.lr, module.optim.weight_decay, module.updates_per_rollout, module.epochs_per_rollout) == (
        settings.lr,
        settings.decay,
        settings.updates,
        1,
    )
    assert (module.optim.lr_schedule, module.optim.warmup_steps) == settings.schedule
    assert (data.prompts_per_rollout, data.reading.max_prompt_tokens) == (settings.prompts, settings.prompt_length)
    assert (rollout.group_size, rollout.sampling.temperature, rollout.sampling.top_p, rollout.sampling.max_tokens) == (
        settings.group,
        settings.temperature,
        1.0,
        settings.length,
    )
    assert (rollout.eval_sampling.temperature, rollout.eval_sampling.top_p) == settings.eval
    assert (rollout.eval_sampling.max_tokens, rollout.evaluation.samples) == (settings.eval_length, settings.runs)
    assert ("updates", trainer.max_steps) == settings.duration or ("epochs", trainer.max_epochs) == settings.duration
    check_settings(rollout, module, plan_without_trainer(rollout, module, settings.prompts, settings.gpus))
    check_memory(recipe, cli, settings)

    check_rewards(recipe, rollout)
    data.tokenizer = tiny_tokenizer
    data.prompts_per_rollout = 2
    data.reading = replace(data.reading, max_prompt_tokens=4096)  # a byte is a token here
    data.setup("fit")
    assert len(data.prompts["train"]) == len(data.prompts["validation"]) == 4
    text = data.render(data.load("train")[0])
    if settings.said is None:
        assert text.startswith("<|im_start|>user\nWhat is 0 + 0?<|im_end|>")
    else:
        assert settings.said in text and "What is " in text
    check_loss(module, settings)


def machine_of(file: Path) -> GPUs:
    """The GPUs that the comment on `devices` names, in the recipe or the nearest config it is based on."""
    text = file.read_text()
    if found := re.search(r"devices: auto  # \S+: (\d+) x \w+ (\d+) GB", text):
        return GPUs(int(found[1]), float(found[2]))
    based = re.search(r"^base: (\S+)", text, re.MULTILINE)
    assert based, f"{file} names no machine"
    return machine_of((file.parent / based[1]).resolve())


def check_memory(recipe: str, cli: Built, settings: Settings) -> None:
    """With the paper's model and vLLM, what `auto` chooses fits on the paper's machine. Nothing asks the hub."""
    machine = machine_of(RECIPES / f"{recipe}.yaml")
    assert machine.count == settings.gpus and cli.config_init.fit.trainer.strategy == "auto"
    module = cli.model
    source = module.model_source
    here, source.model = source.model, settings.model
    rollout = next(c for c in cli.trainer.callbacks if isinstance(c, RolloutCallback))
    job = replace(describe_job(module, cli.datamodule, rollout, "bf16-mixed"), engine=EngineMemory(share=0.4))
    plan = job.choice(machine, None, None)
    source.model = here
    assert plan.fits, job.reason(plan)
    assert job.whole.parameters > 1e9 and job.reference == (module.kl.coef > 0 or recipe.endswith("_aapo"))


def check_rewards(recipe: str, rollout: RolloutCallback) -> None:
    if recipe.startswith("aapo/deepseek"):
        form, cosine = rollout.rewards
        assert (isinstance(form, Format), form.contains, form.pattern) == (True, "\n</think>\n", None)
        assert isinstance(cosine, CosineScaled) and (form.weight, cosine.weight) == (1.0, 2.0)
        assert cosine.ends == {True: (1.0, 0.5), False: (-0.5, 0.0)} and cosine.max_length == 3584
    elif recipe.startswith("agrae/qwen2.5-vl"):
        answer, form = rollout.rewards
        assert type(answer) is (Choice if "medical" in recipe else MathAnswer) and answer.init_args["boxed_only"]
        weights = (0.1, 0.9) if recipe.endswith("_printed") else (0.9, 0.1)
        assert (answer.weight, form.weight) == weights and isinstance(form, Format)
        formed = {
            "<think>a\nb</think> so \\boxed{B}.": 1,
            "so <think>a</think> \\boxed{B}": 0,
            "\\boxed{B}": 0,
            "<think>\\boxed{B}</think> B": 0,
            "<think></think> \\boxed{": 0,
            "<think> \\boxed{B}": 0,
        }
        assert {t: form(Completion(t, (1,), "stop"), Sample("a", "?", "B")) for t in formed} == formed
    elif recipe.startswith("apmpo/qwen2.5-coder"):
        (sql,) = rollout.rewards
        assert isinstance(sql, SQLExecution) and (sql.weight, sql.comparison, sql.cpu_seconds) == (1.0, "bird", 30.0)
    else:
        (answer,) = rollout.rewards
        assert type(answer) is MathAnswer and answer.weight == 1.0
        assert answer.init_args["boxed_only"] == (not recipe.startswith("aapo"))


def check_loss(module: RLVRModule, settings: Settings) -> None:
    """Advantages and loss of random numbers, some groups all right or all wrong, are finite; so is the gradient."""
    prompts, size, length = 6, settings.group, 7
    generator = torch.Generator().manual_seed(0)
    correct = (torch.rand(prompts, size, generator=generator) < torch.linspace(0, 1, prompts)[:, None]).float()
    lengths = torch.randint(1, length + 1, (prompts, size), generator=generator)
    reference = (torch.rand(prompts, size, generator=generator) < 0.3).float()
    advantages, _ = module.estimate(GroupBatch(correct, correct, reference, lengths.float()))
    assert (advantages != 0).any()
    mask = torch.arange(length)[None] < lengths.reshape(-1, 1)  # (B, T)
    rows = prompts * size
    old, ref = (-torch.rand(rows, length, generator=generator) for _ in range(2))
    logp = (old + 0.1 * torch.randn(rows, length, generator=generator)).requires_grad_()
    tokens = float(mask.sum())
    weight = aggregation_weights(mask, size, module.loss_options.aggregation, rows, tokens, settings.length).float()
    x = LossInputs(
        logp=logp,
        old_logp=old,
        mask=mask,
        advantages=advantages.reshape(-1, 1),
        token_weight=weight,
        row_weight=torch.full((rows,), 1 / rows),
        prompt=torch.arange(rows) // size,
        plain_weight=weight,
        rollout_logp=old,
        ref_logp=ref if module.kl.coef else None,
    )
    objective, _ = module.objective(x)
    loss, _ = module.loss(x)
    loss.backward()
    assert logp.grad.isfinite().all()
    assert bool((logp.grad != 0).any())
    assert loss.isfinite() and (loss > objective if module.kl.coef else loss == objective)


@pytest.mark.first_case_fast
@pytest.mark.parametrize("recipe", EXPECTED)
def test_a_recipe_names_its_model_data_machine_and_folder(recipe: str) -> None:
    """What `test_a_recipe_runs_with_its_papers_settings` swaps out."""
    settings, config = settings_of(recipe), load_config(RECIPES / f"{recipe}.yaml")
    assert config["model"]["init_args"]["model"] == settings.model
    assert settings.data in config["data"]["init_args"]["train"]
    assert config["data"]["init_args"]["validation"] == settings.validation
    assert settings.options == {name: config["data"]["init_args"][name] for name in settings.options}
    trainer = config["trainer"]
    assert (trainer["devices"], trainer["strategy"]) == ("auto", "auto") and "accelerator" not in trainer
    assert trainer["default_root_dir"] == f"runs/{recipe}"
    assert f"`{recipe.rpartition('/')[2].partition('_')[0]}_`" in DOCS and f"`{recipe.partition('_')[2]}`" in DOCS


def test_a_recipe_with_the_tiny_model_loads_it(
    tmp_path: Path, tiny_model_folder: Path, tiny_data: Path, environment: None
) -> None:
    """With a reference model, where its advantage needs one."""
    module = build("aapo/llama-3.2-1b_aapo", tiny_model_folder, tiny_data, tmp_path).model
    module.configure_model()
    assert module.policy.model.config.vocab_size == module.reference.policy.model.config.vocab_size
