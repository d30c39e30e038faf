"""The kit: ours passes, what is broken fails in the property named for it, and TRL and verl pass as the page says."""

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import freeze
import numpy as np
import pytest
import torch
from torch import Tensor

from lit_rlvr.algorithms import CISPO, DAPO, GMPO, GPG, GRPO, GSPO, DrGRPO, RLVRModule
from lit_rlvr.commands.check.replay import FrozenBatch, algorithm_step
from lit_rlvr.conformance.__main__ import main
from lit_rlvr.conformance.batches import BATCHES, DATA, Batch, frozen_batch
from lit_rlvr.conformance.functions import check_estimator, check_loss
from lit_rlvr.conformance.properties import Finding, loss_and_gradient
from lit_rlvr.conformance.published import ADVANTAGES, LOSSES, expected
from lit_rlvr.errors import UserError

ROOT = Path(__file__).parent.parent.parent
OWN = [name for name in LOSSES if "/" not in name]


def failed(findings: list[Finding]) -> list[str]:
    return [finding.name for finding in findings if not finding.ok]


def page_script(name: str) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs/scripts")
        return importlib.import_module(name)


# ---- what passes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ADVANTAGES)
def test_our_advantage_conforms(name: str) -> None:
    findings = check_estimator(page_script("conformance_page").our_estimator(name), name)
    assert failed(findings) == (["rewards"] if name == "none" else []) and len(findings) == 8


def test_the_frozen_values_are_those_of_the_loops_and_the_script() -> None:
    assert set(OWN) == freeze.slow.TERMS.keys() and ADVANTAGES.keys() == freeze.slow.SLOW.keys()
    for name in BATCHES:
        with np.load(DATA / f"{name}.npz") as stored:
            again = freeze.with_results(freeze.MAKERS[name]())
            assert set(stored.files) == again.keys()
            for key in stored.files:
                np.testing.assert_allclose(stored[key], again[key], rtol=1e-14, atol=0, err_msg=f"{name}: {key}")


# ---- what is broken ----------------------------------------------------------------------------------------------


def surrogate(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """(b, T), 0 where masked."""
    w = torch.where(mask, logp - old_logp, 0.0).clamp(-40, 40).exp()
    return torch.where(mask, torch.minimum(w * advantages, w.clamp(0.8, 1.28) * advantages), 0.0)


def dapo(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, num_tokens: int) -> Tensor:
    return -surrogate(logp, old_logp, advantages, mask).sum() / num_tokens


def averaged(*given: Tensor, num_tokens: int, world_size: int) -> Tensor:
    """Is right where gradients are averaged over ranks."""
    return dapo(*given, num_tokens) * world_size


def per_microbatch(*given: Tensor) -> Tensor:
    return -surrogate(*given).sum() / given[3].sum().clamp(min=1)


def mean_of_means(*given: Tensor, num_microbatches: int, world_size: int) -> Tensor:
    return -surrogate(*given).sum(1).mean() / num_microbatches


def per_rank(*given: Tensor, num_tokens: int, world_size: int) -> Tensor:
    """Forgets that gradients are averaged over ranks."""
    return dapo(*given, num_tokens)


def by_place(*given: Tensor, num_tokens: int) -> Tensor:
    return -(surrogate(*given).sum(1) * torch.where(given[2][:, 0] > given[2][0, 0], 1.0, 2.0)).sum() / num_tokens


def unmasked(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, num_tokens: int) -> Tensor:
    return dapo(logp, old_logp, advantages, torch.ones_like(mask), num_tokens)


def wrong_sign(*given: Tensor, num_tokens: int) -> Tensor:
    return -dapo(*given, num_tokens)


def padded_width(*given: Tensor, num_sequences: int) -> Tensor:
    return -surrogate(*given).sum() / (num_sequences * given[0].shape[1])


def zero_by_zero(*given: Tensor, num_sequences: int) -> Tensor:
    return -(surrogate(*given).sum(1) / given[3].sum(1)).sum() / num_sequences


def overflowing(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, num_tokens: int) -> Tensor:
    w = torch.where(mask, logp - old_logp, 0.0).exp()
    return -torch.where(mask, torch.minimum(w * advantages, w.clamp(0.8, 1.28) * advantages), 0.0).sum() / num_tokens


def detached(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, num_tokens: int) -> Tensor:
    w = torch.where(mask, logp - old_logp, 0.0).clamp(-40, 40).exp().detach()
    return -torch.where(mask, w * logp * advantages, 0.0).sum() / num_tokens


def rounded(*given: Tensor, num_tokens: int) -> Tensor:
    return ((dapo(*given, 1) + 1e6) - 1e6) / num_tokens


CUTS = ["micro-batches", "uneven micro-batches", "ranks"]
BROKEN: list[tuple[Callable[..., Tensor], list[str]]] = [
    (dapo, []),
    (averaged, []),
    (per_microbatch, CUTS),
    (mean_of_means, ["uneven micro-batches"]),
    (per_rank, ["ranks"]),
    (by_place, [*CUTS, "order of groups", "order of completions"]),
    (unmasked, ["masked tokens"]),
    (wrong_sign, ["direction"]),
    (padded_width, ["padding"]),
    (zero_by_zero, ["empty rows"]),
    (overflowing, ["extreme ratios"]),
    (detached, ["gradient"]),
    (rounded, ["precision"]),
]


@pytest.mark.first_case_fast
@pytest.mark.parametrize(("loss", "broken"), BROKEN)
def test_a_broken_loss_fails_where_it_is_broken(loss: Callable[..., Tensor], broken: list[str]) -> None:
    findings = check_loss(loss)
    assert failed(findings) == broken, "\n".join(map(str, findings))
    assert all("; usual cause: " in str(f) and "\n" not in str(f) for f in findings if not f.ok)


def test_a_declared_stop_gradient_is_held() -> None:
    assert failed(check_loss(detached, stops_gradient=True)) == []


def test_a_broken_advantage_fails_where_it_is_broken() -> None:
    def sample_std(rewards: Tensor) -> Tensor:
        return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-6)

    def over_the_prompts(rewards: Tensor) -> Tensor:
        return rewards - rewards.mean(0, keepdim=True)

    assert failed(check_estimator(sample_std)) == []
    assert failed(check_estimator(sample_std, "grpo")) == [f"values: {name}" for name in BATCHES]
    assert failed(check_estimator(over_the_prompts)) == ["order of completions"]
    assert failed(check_estimator(lambda rewards: -rewards)) == ["rewards"]
    assert failed(check_estimator(lambda rewards: rewards / rewards.std(1, keepdim=True))) == ["equal rewards"]


def test_what_is_no_loss_is_refused_in_one_line() -> None:
    for function, said in (
        (
            lambda logp, old_logp, advantages, mask, eps: logp.sum(),
            "takes eps; after its first 4 arguments the kit has",
        ),
        (lambda *given: given[0], r"must return a tensor of shape \(\) on cpu, not shape \(24, 9\) on cpu"),
        (lambda *given: 1.0, r"must return a tensor of shape \(\) on cpu, not float"),
        (lambda *given: given[1].sum(), "does not depend on x.logp"),
        (lambda logp: logp.sum(), r"must take \(logp, old_logp, advantages, mask\): too many positional arguments"),
        (lambda logp, **others: logp.sum(), r"must take \(logp, old_logp, advantages, mask\): too many"),
        (
            lambda *given: given[0].sum().to("meta"),
            r"must return a tensor of shape \(\) on cpu, not shape \(\) on meta",
        ),
    ):
        with pytest.raises(UserError, match=said):
            check_loss(function)
    with pytest.raises(UserError, match="there is no 'GRP'; did you mean 'GRPO'"):
        check_loss(dapo, "GRP")
    for estimator, said in (
        (lambda rewards: rewards.mean(1), r"must return a tensor of shape \(6, 4\)"),
        (lambda: torch.zeros(()), r"must take \(rewards\): too many positional arguments"),
        (lambda rewards: rewards.to("meta"), r"a tensor of shape \(6, 4\) on cpu, not shape \(6, 4\) on meta"),
    ):
        with pytest.raises(UserError, match=said):
            check_estimator(estimator)


# ---- other frameworks --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_page_says_who_passes() -> None:
    """Ours and TRL's measured again, verl's from what was stored."""
    page = page_script("conformance_page")
    assert page.PAGE.read_text() == page.rendered(), "run: python docs/scripts/conformance_page.py"


def test_the_loss_of_the_page_conforms_and_fails_as_it_says() -> None:
    page = (ROOT / "docs/conformance.md").read_text()
    code, said = page.split("```python\n")[1].split("```")[0], page.split("```\nFAILED")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    assert failed(check_loss(names["grpo"], "GRPO")) == []
    exec(code.replace("/ num_sequences", "/ mask.sum().clamp(min=1)"), names)
    (line,) = [str(f) for f in check_loss(names["grpo"]) if f.name == "micro-batches"]
    assert line.split() == ["FAILED", *said.split()]


@pytest.mark.parametrize(
    ("name", "module", "factor"),
    [
        ("token-mean", DAPO(dual_clip=3.0), 1),
        ("seq-mean-token-mean", GRPO(dual_clip=3.0), 1),
        ("seq-mean-token-sum-norm", DrGRPO(dual_clip=3.0), "B"),  # a sum over completions
        ("gspo", GSPO(), 1),
        ("cispo", CISPO(), 1),
        ("geo_mean", GMPO(), 1),
        ("gpg", GPG(), 1),
    ],
)
@pytest.mark.parametrize("batch_name", BATCHES)
def test_ours_has_verls_frozen_values(name: str, module: RLVRModule, factor: Any, batch_name: str) -> None:
    batch: Batch = frozen_batch(batch_name)
    factor = len(batch.logp) if factor == "B" else factor
    step = algorithm_step(FrozenBatch(**vars(batch)), module, batch.advantages)
    loss, gradient = loss_and_gradient(step, batch)
    theirs = expected(f"verl/{name}", batch_name)
    tolerance = 1e-7  # verl adds 1e-8 to a row's tokens
    torch.testing.assert_close(factor * gradient, theirs["dlogp"], rtol=tolerance, atol=0)
    torch.testing.assert_close(factor * loss, theirs["loss"], rtol=tolerance, atol=1e-8)


# ---- the command -------------------------------------------------------------------------------------------------

MODULE = """
import torch
def good(logp, old_logp, advantages, mask, num_tokens):
    return -torch.where(mask, logp * advantages, 0.0).sum() / num_tokens
def bad(logp, old_logp, advantages, mask):
    return -torch.where(mask, logp * advantages, 0.0).sum() / mask.sum().clamp(min=1)
def centred(rewards):
    return rewards - rewards.mean(1, keepdim=True)
"""


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--loss", "own:good", "--expect", "Reinforce"], 0, ["ok"] * 15),
        (["--advantage", "own:centred", "--expect", "dr_grpo"], 0, ["ok"] * 8),
        (["--loss", "own:bad"], 1, [*["ok"] * 2, *["FAILED"] * 3, *["ok"] * 7]),
    ],
)
def test_the_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    said: list[str],
) -> None:
    command(tmp_path, monkeypatch, arguments)
    assert main() == status
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--loss", "own:worse"], "error: --loss: 'own:worse' cannot be imported"),
        (["--loss", "own:centred"], "must take (logp, old_logp, advantages, mask)"),
        ([], "error: one of the arguments --loss --advantage is required"),
    ],
)
def test_functions_that_cannot_be_called_are_refused_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    command(tmp_path, monkeypatch, arguments)
    with pytest.raises(SystemExit, match="2"):
        main()
    assert said in capsys.readouterr().err.splitlines()[-1]


def command(folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    """Make `own` importable, and set the command line."""
    (folder / "own.py").write_text(MODULE)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    monkeypatch.setattr(sys, "argv", ["conformance", *arguments])


def test_it_needs_numpy_and_torch_alone() -> None:
    heavy = ["transformers", "lightning", "jsonargparse", "datasets", "trl", "pytest"]
    code = f"import sys, lit_rlvr.conformance.__main__; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
