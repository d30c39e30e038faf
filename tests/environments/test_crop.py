"""A region of the image, enlarged."""

from __future__ import annotations

import pytest
from PIL import Image

from lit_rlvr.environments import Crop
from lit_rlvr.errors import UserError
from lit_rlvr.types import Sample, Turn


def test_a_region_is_enlarged() -> None:
    image = Image.new("RGB", (100, 50), "white")
    image.paste("red", (50, 0, 100, 25))
    glass = Crop(size=80)
    glass.reset(Sample("a", "?", "", images=(image,)))
    seen = glass.step(Turn("<call>crop(0.5, 0, 1, 0.5)</call>"))
    (shown,) = seen.images
    assert (seen.text, seen.calls, seen.errors, shown.size) == ("", 1, 0, (80, 40))
    assert shown.getcolors() == [(3200, (255, 0, 0))]
    wrong = glass.step(Turn("<call>crop(0.5, 0, 0.4, 1)</call>"))
    assert (wrong.errors, not wrong.images, "0 <= left < right <= 1" in wrong.text) == (1, True, True)
    assert glass.step(Turn("It is red.")).done


def test_it_needs_an_image() -> None:
    with pytest.raises(UserError, match="a: Crop needs an image"):
        Crop().reset(Sample("a", "?", ""))
    with pytest.raises(UserError, match="20 pixels are too few"):
        Crop(size=20)
