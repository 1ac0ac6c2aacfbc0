"""Picture files of every kind, both ways of preparing them, and backgrounds."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fewstep_shapes3d.pictures import background
from fewstep_shapes3d.pictures.background import remove_background
from fewstep_shapes3d.pictures.loading import load_picture, needs_background_removal
from fewstep_shapes3d.pictures.preprocess import dataset_preparation, object_box, prepare
from golden.run import main
from PIL import Image

from fewstep.errors import FewstepError

DATA = Path(__file__).parent / "golden" / "data"


def cut_out(box: tuple[int, int, int, int], size: tuple[int, int] = (60, 40), alpha: int = 255) -> Image.Image:
    """A red rectangle (first and last column and row, included) on nothing."""
    pixels = np.zeros((size[1], size[0], 4), np.uint8)
    pixels[box[1] : box[3] + 1, box[0] : box[2] + 1] = (200, 10, 30, alpha)
    return Image.fromarray(pixels)


def test_the_reference_picture_to_the_pixel(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(DATA), "--only", "pipeline/"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("box", "alpha", "expected"),
    [
        ((10, 5, 29, 14), 255, (8, -2, 30, 20)),  # centre (19.5, 9.5), size int(22.8) = 22; halves go to the even side
        ((10, 5, 30, 14), 255, (8, -2, 32, 22)),  # centre (20, 9.5), size 24
        ((10, 5, 30, 14), 205, (8, -2, 32, 22)),  # 0.8 of 255 is 204: one more is in
        ((7, 7, 7, 7), 255, (6, 6, 8, 8)),  # one pixel: upstream's box is empty
    ],
)
def test_the_box_of_an_object(box: tuple[int, int, int, int], alpha: int, expected: tuple[int, ...]) -> None:
    assert object_box(cut_out(box, alpha=alpha)) == expected


def test_pixels_that_are_hardly_there_are_no_object() -> None:
    with pytest.raises(
        FewstepError, match=r"image: got 'ghost\.png'; .*transparent everywhere; an object's is above 204"
    ):
        prepare(cut_out((10, 5, 29, 14), alpha=204), "ghost.png")
    with pytest.raises(FewstepError, match=r"the highest here is 150"):
        prepare(Image.new("RGBA", (9, 9), (1, 2, 3, 150)))
    with pytest.raises(FewstepError, match=r"transparent everywhere$"):
        prepare(Image.new("RGBA", (9, 9)))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (Image.new("RGB", (1, 1), "red"), "its object is only 1 x 1 pixels"),
        (Image.new("RGB", (64, 48), "red"), "of one colour"),
        (Image.new("L", (64, 64), 200), "of one colour"),
        (cut_out((7, 7, 7, 7)), "its object is only 1 x 1 pixels"),
        (cut_out((7, 7, 20, 9)), "its object is only 14 x 3 pixels"),
        (Image.merge("RGBA", [Image.new("L", (60, 40), 3)] * 3 + [cut_out((5, 5, 50, 30)).getchannel("A")]), "of one"),
    ],
)
def test_pictures_that_show_hardly_anything_are_named(image: Image.Image, words: str) -> None:
    with pytest.warns(UserWarning, match=f"dot.png: .*{words}"):
        prepare(image, "dot.png", 28, background="keep")


def test_pictures_that_show_something_are_not(recwarn: pytest.WarningsRecorder) -> None:
    half = Image.new("RGB", (64, 48), "red")
    half.paste("white", (0, 0, 30, 48))
    prepare(half, size=28, background="keep")
    prepare(cut_out((5, 5, 50, 30)), size=28)
    assert not recwarn.list


def test_the_two_preparations_differ_where_they_should() -> None:
    """The data set's way: alpha above 0, 1.2 before rounding, bounds cut toward 0, no 8 bits after the product."""
    faint = cut_out((3, 3, 22, 12), alpha=100)
    tensor = dataset_preparation(faint, 24)
    half = 1.2 * 19 / 2
    bounds = [int(centre + side) for side in (-half, half) for centre in (12.5, 7.5)]
    assert bounds == [1, -3, 23, 18], "22 wide and 21 high"
    square = np.asarray(faint.crop((1, -3, 23, 18)).resize((24, 24), Image.Resampling.LANCZOS)).astype(np.float32)
    expected = (square[..., :3] / 255) * (square[..., 3:] / 255)
    assert tensor.dtype == torch.float32
    assert torch.equal(tensor, torch.from_numpy(expected).permute(2, 0, 1))
    middle = float(tensor[0, 12, 12])
    assert middle == pytest.approx(200 / 255 * 100 / 255, abs=1 / 255)
    assert 0.1 < middle * 255 % 1 < 0.9, "a value between two of 8 bits"


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Image.new("RGB", (9, 9)), "mode RGBA"),
        (Image.new("RGBA", (9, 9)), "transparent everywhere"),
        (cut_out((7, 7, 7, 7)), "single pixel"),
    ],
)
def test_condition_pictures_that_cannot_be_prepared(image: Image.Image, reason: str) -> None:
    with pytest.raises(FewstepError, match=reason):
        dataset_preparation(image, 16)


def sixteen_bits(path: Path) -> tuple[int, int, int, int]:
    Image.fromarray(np.full((4, 6), 25700, np.uint16)).save(path)
    return 100, 100, 100, 255


def cmyk(path: Path) -> tuple[int, int, int, int]:
    Image.new("CMYK", (6, 4), (0, 255, 255, 0)).save(path, "TIFF")
    return 255, 0, 0, 255


def palette(path: Path) -> tuple[int, int, int, int]:
    image = Image.new("P", (6, 4), 3)
    image.putpalette([0, 0, 0] * 3 + [9, 8, 7])
    image.save(path, "PNG", transparency=3)
    return 9, 8, 7, 0


def grey_and_alpha(path: Path) -> tuple[int, int, int, int]:
    Image.new("LA", (6, 4), (40, 128)).save(path, "PNG")
    return 40, 40, 40, 128


def frames(path: Path) -> tuple[int, int, int, int]:
    first, second = (Image.new("RGB", (6, 4), colour) for colour in ((255, 0, 0), (0, 255, 0)))
    first.save(path, "GIF", save_all=True, append_images=[second])
    return 255, 0, 0, 255


@pytest.mark.parametrize("write", [sixteen_bits, cmyk, palette, grey_and_alpha, frames])
def test_every_kind_of_file_becomes_rgba(write: object, tmp_path: Path) -> None:
    assert callable(write)
    path = tmp_path / "picture.png"
    expected = write(path)
    image = load_picture(path)
    assert (image.mode, image.size) == ("RGBA", (6, 4))
    assert image.getpixel((2, 2)) == expected
    with Image.open(path) as opened:
        assert load_picture(opened).tobytes() == image.tobytes()


def test_of_several_frames_the_first_is_used_and_said(tmp_path: Path) -> None:
    frames(tmp_path / "moving.gif")
    with pytest.warns(UserWarning, match=r"moving\.gif: 2 frames; the first is used"):
        load_picture(tmp_path / "moving.gif")


def test_a_picture_held_sideways_is_turned_upright(tmp_path: Path) -> None:
    image, exif = Image.new("RGB", (40, 20), (0, 0, 255)), Image.Exif()
    image.paste((255, 0, 0), (0, 0, 20, 20))
    exif[0x0112] = 6  # shown upright by a quarter turn to the right
    image.save(tmp_path / "held.jpg", exif=exif, quality=95)
    upright = load_picture(tmp_path / "held.jpg")
    with Image.open(tmp_path / "held.jpg") as opened:
        assert load_picture(opened).tobytes() == upright.tobytes()
    assert upright.size == (20, 40)
    top, bottom = upright.getpixel((10, 5)), upright.getpixel((10, 35))
    assert top[0] > 200 > 50 > top[2], "the left half is on top"  # type: ignore[index, operator]
    assert bottom[2] > 200 > 50 > bottom[0]  # type: ignore[index, operator]


def test_files_that_are_no_pictures_are_named(tmp_path: Path) -> None:
    text, torn, floats = tmp_path / "notes.png", tmp_path / "torn.png", tmp_path / "depth.tiff"
    text.write_text("no picture")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(torn)
    torn.write_bytes(torn.read_bytes()[:600])
    Image.new("F", (4, 4)).save(floats)
    for path in (text, torn, floats, tmp_path, tmp_path / "missing.png"):
        with pytest.raises(FewstepError, match=f"image: got '{path}'"):
            load_picture(path)
    with Image.open(torn) as opened, pytest.raises(FewstepError, match="image: got 'mine'"):
        load_picture(opened, "mine")


def test_whether_a_background_must_go() -> None:
    assert needs_background_removal(Image.new("RGB", (4, 4)))
    assert needs_background_removal(Image.new("RGBA", (4, 4), (1, 2, 3, 255)))
    assert not needs_background_removal(cut_out((1, 1, 3, 3), (4, 4)))
    almost = Image.new("RGBA", (4, 4), (1, 2, 3, 255))
    almost.putpixel((2, 1), (1, 2, 3, 254))
    assert not needs_background_removal(almost)


def test_without_rembg_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rembg", None)
    background._session.cache_clear()
    with pytest.raises(FewstepError, match=r"chair\.jpg.*pip install -e '\.\[background\]'.*--background keep.*RGBA"):
        prepare(Image.new("RGB", (20, 20)), "chair.jpg")


def test_a_photograph_goes_through_rembg_and_is_cropped(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, tuple[int, int], object]] = []

    def remove(image: Image.Image, session: object) -> Image.Image:
        seen.append((image.mode, image.size, session))
        return cut_out((100, 100, 299, 199), image.size)

    fake = SimpleNamespace(remove=remove, new_session=lambda network: f"session of {network}")
    monkeypatch.setitem(sys.modules, "rembg", fake)
    background._session.cache_clear()
    result = prepare(Image.new("RGB", (2000, 1501), (255, 255, 255)), size=64)
    background._session.cache_clear()
    assert seen == [("RGB", (1024, 768), "session of u2net")], "at most 1024 pixels long, sides cut to whole pixels"
    assert result.tobytes() == prepare(cut_out((100, 100, 299, 199), (1024, 768)), size=64).tobytes()


def test_a_network_that_cannot_be_had_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(network: str) -> object:
        raise ConnectionError("no route to host")

    monkeypatch.setitem(sys.modules, "rembg", SimpleNamespace(remove=None, new_session=fail))
    background._session.cache_clear()
    with pytest.raises(FewstepError, match=r"a\.jpg: rembg could not load its network u2net.*no route to host"):
        remove_background(Image.new("RGB", (8, 8)), "a.jpg")
