"""Thumbnails: small, stored once, named in the sampled rows, removed with their run alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_runs import completions, pictures_config, write_config

from lit_rlvr.datamodules.reading.images import open_images
from lit_rlvr.run.outputs import THUMBNAIL_PIXELS, list_thumbnails, save_thumbnails

CLI = Callable[..., Any]


def test_an_image_is_stored_once_and_small(tmp_path: Path) -> None:
    wide, small = Image.new("RGB", (600, 300), "red"), Image.new("RGB", (30, 20), "blue")
    images = open_images([wide, small, wide], tmp_path)
    keys = save_thumbnails(images, tmp_path / "run")
    assert keys == list(images.keys) and keys[0] == keys[2] != keys[1]
    files = {path.stem: path for path in list_thumbnails(tmp_path / "run")}
    assert files.keys() == set(keys)
    assert Image.open(files[keys[0]]).size == (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS // 2) and Image.open(
        files[keys[1]]
    ).size == (30, 20)
    assert Image.open(files[keys[0]]).getpixel((5, 5)) == (255, 0, 0)
    files[keys[0]].write_bytes(b"kept")
    assert save_thumbnails((wide,), tmp_path / "run") == keys[:1], "plain images have the same keys"
    assert files[keys[0]].read_bytes() == b"kept"


@pytest.mark.slow
def test_sampled_rows_name_their_images(tmp_path: Path, vlm_folder: Path, lit_rlvr: CLI) -> None:
    run, foreign = tmp_path / "run", tmp_path / "run/images/mine.png"
    write_config(tmp_path / "see.yaml", pictures_config(vlm_folder, run))
    assert lit_rlvr("fit", "--config", tmp_path / "see.yaml").status == 0
    rows = completions(run)
    assert rows and all(len(row["images"]) == 1 for row in rows)
    first = {key for row in rows for key in row["images"]}
    assert {path.stem for path in list_thumbnails(run)} == first

    foreign.write_bytes(b"")
    again = ("--overwrite", "true", "--data.init_args.seed", "1")
    assert lit_rlvr("fit", "--config", tmp_path / "see.yaml", *again).status == 0
    second = {key for row in completions(run) for key in row["images"]}
    assert {path.stem for path in list_thumbnails(run)} == second != first and foreign.exists()
