"""No picture costs more than its pixels: the hostile ones are refused, or read, in little time and memory."""

import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hostile_pictures import READ, REFUSED, encoded
from PIL import Image

from slimdeploy.errors import DataError
from slimdeploy.image_structure import excess_of
from slimdeploy.images import check_image, load_image


@contextmanager
def within_bounds() -> Iterator[None]:
    """5 s, which tracing makes many of, and 100 MB, as much as the texts of a PNG may have."""
    tracemalloc.start()
    began = time.process_time()
    yield
    took, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert took < 5
    assert peak < 100e6


@pytest.mark.parametrize("case", REFUSED)
def test_a_hostile_picture_is_refused(case: str) -> None:
    picture = REFUSED[case]()
    with within_bounds(), pytest.raises(DataError, match=r"^image (has|is) "):
        load_image(picture)


@pytest.mark.parametrize("case", READ)
def test_an_odd_picture_is_read_for_its_first_frame(case: str) -> None:
    picture = READ[case]()
    with within_bounds():
        check_image(picture)
        assert load_image(picture).size == (4, 4)


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF"])
def test_pictures_as_encoders_make_them_have_few_pieces(format_: str) -> None:
    picture = Image.effect_noise((2000, 1500), 50).convert("RGB")
    assert excess_of(encoded(picture, format_, progressive=True, comment=b"c" * 60_000)) is None


@pytest.mark.parametrize("cut", range(40))
def test_pieces_that_are_cut_off_are_left_to_the_decoder(cut: int) -> None:
    for format_ in ("PNG", "JPEG", "GIF"):
        assert excess_of(encoded(Image.new("RGB", (4, 4)), format_)[:cut]) is None
