"""Groups that are generated during training in this process: their weights, what is refused, and exact resume."""

from pathlib import Path

import pytest
import torch
from plans import plan_without_trainer
from tiny_engines import Copying
from tiny_fit import fit
from tiny_runs import CLI, FIT, STRATEGIES, completions, fit as run, in_two_processes, metrics, summary, to

from lit_rlvr.rollout.preflight.sizes import check_settings


def test_each_rollout_is_sampled_one_iteration_early_and_corrected(tiny_model_folder: Path, tmp_path: Path) -> None:
    engine = Copying()
    _, seen = fit(tiny_model_folder, tmp_path, steps=4, engine=engine, staleness=1)
    first = [next(iter(weights.values())) for weights in seen.weights]  # before each of the four steps
    used = [*engine.sampled_with]
    # rollout 0 and 1 come from the initial weights, rollout k from those before step k - 1; one is left over
    for weights, wanted in zip(used, [first[0], first[0], first[1], first[2], first[3]], strict=True):
        assert torch.equal(weights, wanted)
    assert seen.metrics[0]["train/engine_difference"] < 1e-5 < seen.metrics[2]["train/engine_difference"]
    ages = [step - rollout.versions for step, rollout in enumerate(seen.rollouts) if rollout.versions is not None]
    assert [set(age.flatten().tolist()) for age in ages] == [{0}, {1}, {1}, {1}]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["engine hf decodes with the weights being trained"]),
        (["--rollout.engine", "vllm", "--rollout.staleness", "2"], ["at most 1", "VLLMServerEngine"]),
        (["--rollout.engine", "vllm", "--rollout.staleness", "-1"], ["-1 is below 0"]),
        (["--rollout.engine", "vllm", "--model", "AAPO"], ["reference_rollouts: pool"]),
        (
            ["--rollout.engine", "vllm", "--model.init_args.importance.correction", "none"],
            ["model.importance.correction"],
        ),
    ],
)
def test_what_cannot_run_during_training_is_refused(
    run_folder: Path, lit_rlvr: CLI, options: list[str], words: list[str]
) -> None:
    refused = run(lit_rlvr, "--rollout.staleness", "1", *options, status=2)
    assert all(word in refused.err for word in ["rollout.staleness", *words]) and "Traceback" not in refused.err


def test_on_a_gpu_the_next_rollout_is_generated_elsewhere() -> None:
    from lit_rlvr.algorithms import GRPO
    from lit_rlvr.errors import UserError
    from lit_rlvr.rollout import FileTransfer, RolloutCallback, VLLMServerEngine

    stale = RolloutCallback(engine="vllm", staleness=1)
    module = GRPO()
    check_settings(stale, module, plan_without_trainer(stale, module, 8))
    with pytest.raises(UserError, match="needs the GPU that is training; use VLLMServerEngine"):
        check_settings(stale, module, plan_without_trainer(stale, module, 8, device="cuda"))
    elsewhere = VLLMServerEngine(["http://host:1"], FileTransfer(Path()))
    staler = RolloutCallback(engine=elsewhere, staleness=4)
    check_settings(staler, module, plan_without_trainer(staler, module, 8, device="cuda"))


@pytest.mark.slow
def test_two_processes_sample_and_train_what_one_does(run_folder: Path, lit_rlvr: CLI) -> None:
    stale = ("--rollout.staleness", "1", "--rollout.engine", "tiny_engines.Copying")
    run(lit_rlvr, *stale, *to("one"))
    in_two_processes(run_folder, [*FIT, *STRATEGIES["ddp"], *stale, *to("two")])
    sampled, wanted = ([row["completion"] for row in completions(run_folder / name)] for name in ("two", "one"))
    assert sampled == wanted


@pytest.mark.slow
def test_no_token_is_too_old_whatever_the_algorithm_asks_for(run_folder: Path, lit_rlvr: CLI) -> None:
    """With validations between, which use the engine, too."""
    stale = ("--rollout.staleness", "2", "--rollout.engine", "tiny_engines.Streaming")
    options = ("--model", "DAPO", "--model.init_args.updates_per_rollout", "2", "--rollout.safeguards.probe_every", "1")
    run(lit_rlvr, *stale, *options)
    rows = metrics(run_folder / "run")
    ages = [float(row["train/staleness/max"]) for row in rows if row.get("train/staleness/max")]
    assert ages and 0 < max(ages) <= 2
    assert summary(run_folder / "run")["accuracy_after"] is not None
