"""The close look at a group: images, tokens, and how much of a long text is shown."""

import base64
from io import BytesIO
from pathlib import Path

from made_runs import group, make_run, row
from PIL import Image

from lit_rlvr.commands.report.closeup import close_up
from lit_rlvr.commands.report.groups import RunGroup
from lit_rlvr.commands.report.page import write_report
from lit_rlvr.commands.report.render import image_uris
from lit_rlvr.commands.report.runs import read_run
from lit_rlvr.run.outputs import save_thumbnails


def look(folder: Path) -> RunGroup:
    return RunGroup("g", runs=[read_run(folder)], wanted=1)


def test_images_are_inlined(tmp_path: Path) -> None:
    keys = save_thumbnails([Image.new("RGB", (8, 8), color) for color in ("red", "blue")], tmp_path)
    rows = [row(2, "a", 0, True, images=[keys[0], "0" * 16, "../config"], added_images=[keys[1]])]
    ((_, _, images, (added,)),) = close_up(look(make_run(tmp_path, rows=rows)))["samples"]
    for key, (uri,) in zip(keys, (images, added), strict=True):
        head, _, data = uri.partition(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(data) == (tmp_path / f"images/{key}.png").read_bytes()


def test_the_table_of_prompts_has_a_small_picture_of_each_first_image(tmp_path: Path) -> None:
    noise = Image.effect_noise((900, 600), 90).convert("RGB")
    photo, drawing = save_thumbnails((noise, Image.new("L", (300, 300), 200)), tmp_path)
    Image.new("LA", (200, 200), (0, 0)).save(tmp_path / "images/ace.png")
    (tmp_path / "images/bad.png").write_bytes(b"no picture")
    Image.new("1", (5000, 5)).save(tmp_path / "images/abc.png")
    pictures = {
        "photo": [photo, drawing],
        "clear": ["ace"],
        "broken": ["bad"],
        "huge": ["abc"],
        "lost": ["f" * 16],
        "odd": 5,
        "none": None,
    }
    rows = [row(2, name, 0, True, images=keys) for name, keys in pictures.items()]
    looked = close_up(look(make_run(tmp_path, rows=rows)))
    assert looked["thumbnails"].keys() == {"photo", "clear"}
    drawn = {}
    for name, uri in looked["thumbnails"].items():
        head, _, data = uri.partition(",")
        content = base64.b64decode(data)
        drawn[name] = Image.open(BytesIO(content)).convert("RGB")
        assert head == "data:image/webp;base64" and len(content) < 3000
    assert {name: picture.size for name, picture in drawn.items()} == {"photo": (64, 43), "clear": (64, 64)}
    assert drawn["clear"].getextrema() == ((254, 255),) * 3, "what is transparent is white"
    shown = write_report([tmp_path], tmp_path / "page.html").read_text()
    assert shown.count('class="thumbnail"') == 2 and 'alt="image 1 of 2"' in shown


def test_no_file_but_a_thumbnail_is_read(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "secret.png").write_bytes(b"secret")
    assert image_uris(tmp_path, {"images": ["../secret", "x/../../secret", 5]}) == []


def test_tokens_are_of_the_first_and_the_last_live_rollout(tmp_path: Path) -> None:
    dead = group("dead")
    for completion in dead["completions"]:
        for name in ("logp", "ratio", "weight"):
            del completion[name]
    traces = {2: [dead], 4: [dead, group("early")], 6: [group("middle")], 8: [group("late")], 10: [dead]}
    look_at = look(make_run(tmp_path / "run", traces=traces))
    found = close_up(look_at)
    assert [(step, algorithm, view["id"]) for step, algorithm, view in found["tokens"]] == [
        (4, "GRPO", "early"),
        (8, "GRPO", "late"),
    ]
    assert found["saved"] == 5 and look_at.problems == []
    assert [completion["number"] for completion in found["tokens"][0][2]["completions"]] == [0, 1]


def test_a_broken_rollout_is_noted_and_passed_over(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", traces={2: [group("good")], 4: [group("bad")]})
    (folder / "rollouts/step-000004.json").write_text("{")
    look_at = look(folder)
    assert [step for step, _, _ in close_up(look_at)["tokens"]] == [2]
    assert len(look_at.problems) == 1 and "step-000004.json cannot be read" in look_at.problems[0]
