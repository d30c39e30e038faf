"""A command that is refused leaves the run folder as it was, and never in the way of the corrected one."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_runs import CLI, FIT, fit, summary, tiny_config, to, write_config

from lit_rlvr.common.run_files import LIVE

RESUME = ("--ckpt_path", "last")
REPLACE = ("--overwrite", "true")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Iterator[Path]:
    """A directory with `tiny.yaml` and its finished run in `run/`."""
    from lit_rlvr.cli.main import run

    folder = tmp_path_factory.mktemp("refused")
    write_config(folder / "tiny.yaml", tiny_config(tiny_model_folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run([*FIT, "--trainer.max_steps", "2"]) == 0
        yield folder


def left_in(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below a folder; None = a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


LOGGER = ("--trainer.logger", "[{class_path: CSVLogger}, {class_path: TensorBoardLogger, init_args: {name: own}}]")
REFUSED = {
    "model, with loggers": ((*RESUME, *LOGGER, "--model.init_args.model", "OTHER"), "its run had model of LlamaForC"),
    "algorithm": ((*RESUME, "--model", "DAPO"), "its run had algorithm GRPO"),
    "optimizer": (
        (*RESUME, "--model.init_args.optim.optimizer", "torch.optim.Adagrad"),
        "its run had optimizer torch.optim.adamw.AdamW",
    ),
    "adapters": ((*RESUME, "--model.init_args.lora", "{rank: 2}"), "its run had model"),
    "seed": ((*RESUME, "--seed_everything", "1"), "the seeds of the order"),
    "data": ((*RESUME, "--data.init_args.high", "7"), "the number of training prompts"),
    "overwrite, sizes": ((*REPLACE, "--data.init_args.prompts_per_rollout", "17"), "prompts_per_rollout"),
    "overwrite, best": ((*REPLACE, "--checkpoint.best", "val/acuracy"), "checkpoint.best: no metric is called"),
    "overwrite, tracker": (
        (*REPLACE, "--trackers", "own_trackers.Broken"),
        "broken does not start: ConnectionError: nobody there; mend it",
    ),
    "overwrite, callback": ((*REPLACE, "--trainer.callbacks", "own_trackers.BrokenCallback"), "no licence"),
    "both": ((*RESUME, *REPLACE), "--overwrite true"),
}
OWN = """
from lightning.pytorch import Callback
from lit_rlvr.run.trackers import Tracker

class Broken(Tracker):
    key = "broken"
    def start(self, run):
        raise ConnectionError("nobody there\\nand more")
    def log(self, step, metrics, samples): ...
    def end(self, failed): ...

class BrokenCallback(Callback):
    def on_fit_start(self, trainer, pl_module):
        raise RuntimeError("no licence")

class BrokenStep(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        raise RuntimeError("no licence")
"""


@pytest.mark.first_case_fast
@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_fit_changes_nothing(
    trained: Path, lit_rlvr: CLI, untied_model_folder: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(trained)
    (trained / "own_trackers.py").write_text(OWN)
    arguments, said = REFUSED[case]
    before = left_in(trained / "run")
    given = (str(untied_model_folder) if part == "OTHER" else part for part in arguments)
    assert said in lit_rlvr(*FIT, *given).refusal
    assert left_in(trained / "run") == before


def test_with_nothing_to_train_nothing_changes(trained: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    before = left_in(trained / "run")
    assert "nothing to train" in fit(lit_rlvr, *RESUME, "--trainer.max_steps", 1).err
    assert left_in(trained / "run") == before


def test_a_refused_first_run_leaves_no_folder(run_folder: Path, lit_rlvr: CLI) -> None:
    fit(lit_rlvr, *to("a/b"), "--data.init_args.prompts_per_rollout", 17, status=2)
    assert not (run_folder / "a").exists()
    (run_folder / "b").mkdir()
    fit(lit_rlvr, *to("b"), "--data.init_args.prompts_per_rollout", 17, status=2)
    assert left_in(run_folder / "b") == {}


@pytest.mark.slow
def test_what_a_failed_start_left_does_not_stand_in_the_way(run_folder: Path, lit_rlvr: CLI) -> None:
    """Runs that failed in their first validation and in their first iteration, and a `live.json` without a config."""
    (run_folder / "own_trackers.py").write_text(OWN)
    fit(lit_rlvr, "--rollout.rewards", "[tiny_rewards.broken]", status=2)
    live = (run_folder / "run" / LIVE).read_text()
    fit(lit_rlvr, "--trainer.callbacks", "own_trackers.BrokenStep", status=2)
    assert (run_folder / "run" / "metrics.csv").is_file()
    assert (run_folder / "run" / ".failed" / "failed_rewards.jsonl").is_file()
    fit(lit_rlvr, "--trainer.max_steps", 1)
    assert len(list((run_folder / "run" / "tensorboard").iterdir())) == 2, "one file of events, and hparams.yaml"
    assert not (run_folder / "run" / ".failed").exists()
    for root, more in (("live", ()), ("live2", REPLACE)):
        (run_folder / root).mkdir()
        (run_folder / root / LIVE).write_text(live)
        fit(lit_rlvr, *to(root), "--trainer.max_steps", 1, *more)
        assert summary(run_folder / root)["steps"] == 1


@pytest.mark.parametrize("more", [(), REPLACE])
def test_a_live_file_of_the_users_is_not_replaced(run_folder: Path, lit_rlvr: CLI, more: tuple[str, ...]) -> None:
    (run_folder / "run").mkdir()
    (run_folder / "run" / LIVE).write_text(json.dumps({"mine": 1}))
    assert "run/live.json is not from a run of lit-rlvr" in fit(lit_rlvr, *more, status=2).err
    assert left_in(run_folder / "run") == {LIVE: b'{"mine": 1}'}
