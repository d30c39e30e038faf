"""`lit-rlvr preview` shows what the model sees, and loads no weights."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_runs import CLI

from lit_rlvr.datamodules import LesionCount


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("preview loads no weights")

    monkeypatch.setattr("lit_rlvr.training.models.load_policy", fail)


def test_a_prompt_is_shown_with_its_tokens_and_answer(run_folder: Path, lit_rlvr: CLI) -> None:
    shown = lit_rlvr("preview", "--config", "tiny.yaml", "--prompts", 2, "--split", "validation", status=0).out
    assert shown.count("<|im_start|>system\nYou are a calculator.<|im_end|>\n<|im_start|>user\nWhat is ") == 2
    assert "validation 1 of 20: " in shown and "validation 3 of" not in shown
    text = shown.split("\n", 1)[1].split("\n----")[0]
    tokens = len(text.encode()) - sum(len(s) - 1 for s in ["<|im_start|>"] * 3 + ["<|im_end|>"] * 2)
    assert f"\n{tokens} tokens; answer '" in shown, "one token a byte, one a special token"
    assert "arithmetic validation: 20 prompts of " in shown and "0 rows could not be used" in shown
    assert not (run_folder / "run").exists()


def test_what_is_trained_on_is_shown(run_folder: Path, lit_rlvr: CLI) -> None:
    """The completions of SFT, turn by turn, and the prompt that a teacher gets."""
    talk = [("user", "Hi"), ("assistant", "Hello."), ("user", "2+2?"), ("assistant", "4")]
    row = {"messages": [{"role": role, "content": text} for role, text in talk], "solution": "Two and two."}
    (run_folder / "talks.jsonl").write_text(json.dumps(row) + "\n")
    data = (
        "--data", "PromptDataModule", "--data.init_args.train", "talks.jsonl",
        "--data.init_args.prompts_per_rollout", 1, "--data.init_args.columns", "{prompt: messages}",
        "--rollout.sampling.max_tokens", 64, "--json",
    )  # fmt: skip
    trained = lit_rlvr("preview", "--config", "tiny.yaml", *data, "--model", "SFT", status=0)
    (prompt,) = json.loads(trained.out)["prompts"]
    assert prompt["text"].endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert [(part["in_loss"], part["tokens"]) for part in prompt["completion"]] == [(True, 7), (False, 24), (True, 2)]
    assert [part["text"] for part in prompt["completion"]] == [
        "Hello.<|im_end|>",
        "\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n",
        "4<|im_end|>",
    ]
    teacher = (
        "{prompt: {class_path: Demonstration, init_args: {column: solution, template: '{prompt} {demonstration}'}}}"
    )
    taught = lit_rlvr("preview", "--config", "tiny.yaml", *data, "--model.init_args.teacher", teacher, status=0)
    (prompt,) = json.loads(taught.out)["prompts"]
    assert "user\n2+2? Two and two.<|im_end|>" in prompt["teacher"]["text"] and "completion" not in prompt
    assert prompt["teacher"]["tokens"] == prompt["tokens"] + len(" Two and two.")


def test_an_agent_plays_an_episode(run_folder: Path, lit_rlvr: CLI) -> None:
    """Its calls, what of it is in the loss, and its reward; it plays as in training."""
    script = Path(__file__).parents[1] / "helpers" / "tiny_agent.py"
    agent = json.dumps({"class_path": "Agent", "init_args": {"command": [sys.executable, str(script), "branches"]}})
    turns = ("--rollout.sampling.max_turns", 4, "--rollout.sampling.max_episode_tokens", 300)
    command = ("preview", "--config", "tiny.yaml", *turns, "--rollout.environment", agent, "--prompts", 1)
    shown = json.loads(lit_rlvr(*command, "--episodes", 1, "--json", status=0).out)
    (episode,) = shown["episodes"]
    assert episode["id"] == shown["prompts"][0]["id"] and episode["prompt"]["text"].startswith("<|im_start|>system\n")
    parts = episode["completion"]
    calls = episode["calls"]
    assert len(calls) == 4 and sum(int(call["tokens"]) for call in calls) == sum(
        part["tokens"] for part in parts if part["in_loss"]
    )
    assert any("how?" in part["text"] and not part["in_loss"] for part in parts)
    assert episode["rewards"]["environment"]["status"] == "ok"
    assert episode["reward"] == pytest.approx(sum(result["value"] for result in episode["rewards"].values()))
    lit_rlvr("preview", "--config", "tiny.yaml", "--episodes", 1, status=2, says="--episodes: there is no rollout.envi")


def test_images_are_saved_and_named(run_folder: Path, lit_rlvr: CLI, vlm_folder: Path) -> None:
    model = ("--model.init_args.model", vlm_folder, "--data", "LesionCount", "--data.init_args.pictures", 4)
    result = lit_rlvr("preview", "--config", "tiny.yaml", *model, "--prompts", 1, "--out", "seen", status=0)
    assert "<|vision_start|><|image_pad|><|vision_end|>How many bright" in result.out
    assert "image 1: 9 tokens, 84 x 84 pixels, seen/train-0-1.png" in result.out
    (sample,) = LesionCount(pictures=1, held_out=0).load("train")
    assert Image.open(run_folder / "seen/train-0-1.png").tobytes() == sample.images[0].tobytes()


def test_pictures_of_the_users_are_left_alone(run_folder: Path, lit_rlvr: CLI, vlm_folder: Path) -> None:
    """Those of an earlier preview are not the user's."""
    options = ("--model.init_args.model", vlm_folder, "--data", "LesionCount", "--data.init_args.pictures", 4)
    command = ("preview", "--config", "tiny.yaml", *options, "--prompts", 1, "--out", "seen")
    assert lit_rlvr(*command).status == lit_rlvr(*command).status == 0
    mine = run_folder / "seen/train-0-1.png"
    Image.new("RGB", (3, 3)).save(mine)
    before = mine.read_bytes()
    lit_rlvr(*command, status=2, says="--out: seen/train-0-1.png exists and is not a picture of")
    assert mine.read_bytes() == before


def test_a_folder_that_cannot_be_is_one_line_without_pictures_too(run_folder: Path, lit_rlvr: CLI) -> None:
    lit_rlvr("preview", "--config", "tiny.yaml", "--out", "/proc/x", status=2, says="--out: /proc/x cannot be written")
    (run_folder / "my.jsonl").write_text("{}\n")
    for command in ("preview", "split"):
        lit_rlvr(
            command,
            "--config",
            "tiny.yaml",
            "--out",
            "my.jsonl",
            status=2,
            says="--out: my.jsonl is a file; give a folder",
        )


def test_a_set_that_is_not_there(run_folder: Path, lit_rlvr: CLI) -> None:
    lit_rlvr("preview", "--config", "tiny.yaml", "--split", "test", status=2, says="--split: there is no test set")
