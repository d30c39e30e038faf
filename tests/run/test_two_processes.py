"""Two processes do what one does, by DDP and by FSDP2: real `lit-rlvr fit` runs with gloo on the CPU."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from tiny import save_adapter, save_model, tiny_llama
from tiny_rewards import judged_as_is
from tiny_runs import (
    CLI,
    FIT,
    STRATEGIES,
    assert_same_training,
    completions,
    in_two_processes,
    launch,
    metrics,
    summary,
    tiny_config,
    to,
    weights,
    write_config,
)
from tiny_vlms import picture, write_clip

from lit_rlvr.distributed.fsdp2 import FSDP2
from lit_rlvr.errors import UserError

HSDP = (*STRATEGIES["fsdp2"], "--trainer.strategy.init_args.replicas", "2")
OFFLOAD = (*STRATEGIES["fsdp2"], "--trainer.strategy", "{class_path: tiny_strategies.OffloadedHere}")


@pytest.mark.parametrize(
    "strategies",
    [
        pytest.param(STRATEGIES, id="plain", marks=pytest.mark.slow),
        pytest.param({"hsdp": HSDP, "offload": OFFLOAD}, id="special", marks=pytest.mark.exhaustive),
    ],
)
def test_two_processes_end_where_one_does(
    run_folder: Path, lit_rlvr: CLI, strategies: dict[str, tuple[str, ...]]
) -> None:
    """With what could differ: a last validation batch of one prompt, small micro-batches, dead groups, a KL term.

    The micro-batches have one group each, so that the noise scale is the same, too."""
    shared = (
        "--data.init_args.held_out", "17", "--rollout.evaluation", "{samples: 2, sampling: {temperature: 1}}",
        "--model.init_args.compute.tokens_per_microbatch", "120", "--model.init_args.kl.coef", "0.1",
        "--model.init_args.lr", "1e-4", "--model.init_args.loss.aggregation", "token_mean",
    )  # fmt: skip
    lit_rlvr(*FIT, *shared, *to("one"), status=0)
    commands = ([*FIT, *strategy, *shared, *to(name)] for name, strategy in strategies.items())
    said = in_two_processes(run_folder, *commands)
    assert said.count("step 6/6") == said.count("2 rank(s)") == len(strategies), "only one process talks"
    for name in strategies:
        assert_same_training(run_folder / name, run_folder / "one", without=())
        assert float(metrics(run_folder / name)[-1]["train/noise_scale"]) > 0
        for key in ("steps", "iterations", "accuracy_before", "accuracy_after"):
            assert summary(run_folder / name)[key] == pytest.approx(summary(run_folder / "one")[key]), key
        sampled, wanted = completions(run_folder / name), completions(run_folder / "one")
        assert [row["completion"] for row in sampled] == [row["completion"] for row in wanted]


SOMETIMES = """
def sometimes(completion_ids, trainer_state, **_):
    step = trainer_state.global_step
    if step in (1, 2):
        return [None] * len(completion_ids)
    return [None if step == 3 and number < 2 else ids[0] % 3 == 0 for number, ids in enumerate(completion_ids)]
"""


@pytest.mark.exhaustive
def test_rollouts_without_a_reward_are_skipped_by_both(run_folder: Path, lit_rlvr: CLI) -> None:
    (run_folder / "own_sometimes.py").write_text(SOMETIMES)
    rewards = ("--rollout.rewards", "[own_sometimes.sometimes]", "--trainer.limit_val_batches", "0")
    one = lit_rlvr(*FIT, *rewards, *to("one"), status=0)
    said = in_two_processes(
        run_folder, *([*FIT, *strategy, *rewards, *to(name)] for name, strategy in STRATEGIES.items())
    )
    assert said.count("it is skipped") == 2 * len(STRATEGIES) and one.err.count("it is skipped") == 2
    for name in ("one", *STRATEGIES):
        assert [row["train/skipped_steps"] for row in metrics(run_folder / name)[1:]][-1] == "2.0"


@pytest.mark.slow
def test_episodes_are_the_same_in_two_processes(run_folder: Path, lit_rlvr: CLI) -> None:
    turns = (
        "--rollout.environment", "tiny_environments.Echo", "--rollout.sampling.max_turns", "3",
        "--rollout.sampling.max_observation_tokens", "40", "--rollout.rewards", "null",
        "--model.init_args.lr", "1e-4",
    )  # fmt: skip
    lit_rlvr(*FIT, *turns, *to("one"), status=0)
    in_two_processes(run_folder, [*FIT, *STRATEGIES["fsdp2"], *turns, *to("two")])
    assert_same_training(run_folder / "two", run_folder / "one")


@pytest.mark.exhaustive
def test_groups_that_change_places_change_nothing(run_folder: Path, lit_rlvr: CLI) -> None:
    shared = (
        "--data.init_args.prompts_per_rollout", "16", "--model.init_args.updates_per_rollout", "2",
        "--model.init_args.lr", "1e-4", "--run.save_prompts", "1", "--trainer.limit_val_batches", "0",
        "--model", "DAPO",
    )  # fmt: skip
    lit_rlvr(*FIT, *shared, *to("one"), status=0)
    seen = ("--trainer.callbacks+", "tiny_balance.Moved")
    in_two_processes(run_folder, *([*FIT, *STRATEGIES[name], *shared, *seen, *to(name)] for name in STRATEGIES))
    for name in STRATEGIES:
        assert_same_training(run_folder / name, run_folder / "one")
        assert sum(map(int, (run_folder / name / "moved-0").read_text().split())) > 0


@pytest.mark.exhaustive
def test_shards_in_bf16_give_the_numbers_of_whole_weights(run_folder: Path) -> None:
    """FSDP2 gathers and computes in bfloat16 what autocast and the residual stream's hooks do with whole weights.
    Master weights stay in float32. From weights published in bfloat16, shards subtract the rounding from the
    divergence of a step, which whole weights measure in float32."""
    save_model(tiny_llama().bfloat16(), run_folder / "published")
    short = (
        "--trainer.precision",
        "bf16-mixed",
        "--trainer.max_steps",
        "1",
        "--rollout.rewards",
        json.dumps([judged_as_is("rare")]),
        *init(model="published", lr="{start: 1.0e-2}"),
    )
    in_two_processes(run_folder, *([*FIT, *STRATEGIES[name], *short, *to(name)] for name in STRATEGIES))
    sharded, plain = ({k: float(v) for k, v in metrics(run_folder / name)[1].items() if v} for name in ("fsdp2", "ddp"))
    for key in ("train/grad_norm", "train/entropy", "rollout/entropy"):
        assert sharded[key] == pytest.approx(plain[key], rel=1e-3), key
    assert sharded["train/kl_step"] == pytest.approx(plain["train/kl_step"], rel=0.3)
    assert {weight.dtype for weight in weights(run_folder / "fsdp2").values()} == {torch.float32}


def test_copies_that_do_not_fit_the_processes_are_refused() -> None:
    strategy = FSDP2(replicas=3)
    strategy.parallel_devices = [torch.device("cpu")] * 2
    strategy.cluster_environment = LightningEnvironment()
    with pytest.raises(UserError, match=r"trainer\.strategy\.replicas: 2 processes .* 3 copies"):
        strategy.setup_environment()


@pytest.mark.slow
def test_what_both_processes_find_is_said_once(run_folder: Path) -> None:
    """Before they are joined, and in the setup of the run that both are in."""
    options = ("--data", "TextMath", "--data.init_args.train", "package:svamp/train.jsonl", "--trainer.max_steps", "1")
    wrong = ("--model.init_args.updates_per_rollout", "3")
    result = launch([*FIT, *STRATEGIES["ddp"], *options, *wrong], run_folder)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.count("lit-rlvr: error: data.prompts_per_rollout: 4 prompts cannot be split") == 1
    assert result.stderr.count("lit-rlvr: error: ") == 1
    assert result.stderr.count("data: TextMath instead of Arithmetic of tiny.yaml") == 1


def init(**options: Any) -> list[str]:
    """Return options of the model as a command line; `kl__coef` is `kl.coef`."""
    return [p for name, value in options.items() for p in (f"--model.init_args.{name.replace('__', '.')}", str(value))]


ACROSS = {
    "APMPO": ["--model", "APMPO"],
    "M2PO": ["--model", "M2PO"],
    "AAPO pool": ["--model", "AAPO", *init(reference_rollouts="pool", kl__reference_update_every=2)],
    "A-GRAE on DAPO": [
        "--model",
        "DAPO",
        *init(advantage="AGRAE", dynamic_sampling="false"),
        "--model.init_args.advantage.omega_scope",
        "ema",
    ],
    "uncertain tokens": init(loss__top_entropy_quantile=0.3),
    "KLCov": ["--model", "KLCov", *init(penalty_share=0.2)],
    "an adapted rate": init(lr="{start: 1.0e-3}"),
    "KL in the reward": init(kl__coef=0.1, kl__in_reward="true", kl__estimator="k1", loss__count_empty_rows="false"),
    "DoRA": init(kl__coef=0.1, lora="{rank: 4, dora: true, rslora: true}", compute__gradient_checkpointing="true"),
    "divergence": init(teacher__model="teacher", teacher__beta=0.4, teacher__top_k=30),
}
"""Those with a state between rollouts, with numbers of all ranks' tokens, or of which only a part is trained."""
SHARDED = {name: ACROSS[name] for name in ("KLCov", "divergence", "an adapted rate")} | {
    "an adapter": init(kl__coef=0.1, model="adapter", lora="{adapter: continue}")
}
"""Those that see shards of weights, or whose statistics could."""
PAIRS = [*(("ddp", name) for name in ACROSS), *(("fsdp2", name) for name in SHARDED)]
SLOW = [("ddp", "AAPO pool"), ("ddp", "KL in the reward"), ("fsdp2", "KLCov"), ("fsdp2", "divergence")]


@pytest.mark.parametrize(
    "pairs",
    [
        pytest.param(SLOW, id="some", marks=pytest.mark.slow),
        pytest.param([pair for pair in PAIRS if pair not in SLOW], id="others", marks=pytest.mark.exhaustive),
    ],
)
def test_algorithms_train_alike_in_two_processes(
    run_folder: Path, tiny_model_folder: Path, lit_rlvr: CLI, pairs: list[tuple[str, str]]
) -> None:
    """With two minibatches a rollout, so that ratios, clips and the adaptive statistics play their part."""
    save_model(tiny_llama(1), run_folder / "teacher")
    save_adapter(tiny_model_folder, run_folder / "adapter", r=4)

    def command(root: str, name: str) -> list[str]:
        options = [*init(updates_per_rollout=2, lr=1e-3, compute__tokens_per_microbatch=120), *(ACROSS | SHARDED)[name]]
        rest = ("--rollout.rewards", json.dumps([judged_as_is("rare")]), "--trainer.limit_val_batches", "0")
        return [*FIT, *STRATEGIES.get(root, ()), *options, *rest, *to(f"{root}/{name}")]

    in_two_processes(run_folder, *(command(*pair) for pair in pairs))
    for name in {name for _, name in pairs}:
        lit_rlvr(*command("one", name), status=0)
    for strategy, name in pairs:
        # The ratio to the sampler has the rounding of the engine's batches, which AdamW scales up.
        tolerance = {"M2PO": 1e-4, "an adapted rate": 1e-5}.get(name, 1e-6)
        assert_same_training(run_folder / strategy / name, run_folder / "one" / name, tolerance)


@pytest.mark.slow
def test_prompts_with_and_without_images_train_alike_in_two_processes(
    run_folder: Path, vlm_folder: Path, lit_rlvr: CLI
) -> None:
    """Also where the last micro-batch of a rank has no image, and with videos among them."""
    rows = [{"prompt": f"How long is {i}?", "answer": "1", "image": f"{i}.png" if i % 2 else None} for i in range(16)]
    for i in range(2, 16, 4):
        rows[i]["video"] = write_clip(run_folder / f"{i}.mp4", frames=4 + i // 4, size=(56, 28)).name
    (run_folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for i in range(1, 16, 2):
        picture(30 + i, 60 - i, seed=i).save(run_folder / f"{i}.png")
    config = tiny_config(vlm_folder)
    data = {"train": str(run_folder / "train.jsonl"), "columns": {"image": "image"}, "prompts_per_rollout": 4}
    config["data"] = {"class_path": "Geometry", "init_args": data}
    config["model"]["init_args"] |= {"lr": 1e-4, "compute": {"tokens_per_microbatch": 60}}
    config["trainer"] |= {"max_steps": 3, "limit_val_batches": 0}
    write_config(run_folder / "tiny.yaml", config)
    lit_rlvr(*FIT, *to("one"), status=0)
    in_two_processes(run_folder, *([*FIT, *strategy, *to(name)] for name, strategy in STRATEGIES.items()))
    for name in STRATEGIES:
        assert_same_training(run_folder / name, run_folder / "one", 1e-5)
    assert all(float(row["train/grad_norm"]) > 0 for row in metrics(run_folder / "one"))


@pytest.mark.slow
def test_a_resumed_run_of_two_processes_is_the_uninterrupted_one(run_folder: Path) -> None:
    """By DDP; tests/run/test_sharded_checkpoints.py has FSDP2."""
    fit = (*FIT, *STRATEGIES["ddp"])
    begun, resumed = ("--trainer.max_steps", "3"), ("--ckpt_path", "last")
    in_two_processes(run_folder, [*fit, *to("whole")], [*fit, *to("parts"), *begun], [*fit, *to("parts"), *resumed])
    assert summary(run_folder / "parts")["weights_sha256"] == summary(run_folder / "whole")["weights_sha256"]
    assert metrics(run_folder / "parts") == metrics(run_folder / "whole")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is an extra")
def test_vllm_samples_from_sharded_weights(run_folder: Path) -> None:
    """Each step's probe compares the two."""
    probed = ("--rollout.engine", "vllm", "--rollout.safeguards.probe_every", "1")
    in_two_processes(run_folder, [*FIT, *STRATEGIES["fsdp2"], *probed, "--model.init_args.lora.rank", "4"])
    assert summary(run_folder / "run")["engine"] == "vllm"
