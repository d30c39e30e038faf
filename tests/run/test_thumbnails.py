"""Thumbnails: small, stored once, named in the sampled rows, removed with their run alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_runs import CLI, completions, pictures_config, write_config
from tiny_vlms import picture, write_clip

from lit_rlvr.common.run_files import THUMBNAILS, thumbnail_path
from lit_rlvr.datamodules.reading.images import open_images
from lit_rlvr.run.outputs import THUMBNAIL_PIXELS, save_thumbnails


def test_an_image_is_stored_once_and_small(tmp_path: Path) -> None:
    wide, small = Image.new("RGB", (600, 300), "red"), Image.new("RGB", (30, 20), "blue")
    images = open_images([wide, small, wide], tmp_path)
    keys = save_thumbnails(images, tmp_path / "run")
    assert keys == list(images.keys) and keys[0] == keys[2] != keys[1]
    files = {path.stem: path for path in (tmp_path / "run").glob(THUMBNAILS)}
    assert files.keys() == set(keys)
    assert Image.open(files[keys[0]]).size == (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS // 2) and Image.open(
        files[keys[1]]
    ).size == (30, 20)
    assert Image.open(files[keys[0]]).getpixel((5, 5)) == (255, 0, 0)
    files[keys[0]].write_bytes(b"kept")
    assert save_thumbnails((wide,), tmp_path / "run") == keys[:1], "plain images have the same keys"
    assert files[keys[0]].read_bytes() == b"kept"


@pytest.mark.slow
def test_a_run_on_videos_shows_their_frames_in_a_row(run_folder: Path, vlm_folder: Path, lit_rlvr: CLI) -> None:
    """With prompts of text and images among them; `preview` shows the same."""
    write_clip(run_folder / "a.mp4")
    picture(56, 56, seed=1).save(run_folder / "b.png")
    rows: list[dict[str, Any]] = [{"videos": ["a.mp4"]}, {"image": "b.png"}, {}]
    lines = [json.dumps({"prompt": f"How bright is {i}?", "answer": "1", **row}) for i, row in enumerate(rows)]
    (run_folder / "train.jsonl").write_text("\n".join(lines))
    config = pictures_config(vlm_folder, run_folder / "run")
    config["data"] = {"class_path": "PromptDataModule", "init_args": {"train": "train.jsonl", "prompts_per_rollout": 3}}
    write_config(run_folder / "see.yaml", config)
    shown = lit_rlvr("preview", "--config", "see.yaml", "--prompts", 3, "--out", "seen")
    assert "video 1: 18 tokens, 6 frames of 84 x 56 pixels, seen/prompt_data_module_1-1.png" in shown.out, shown.err
    strip = Image.open(run_folder / "seen/prompt_data_module_1-1.png").convert("L")
    assert strip.size == (6 * 84, 56)
    assert [round(strip.getpixel((84 * i + 40, 20)) / 20) for i in range(6)] == [0, 2, 4, 7, 9, 11]

    lit_rlvr("fit", "--config", "see.yaml", status=0)
    keys = {row["prompt"]: row.get("images", []) for row in completions(run_folder / "run")}
    assert {prompt: len(found) for prompt, found in keys.items()} == {"How bright is 0?": 1, "How bright is 1?": 1}
    assert Image.open(thumbnail_path(run_folder / "run", keys["How bright is 0?"][0])).size == (6 * 84, 56)
    assert lit_rlvr("explain", "run", "--prompt", "prompt_data_module:1").status == 0
    assert (run_folder / "run/explain.html").read_text().count('<img src="data:image/png') == 1
