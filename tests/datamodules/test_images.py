"""Images: every form and mode decodes to RGB, broken ones are named and skipped, each has its place in the prompt."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

from lit_rlvr.common.pictures import fit
from lit_rlvr.datamodules import PromptDataModule
from lit_rlvr.datamodules.reading.cells import BadRow, is_blank
from lit_rlvr.datamodules.reading.chat import Chat
from lit_rlvr.datamodules.reading.conversations import as_conversation
from lit_rlvr.datamodules.reading.images import (
    ImageOptions,
    as_images,
    as_parts,
    decode,
    open_images,
    place_images,
    resize,
)
from lit_rlvr.datamodules.reading.rows import map_columns
from lit_rlvr.datamodules.reading.stream import fingerprint
from lit_rlvr.errors import UserError
from lit_rlvr.media import kinds_of
from lit_rlvr.policy.loading import load_image_processor
from lit_rlvr.types import Sample

RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def red(width: int = 8, height: int = 4) -> Image.Image:
    return Image.new("RGB", (width, height), RED)


# modes


def test_every_mode_becomes_rgb() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, *RED])
    palette.putpixel((1, 0), 1)
    for picture, pixel in (
        (Image.new("L", (2, 1), 100), (100, 100, 100)),
        (Image.new("1", (2, 1), 1), WHITE),
        (palette, RED),
        (Image.new("CMYK", (2, 1), (0, 255, 255, 0)), RED),
        (Image.new("RGB", (2, 1), RED), RED),
    ):
        shown = decode(encoded(picture, "TIFF" if picture.mode == "CMYK" else "PNG"))
        assert (shown.mode, shown.size, shown.getpixel((1, 0))) == ("RGB", (2, 1), pixel), picture.mode


def test_what_is_transparent_is_white() -> None:
    ink = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    ink.putpixel((1, 0), (255, 0, 0, 255))
    assert [decode(encoded(ink)).getpixel((x, 0)) for x in (0, 1)] == [WHITE, RED]
    assert decode(Image.new("LA", (1, 1), (0, 0))).getpixel((0, 0)) == WHITE
    assert decode(encoded(Image.new("P", (1, 1), 0), "GIF", transparency=0)).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_deep_greyscale_is_spread_over_its_own_range(kind: type) -> None:
    """12 bits in a 16-bit file: 1000 is black, 3000 the middle, 5000 white."""
    picture = Image.fromarray(np.array([[1000, 3000, 5000]], dtype=kind))
    shown = decode(encoded(picture, "TIFF"))
    assert [shown.getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (128,) * 3, WHITE]
    assert decode(Image.fromarray(np.full((1, 1), 7, dtype=kind))).getpixel((0, 0)) == (0, 0, 0)


def test_exif_rotation_is_applied() -> None:
    picture = red(2, 1)
    picture.putpixel((0, 0), WHITE)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it a quarter clockwise to see it upright
    shown = decode(encoded(picture, exif=exif))
    assert (shown.size, shown.getpixel((0, 0)), shown.getpixel((0, 1))) == ((1, 2), WHITE, RED)


# where images come from


def test_every_form_of_an_image_is_the_same_image(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    data = encoded(red())
    (tmp_path / "sub" / "a.png").write_bytes(data)
    text = base64.b64encode(data).decode()
    forms = [
        {"bytes": data, "path": None}, {"bytes": None, "path": "sub/a.png"}, data, red(), "sub/a.png",
        str(tmp_path / "sub" / "a.png"), Path("sub/a.png"), text, "data:image/png;base64," + text[:9] + "\n" + text[9:],
    ]  # fmt: skip
    images = open_images(forms, tmp_path)
    assert len(images) == len(forms) and len(set(images.keys)) == 1
    assert all(image.mode == "RGB" and image.getpixel((7, 3)) == RED for image in images)
    assert images[-1].size == (8, 4) and [i.size for i in images[:2]] == [(8, 4)] * 2


@pytest.mark.parametrize(
    ("cell", "count"),
    [
        *((cell, 0) for cell in (None, float("nan"), "", b"", [], [None, ""], {"bytes": None, "path": ""})),
        *((cell, 1) for cell in (" ", b" ", {"path": " "}, np.full((2, 2), None))),
    ],
)
def test_only_an_empty_cell_is_no_picture(cell: Any, count: int) -> None:
    """A text of spaces is a path that is not found, and an array is a picture."""
    assert len(as_images(cell)) == count and len(as_images(["a.png", cell])) == 1 + count
    message = {"role": "user", "content": [{"type": "image", "image": cell}]}
    assert len(as_conversation(message)[0]["content"][0]) == 1 + count
    assert not isinstance(cell, np.ndarray) or not is_blank(cell), "it would look at each pixel"


@pytest.mark.parametrize(
    "image,message",
    [
        ("gone.png", "image: no such file: .*gone.png"),
        ({"bytes": None, "path": None}, "image: expected a path, bytes or an image, got NoneType"),
        (7, "got int"),
        (b"", "number 1 cannot be decoded"),
        (b"no image", "number 1 cannot be decoded .not an image."),
        (encoded(red(64, 64))[:-40], "number 1 cannot be decoded"),
        ("iVBORw0KGgo=broken!", "broken base64"),
        (base64.b64encode(encoded(red()))[:40].decode(), "number 1 cannot be decoded"),
    ],
)
def test_what_is_no_image_is_refused_by_name(image: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadRow, match=message):
        open_images([image], tmp_path)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP", "MPO"])
def test_no_frame_is_dropped_in_silence(kind: str) -> None:
    """A phone saves a photo with its preview as MPO."""
    file = BytesIO()
    red(64, 64).save(file, kind, save_all=True, append_images=[Image.new("RGB", (64, 64), "blue")])
    if kind == "MPO":
        assert decode(file.getvalue()).size == (64, 64)
        return
    with pytest.raises(BadRow, match=r"number 1 cannot be decoded \(it has 2 frames; give one image for each"):
        open_images([file.getvalue()], Path())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_no_numbers_are_refused(value: float) -> None:
    pixels = np.zeros((8, 8), np.float32)
    pixels[3, 3] = value
    with pytest.raises(BadRow, match=r"number 1 cannot be decoded \(it has pixels that are NaN or infinite\)"):
        open_images([encoded(Image.fromarray(pixels), "TIFF")], Path())


# sizes


def test_pixels_stay_within_the_bounds() -> None:
    assert fit((100, 50), None, None) == fit((100, 50), 5000, 5000) == (100, 50)
    assert fit((100, 50), None, 1250) == (50, 25)
    assert fit((100, 50), 20000, None) == (200, 100)
    wide, high = fit((101, 7), 5000, None)
    assert wide * high >= 5000 and abs(wide / high - 101 / 7) < 0.5
    wide, high = fit((101, 7), None, 300)
    assert wide * high <= 300


def test_long_images_get_white_margins() -> None:
    """1 x 1000 is longer than 200 : 1, which the processor refuses; five pixels across are enough."""
    shown = resize(red(1, 1000), None, None)
    assert (shown.size, shown.getpixel((2, 500)), shown.getpixel((0, 500))) == ((5, 1000), RED, WHITE)
    assert resize(red(1000, 2), None, 500).size == (500, 3)
    assert resize(red(200, 1), None, None).size == (200, 1)


def test_sizes_are_those_of_the_decoded_images(tmp_path: Path) -> None:
    pictures = [red(100, 50), red(1, 1000), red(3, 3)]
    images = open_images([encoded(p) for p in pictures], tmp_path, ImageOptions(None, 100, 2000))
    assert [image.size for image in images] == list(images.sizes) and images.sizes[1] == (5, 1000)
    assert images.sizes[0] == (63, 31) and images.sizes[2] == (10, 10)


# in a data set


def rows(count: int) -> list[dict[str, Any]]:
    return [{"q": f"How long is {i}?", "a": str(i), "picture": f"pics/{i}.png"} for i in range(count)]


@pytest.fixture
def own_data(tmp_path: Path) -> Path:
    (tmp_path / "pics").mkdir()
    for i in range(20):
        red(8 + i, 4).save(tmp_path / "pics" / f"{i}.png")
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(20)))
    return tmp_path


COLUMNS = {"prompt": "q", "answer": "a", "image": "picture"}


def test_image_folder_is_where_paths_start(own_data: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("rows") / "train.jsonl"
    elsewhere.write_bytes((own_data / "train.jsonl").read_bytes())
    assert (
        len(PromptDataModule(str(elsewhere), columns=COLUMNS, images=ImageOptions(folder=str(own_data))).load("train"))
        == 20
    )
    for folder, what in ((own_data / "none", "there is no such folder"), (elsewhere, "is a file; unpack an archive")):
        with pytest.raises(UserError, match=f"data.images.folder: '{folder}': {what}"):
            PromptDataModule(str(elsewhere), columns=COLUMNS, images=ImageOptions(folder=str(folder))).load("train")
    with pytest.raises(UserError, match=r"train.jsonl: 20 of 20 rows cannot be used .*train.jsonl:1: image: no such"):
        PromptDataModule(str(elsewhere), columns=COLUMNS).load("train")


def test_an_image_that_changes_or_disappears_during_the_run_is_named(own_data: Path, vlm_folder: Path) -> None:
    """The tokens of its prompt are those of the old size."""
    data = PromptDataModule(str(own_data / "train.jsonl"), columns=COLUMNS, prompts_per_rollout=20)
    data.tokenizer = AutoTokenizer.from_pretrained(vlm_folder)
    data.image_processor = load_image_processor(str(vlm_folder))
    data.setup("fit")
    red(200, 100).save(own_data / "pics" / "3.png")
    with pytest.raises(
        UserError, match=r"train.jsonl:4: \d+ image placeholders for 28 image features; the image has ch"
    ):
        next(iter(data.train_dataloader()))
    (own_data / "pics" / "3.png").unlink()
    with pytest.raises(UserError, match=r"train.jsonl:4: image: .*No such file.*3\.png.*; it was there when"):
        next(iter(data.train_dataloader()))


def test_an_image_folder_is_read_with_its_metadata(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 2)):
        (tmp_path / split).mkdir()
        lines = []
        for i in range(count):
            red().save(tmp_path / split / f"{i}.png")
            lines.append(json.dumps({"file_name": f"{i}.png", "prompt": f"{split} {i}?", "answer": "1"}) + "\n")
        (tmp_path / split / "metadata.jsonl").write_text("".join(lines))
    data = PromptDataModule(train=str(tmp_path), test=str(tmp_path))
    assert [s.prompt for s in data.load("train")] == ["train 0?", "train 1?", "train 2?"]
    assert [len(s.images) for s in data.load("test")] == [1, 1]


@pytest.mark.parametrize("how", ["parquet", "arrow", "saved"])
def test_images_of_datasets_features_are_read(tmp_path: Path, how: str) -> None:
    """What `datasets` writes: {"bytes", "path"} in parquet, arrow and saved folders."""
    features = datasets.Features(
        {
            "prompt": datasets.Value("string"),
            "answer": datasets.Value("string"),
            "images": datasets.List(datasets.Image()),
        }
    )
    table = {"prompt": ["<image> or <image>?", "none?"], "answer": ["1", "2"], "images": [[red(), red(2, 2)], []]}
    made = datasets.Dataset.from_dict(table, features=features)
    path = tmp_path / f"train.{how}"
    if how == "parquet":
        made.to_parquet(str(path))
    else:
        path = tmp_path / "saved"
        made.save_to_disk(str(path))
        path = next(path.glob("*.arrow")) if how == "arrow" else path
    two, none = PromptDataModule(train=str(path)).load("train")
    assert (two.images.sizes, two.images[1].getpixel((0, 0)), not none.images) == (((8, 4), (2, 2)), RED, True)


def test_other_images_are_another_training_set(own_data: Path, vlm_folder: Path) -> None:
    def digest() -> dict[str, str]:
        data = PromptDataModule(str(own_data / "train.jsonl"), columns=COLUMNS)
        data.tokenizer = AutoTokenizer.from_pretrained(vlm_folder)
        data.image_processor = load_image_processor(str(vlm_folder))
        data.setup("fit")
        return fingerprint(data.stream)

    before = digest()
    assert digest() == before
    Image.new("RGB", (8, 4), "blue").save(own_data / "pics" / "0.png")
    after = digest()
    assert [part for part in before if before[part] != after[part]] == ["images"]


# placeholders


IMAGE, TEXT = {"type": "image"}, "text"


def text(words: str) -> dict[str, str]:
    return {"type": TEXT, "text": words}


def test_placeholders_become_parts_in_order() -> None:
    (message,) = as_parts([{"role": "user", "content": "<image>Is <image>\nlike it?"}], ["a", "b"])
    assert message == {"role": "user", "content": [IMAGE, text("Is "), IMAGE, text("\nlike it?")]}


def test_without_placeholders_images_come_before_the_question() -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    made = as_parts([*turns, {"role": "user", "content": "which?"}], ["a", "b"])
    assert [m["content"] for m in made] == [[text("hi")], [text("ho")], [IMAGE, IMAGE, text("which?")]]
    assert as_parts([{"role": "user", "content": [text("see"), IMAGE]}], ["a"])[0]["content"] == [text("see"), IMAGE]


@pytest.mark.parametrize("words", ["<img>a.png</img>", "See <img> https://a.b/c </img>, then <image>"])
def test_images_that_the_text_names_are_refused(words: str) -> None:
    for prompt in (words, [{"role": "user", "content": words}], [{"role": "user", "content": [text(words)]}]):
        with pytest.raises(BadRow, match=r"<img>.*</img> is not read; write <image> in its place"):
            place_images(Sample("s", prompt, "a", images=("b.png",)))
    kept = Sample("s", 'Which tag is right, <img src="a.png"> or <img>picture</img>?', "a")
    assert place_images(kept) is kept


@pytest.mark.parametrize("places,images,fits", [(0, 0, 1), (0, 3, 1), (1, 1, 1), (2, 2, 1), (1, 0, 0), (2, 1, 0)])
def test_every_placeholder_has_its_image(places: int, images: int, fits: int) -> None:
    words, given = "<image>" * places + "?", ("a.png",) * images
    for prompt in (words, [{"role": "user", "content": [text(words)]}], [{"role": "user", "content": words}]):
        if fits:
            assert place_images(Sample("1", prompt, "A", given)).images == given
            continue
        with pytest.raises(BadRow, match=f"image: {places} <image> placeholders for {images} images"):
            place_images(Sample("1", prompt, "A", given))


def test_the_template_goes_around_the_text_and_text_stays_text() -> None:
    chat = Chat(template="{prompt} Think.", system_prompt="Be brief.")
    made = chat.messages(Sample("x", "<image>how long?", "4", images=(red(),)))
    assert made == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [IMAGE, text("how long? Think.")]},
    ]
    assert chat.messages(Sample("x", "how long?", "4"))[1]["content"] == "how long? Think."


def test_a_model_without_a_chat_template_cannot_see_images(plain_tokenizer: Any) -> None:
    data = PromptDataModule(train="unused")
    data.tokenizer = plain_tokenizer
    with pytest.raises(UserError, match="toy:1: images need a model with a chat template"):
        data.render(Sample("x", "how long?", "4", images=(red(),), source="toy:1"))


@pytest.mark.parametrize(
    ("prompt", "count", "read"),
    [
        ("<|image|>q", 1, "@q"), ("<|image_1|>q", 1, "@q"), ("<image1> and <image 2>: q", 2, "@ and @: q"),
        ("<|begin_of_image|><|image|><|end_of_image|>q", 1, "@q"), ("<img><IMG_CONTEXT><IMG_CONTEXT></img>q", 1, "@q"),
        ("[IMG]q", 1, "@q"), ("<IMAGE>q", 1, "@q"), ("<image></image>q", 1, "@q"), ("<start_of_image>q", 1, "@q"),
        ("<|vision_start|><|image_pad|><|image_pad|><|vision_end|>q", 1, "@q"),
        ("<|vision_start|><image><|vision_end|>q", 1, "@q"), ("q [img]x", 1, "@q [img]x"),
    ],
)  # fmt: skip
def test_marks_of_images_of_other_families_are_placeholders(prompt: str, count: int, read: str) -> None:
    images = (Image.new("RGB", (8, 8)),) * count
    placed = place_images(Sample("1", prompt, "a", images=images))
    (message,) = as_parts([{"role": "user", "content": placed.prompt}], placed.images)
    assert "".join(part.get("text", "@") for part in message["content"]) == read


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("<|image|>q", "1 <image> placeholders for 2 images"),
        ("<image2> or <image1>?", r"numbers \[2, 1\]; name each image once"),
    ],
)
def test_marks_that_do_not_fit_the_images_make_a_bad_row(prompt: str, said: str) -> None:
    with pytest.raises(BadRow, match=said):
        place_images(Sample("1", prompt, "a", images=(Image.new("RGB", (8, 8)),) * 2))


@pytest.mark.parametrize("columns", [{"image": "path"}, {"video": "path"}, {"image": "path", "video": "path"}])
def test_a_column_of_images_and_videos_is_told_apart_by_the_files(columns: dict[str, str]) -> None:
    kinds = {"a.mp4": "video", "b.png": "image", "c.JPG": "image"}
    for path, kind in kinds.items():
        row = {"path": path, "prompt": f"<{kind}>q", "answer": "a"}
        sample = place_images(map_columns(row, columns, "1", "f:1"))
        assert [*kinds_of(sample.images)] == [kind]
