"""`explain`: the saved numbers of a group, in the terminal and as a page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_rlvr.errors import UserError
from lit_rlvr.explain import load_group, page
from lit_rlvr.objectives import LossInputs
from lit_rlvr.run.trace import Trace

CLI = Callable[..., Any]


def test_explain_shows_a_group_of_a_run(run_folder: Path, lit_rlvr: CLI) -> None:
    two = ("--model.init_args.updates_per_rollout", "2", "--trainer.max_steps", "8", "--run.trace_every", "2")
    assert lit_rlvr("fit", "--config", "tiny.yaml", *two).status == 0
    assert sorted(p.name for p in (run_folder / "run/rollouts").iterdir()) == ["step-000002.json", "step-000006.json"]
    saved = json.loads((run_folder / "run/rollouts/step-000006.json").read_text())
    live = next(k for k, group in enumerate(saved["groups"]) if "weight" in group["completions"][0])
    result = lit_rlvr("explain", "run", "--step", "6", "--prompt", str(live))
    assert result.status == 0, result.err
    assert "From reward to weight" in result.out and "GRPO, step 6" in result.out
    text = (run_folder / "run/explain.html").read_text()
    assert 'class="up"' in text and 'class="down"' in text and "ratio" in text and "<script" not in text
    for completion in saved["groups"][live]["completions"]:
        assert len(completion["weight"]) == len(completion["ratio"]) == len(completion["tokens"])
        signs = {weight > 0 for weight in completion["weight"] if weight}
        assert signs <= {completion["advantage"] > 0}, "GRPO's weights have the advantage's sign"


def test_what_was_not_saved_is_named(run_folder: Path, lit_rlvr: CLI) -> None:
    assert lit_rlvr("fit", "--config", "tiny.yaml", "--run.trace_every", "0").status == 0
    assert "train with run.trace_every above 0" in lit_rlvr("explain", "run").err
    assert lit_rlvr("fit", "--config", "tiny.yaml", "--overwrite", "true").status == 0
    assert "saved steps: 1" in lit_rlvr("explain", "run", "--step", "3").err
    missing = lit_rlvr("explain", "run", "--prompt", "99")
    assert missing.status == 2 and "there are 0, 1" in missing.err


def test_the_trace_holds_ratio_and_gradient_weight() -> None:
    logp = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, -1.0]], requires_grad=True)
    x = LossInputs(
        logp=logp * 1.0, old=torch.tensor([[-1.0, -2.5, -3.0], [0.0, 0.0, 0.0]]),
        mask=torch.tensor([[True, True, False], [True, True, True]]), advantages=torch.ones(2, 1),
        token_weight=torch.ones(2, 3), plain_weight=torch.ones(2, 3), row_weight=torch.ones(2),
        prompt=torch.tensor([0, 1]),
    )  # fmt: skip
    trace = Trace(prompts=1)
    trace.watch([1, 2], group_size=2, x=x)  # completion 1 of prompt 0, completion 0 of prompt 1
    (x.logp * torch.tensor([[0.5, -2.0, 9.0], [1.0, 1.0, 1.0]])).sum().backward()
    assert trace.tokens.keys() == {1}, "only the first prompt's group is watched"
    assert trace.tokens[1]["weight"] == [-0.5, 2.0]
    assert trace.tokens[1]["ratio"] == pytest.approx([1.0, 2.718281828**0.5], rel=1e-5)


def test_the_page_escapes_what_the_model_wrote() -> None:
    evil = "<img src=x onerror=alert(1)>"
    completion = {
        "text": evil, "tokens": [evil], "finish_reason": "stop", "reward": 1.0, "correct": True, "status": "ok",
        "advantage": 1.0, "engine_logp": [-1.0], "logp": [-1.0], "ratio": [1.0], "weight": [0.5],
    }  # fmt: skip
    text = page(1, "GRPO", {"id": evil, "prompt": evil, "answer": evil, "completions": [completion]})
    assert "<img" not in text and text.count("&lt;img") == 5
    assert 'title="weight +0.5, ratio 1.0000, log-probability -1.000"' in text and "--w:0.75" in text


def test_broken_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rollouts/step-000004.json"
    path.parent.mkdir()
    completion = {
        "tokens": ["a"], "finish_reason": "stop", "reward": 1.0, "correct": True, "status": "ok", "advantage": 1.0,
        "logp": [-1.0], "ratio": [1.0], "weight": [0.5, 0.5],
    }  # fmt: skip
    group = {"id": "p", "prompt": "?", "answer": "1", "completions": [completion]}
    for saved in (
        '{"step": 4',
        "[1]",
        '{"algorithm": "GRPO", "groups": []}',
        json.dumps({"algorithm": "GRPO", "groups": [group]}),
    ):
        path.write_text(saved)
        with pytest.raises(UserError, match=r"step-000004\.json"):
            load_group(tmp_path, None, None)
    completion["weight"] = [0.5]
    path.write_text(json.dumps({"algorithm": "GRPO", "groups": [group]}))
    assert load_group(tmp_path, None, None) == (4, "GRPO", group)
