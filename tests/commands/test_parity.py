"""The replay of a frozen batch: files in, files out, and one line for whatever is wrong with them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from slow_loops import SLOW, clipped_terms, loss_and_gradient, random_case
from torch import Tensor

from lit_rlvr import algorithms
from lit_rlvr.advantages import AGRAE, Advantage, GroupBatch, GRPOAdvantage
from lit_rlvr.algorithms import AAPO, APMPO, GRPO, GSPO, DrGRPO, Reinforce
from lit_rlvr.commands.check.parity import load_algorithms, run_parity
from lit_rlvr.commands.check.replay import replay
from lit_rlvr.errors import UserError
from lit_rlvr.objectives import LossInputs, Stats

ALGORITHMS = {
    **{name: {"class_path": name} for name in algorithms.__all__ if name != "RLVRModule"},
    "GRPO": {"class_path": "lit_rlvr.algorithms.GRPO", "init_args": {"kl": {"coef": 0.01}}},
    "GRPO+A-GRAE": {"class_path": "GRPO", "init_args": {"advantage": "agrae"}},
    "DrGRPO+A-GRAE": {
        "class_path": "DrGRPO",
        "init_args": {"advantage": {"class_path": "AGRAE", "init_args": {"base": "dr_grpo", "alpha": 0.5}}},
    },
    "nested": {
        "class_path": "DAPO",
        "init_args": {
            "advantage": {
                "class_path": "lit_rlvr.advantages.AGRAE",
                "init_args": {
                    "base": {"class_path": "HardFocused", "init_args": {"base": {"class_path": "RLOOAdvantage"}}}
                },
            }
        },
    },
    "name only": "GMPO",
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    np.savez(tmp_path / "batch.npz", **random_case(0, shaped=True).arrays)
    write(tmp_path, ALGORITHMS)
    return tmp_path


def write(folder: Path, algorithms: Any) -> None:
    (folder / "algorithms.yaml").write_text(yaml.safe_dump({"algorithms": algorithms}))


def parity(folder: Path) -> dict[str, np.ndarray]:
    run_parity(folder / "batch.npz", folder / "algorithms.yaml", folder / "new/out")
    with np.load(folder / "new/out") as found:
        return {name: found[name] for name in found.files}


def test_files_go_in_and_results_and_a_table_come_out(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    found = parity(files)
    case = random_case(0, shaped=True)
    prompts, size = case.arrays["rewards"].shape
    assert set(found) == {f"{name}/{key}" for name in ALGORITHMS for key in ("loss", "advantages", "dlogp")}
    for name in ALGORITHMS:
        assert found[f"{name}/loss"].shape == ()
        assert found[f"{name}/advantages"].shape == (prompts, size)
        assert found[f"{name}/dlogp"].shape == case.arrays["logp"].shape
    assert all(array.dtype == np.float64 and np.isfinite(array).all() for array in found.values())
    printed = capsys.readouterr().out
    gradient = found["GRPO+A-GRAE/dlogp"]
    row = next(line for line in printed.splitlines() if "GRPO+A-GRAE" in line and "Dr" not in line)
    assert f"{float(found['GRPO+A-GRAE/loss']):.6g}" in row
    assert f"{np.abs(found['GRPO+A-GRAE/advantages']).mean():.4g}" in row
    assert f"{np.abs(gradient).sum():.4g}" in row
    assert f"{(gradient[case.arrays['mask']] == 0).mean():.1%}" in row
    ours = {"DrGRPO+A-GRAE": DrGRPO(advantage=AGRAE(base="dr_grpo", alpha=0.5)), "AAPO": AAPO(model="no/such-model")}
    for name, array in replay(case.arrays, ours).items():
        np.testing.assert_array_equal(found[name], array)


def test_the_longest_completion_is_the_batch_s_or_its_width() -> None:
    arrays = random_case(1).arrays
    given = float(replay(arrays, {"x": DrGRPO()})["x/loss"])
    without = {k: v for k, v in arrays.items() if k != "max_completion_length"}
    assert float(replay(without, {"x": DrGRPO()})["x/loss"]) == pytest.approx(given * 9 / 6)


def test_single_precision_arrays_are_computed_in_single_precision() -> None:
    arrays = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in random_case(2).arrays.items()}
    arrays["correct"], arrays["mask"] = arrays["correct"].astype(bool), arrays["mask"].astype(np.uint8)
    assert {v.dtype for v in replay(arrays, {"x": GRPO()}).values()} == {np.dtype(np.float32)}


def test_what_no_algorithm_needs_may_be_missing() -> None:
    case = random_case(3)
    arrays = {k: case.arrays[k] for k in ("logp", "old_logp", "mask", "rewards", "correct")}
    found = replay(arrays, {"x": GRPO()})
    a = np.array(SLOW["grpo"](arrays["rewards"].tolist(), arrays["correct"].tolist())).flatten()
    loss, _ = loss_and_gradient(case, [clipped_terms(case, a.tolist(), "sequence_mean", 0.2, 0.2)])
    assert float(found["x/loss"]) == pytest.approx(loss, rel=1e-12)


def broken(**changes: Any) -> dict[str, np.ndarray]:
    return {k: v for k, v in (random_case(4).arrays | changes).items() if v is not None}


def poisoned(name: str, value: float = np.nan) -> dict[str, np.ndarray]:
    arrays = random_case(4).arrays
    array = arrays[name].copy()
    array[0, 0] = value
    return arrays | {name: array}


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (broken(old_logp=None), "'old_logp' is missing"),
        (broken(correct=None), "'correct' is missing"),
        (broken(ref_logp=None), "ref_logp; add the array or set kl.coef: 0"),
        (broken(reference_rewards=None), "reference_rewards"),
        (broken(old_logp=np.zeros((28, 5))), r"old_logp has shape \(28, 5\)"),
        (broken(ref_logp=np.zeros((28, 5))), "ref_logp has shape"),
        (broken(mask=np.ones((28, 5), dtype=bool)), "mask must be bool"),
        (broken(mask=np.full((28, 6), 0.5)), "mask must be bool"),
        (broken(rewards=np.zeros((7, 3))), "21 completions"),
        (broken(rewards=np.zeros(28)), r"rewards \(P, G\)"),
        (broken(logp=np.zeros(28)), r"logp must be \(B, T\)"),
        (broken(reference_rewards=np.zeros((4, 7))), "reference_rewards has shape"),
        (broken(correct=np.full((7, 4), 0.5)), "correct must hold only 0 and 1"),
        (broken(max_completion_length=np.array(0)), "max_completion_length"),
        (broken(max_completion_length=np.array([3, 4])), "max_completion_length"),
        (poisoned("logp"), r"logp\[0, 0\] is nan"),
        (poisoned("old_logp", -np.inf), r"old_logp\[0, 0\] is -inf"),
        (poisoned("ref_logp"), r"ref_logp\[0, 0\]"),
        (poisoned("rewards", np.inf), r"rewards\[0, 0\] is inf"),
        (poisoned("correct", np.inf), r"correct\[0, 0\]"),
        (poisoned("reference_rewards", np.inf), r"reference_rewards\[0, 0\]"),
    ],
)
def test_a_bad_batch_is_one_line_that_says_what_and_where(arrays: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        replay(arrays, {"first": APMPO(), "second": AAPO()})
    assert "\n" not in str(error.value)


def test_an_error_of_one_algorithm_names_it() -> None:
    case = random_case(4)
    one = {k: v.reshape(28, 1) if v.shape == (7, 4) else v for k, v in case.arrays.items()}
    assert np.isfinite(replay(one, {"fine": Reinforce()})["fine/loss"])
    negative = case.arrays | {"rewards": case.arrays["rewards"] - 3}
    assert np.isfinite(replay(negative, {"fine": APMPO(schedule={"statistics_from": "correct"})})["fine/loss"])
    without_entropy = {k: v for k, v in case.arrays.items() if k != "entropy"}

    class Constant(GRPO):
        def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
            return torch.zeros((), requires_grad=True), {}

    for arrays, bad, said in (
        (one, GRPO(), ".*group size of 2"),
        (negative, APMPO(), r".*use schedule: \{statistics_from: correct\}"),
        (without_entropy, GRPO(loss={"entropy_coef": 0.1}), "model.loss.entropy_coef: it needs `entropy`"),
        (case.arrays, Constant(), r"the loss of .*Constant.objective .*does not depend on x.logp"),
    ):
        with pytest.raises(UserError, match=f"algorithms.bad: {said}"):
            replay(arrays, {"fine": Reinforce(), "bad": bad})


@pytest.mark.parametrize(
    ("algorithms", "said"),
    [
        ({"a": {"class_path": "GRPPO"}}, "algorithms.a: there is no class 'GRPPO'; did you mean 'GRPO'"),
        ({"a": {"class_path": "no_module.X"}}, "algorithms.a: .*no_module"),
        ({"a": {"class_path": "RLVRModule"}}, "algorithms.a: .*abstract"),
        ({"a": {"class_path": "GRPO", "init_args": {"clip_lwo": 1}}}, "algorithms.a: .*'clip_lwo'.*'clip_low'"),
        (
            {"a": {"class_path": "GMPO", "init_args": {"loss": {"aggregation": "token_mean"}}}},
            "aggregation: GMPO is defined with sequence_mean, not token_mean; leave it out",
        ),
        ({"a": {"class_path": "GRPO", "init_args": {"clip_low": "x"}}}, "algorithms.a: clip_low: give a number, not x"),
        ({"a": {"class_path": "GRPO", "init_args": {"advantage": "agra"}}}, "algorithms.a: .*'agra'.*agrae"),
        ({"a": {"class_path": "GRPO", "init_args": {"dual_clip": 0.9}}}, "algorithms.a: .*dual_clip"),
        ({"a": {"class_path": "APMPO", "init_args": {"eps_low": 1.0}}}, "eps_low"),
        ({"a": {"class_path": "APMPO", "init_args": {"eps_min": 0.5}}}, "eps_min <= eps_max"),
        ({"a": {"class_path": "APMPO", "init_args": {"eps_max": 1.5, "adaptive_lower": True}}}, "eps_max"),
        (
            {
                "a": {
                    "class_path": "GRPO",
                    "init_args": {"advantage": {"class_path": "AGRAE", "init_args": {"alpha": 2}}},
                }
            },
            "algorithms.a: advantage agrae.alpha",
        ),
        (
            {"a": {"class_path": "GRPO", "init_args": {"advantage": {"class_path": "AGRAE", "init_args": {"x": 2}}}}},
            "has no option 'x'",
        ),
        ({"a": 3}, "algorithms.a: must be"),
        ({}, "must hold `algorithms"),
        ([1], "must hold `algorithms"),
    ],
)
def test_a_bad_config_is_one_line_that_says_what_and_where(tmp_path: Path, algorithms: Any, said: str) -> None:
    write(tmp_path, algorithms)
    with pytest.raises(UserError, match=said) as error:
        load_algorithms(tmp_path / "algorithms.yaml")
    assert "\n" not in str(error.value)
    assert "algorithms.yaml" in str(error.value)


def test_files_that_cannot_be_used_are_named(files: Path) -> None:
    for content in (b"PK no archive", b"a: text", b""):
        (files / "batch.npz").write_bytes(content)
        with pytest.raises(UserError, match=r"batch\.npz is no \.npz file; write one with numpy's savez$"):
            parity(files)
    np.savez(files / "batch.npz", logp=np.array([None, 1]))
    with pytest.raises(UserError, match=r"batch\.npz is not a readable"):
        parity(files)
    (files / "batch.npz").unlink()
    with pytest.raises(UserError, match=r"batch\.npz is not a readable"):
        parity(files)
    np.savez(files / "batch.npz", **random_case(0).arrays)
    (files / "algorithms.yaml").write_text("algorithms: [")
    with pytest.raises(UserError, match=r"algorithms\.yaml, line 1: not valid YAML"):
        parity(files)
    write(files, {"a": "GRPO"})
    with pytest.raises(UserError, match="--out: /proc/no_such cannot be written"):
        run_parity(files / "batch.npz", files / "algorithms.yaml", "/proc/no_such/out.npz")


@pytest.mark.parametrize("name", ["batch.npz", "algorithms.yaml"])
def test_no_file_is_overwritten(files: Path, name: str) -> None:
    before, others = (files / name).read_bytes(), (files / "batch.npz", files / "algorithms.yaml")
    with pytest.raises(UserError, match=f"--out: .*{name} exists; choose another"):
        run_parity(*others, files / name)
    assert (files / name).read_bytes() == before and not (files / "out.npz").exists()


class OfTurns(Advantage):
    """GRPO's advantages for the tokens of the first turn, twice as large for later ones."""

    @property
    def needs_tokens(self) -> bool:
        return True

    def __call__(self, groups: GroupBatch) -> Tensor:
        assert groups.turns is not None
        return GRPOAdvantage()(groups).reshape(-1, 1) * (groups.turns.clamp(max=1) + 1)


def test_advantages_of_tokens_are_replayed() -> None:
    arrays = random_case(4).arrays
    turns = np.zeros(arrays["mask"].shape, dtype=int)
    turns[:, 3:] = 1
    found = replay(
        arrays | {"turns": turns}, {"plain": Reinforce(advantage="grpo"), "own": Reinforce(advantage=OfTurns())}
    )
    assert found["own/advantages"].shape == arrays["mask"].shape
    np.testing.assert_allclose(found["own/dlogp"], found["plain/dlogp"] * (1 + turns), rtol=1e-12)
    with pytest.raises(UserError, match=r"algorithms.bad: model.advantage: .*OfTurns.* GSPO weighs whole sequences"):
        replay(arrays, {"bad": GSPO(advantage=OfTurns())})
    with pytest.raises(UserError, match=r"turns must be whole numbers from 0 of logp's shape"):
        replay(arrays | {"turns": turns - 1}, {"own": Reinforce(advantage=OfTurns())})
