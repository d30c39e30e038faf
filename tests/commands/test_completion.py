"""The script of `lit-rlvr completion`, run by bash."""

from __future__ import annotations

import subprocess

import pytest

from lit_rlvr.commands.completion import script

COMPLETED = {
    "exp": ["explain", "export"],
    "fit --rollout.sampling.te": ["--rollout.sampling.temperature"],
    "fit --config quickstart --model.init_args.clip_": [
        "--model.init_args.clip_high",
        "--model.init_args.clip_low",
        "--model.init_args.clip_share",
    ],
    "fit --config quick": ["quickstart"],
    "fit --model DA": ["DAPO"],
    "evaluate --model DA": [],
    "plan --data Text": ["TextMath", "TextToSQL"],
    "compare --": ["--cluster", "--help", "--jobs", "--json", "--out"],
    "fit --dry": ["--dry-run"],
    "serve --js": [],
    "help pre": ["preview"],
}


@pytest.fixture(scope="module")
def written() -> str:
    return script()


@pytest.mark.parametrize("line", COMPLETED)
def test_words_are_completed_without_python(written: str, line: str) -> None:
    words = ["lit-rlvr", *line.split()]
    ask = f'COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}; _lit_rlvr; printf "%s\\n" "${{COMPREPLY[@]}}"'
    told = subprocess.run(["bash", "-c", f"{written}\n{ask}"], capture_output=True, text=True, check=True, env={})
    assert told.stdout.split() == COMPLETED[line]
