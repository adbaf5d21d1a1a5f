from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from envs.datasets.checks import CheckedImages, UnusableImageError, check_images, square_rgb
from rewards.errors import InputError


def noise(n: int, size: int = 20, channels: tuple[int, ...] = (3,)) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, *channels), dtype=np.uint8)


def check(pixels: NDArray[Any], size: int = 20, **columns: Any) -> CheckedImages:
    n = len(pixels)
    defaults: dict[str, Any] = {
        "ids": [f"i{k}" for k in range(n)],
        "groups": [""] * n,
        "captions": ["x"] * n,
        "labels": [0] * n,
    }
    return check_images(pixels, size=size, **(defaults | columns))


def test_good_images_pass_untouched() -> None:
    pixels = noise(3)
    checked = check(pixels, groups=["p", "", "p"], labels=[2, 1, 0], declared=["train", "", "test"])
    np.testing.assert_array_equal(checked.images.images, pixels)
    assert checked.images.groups == ("p", "i1", "p")
    assert checked.images.labels.tolist() == [2, 1, 0]
    assert checked.declared == ("train", "", "test")
    assert checked.rejects == ()


@pytest.mark.parametrize("channels", [(), (1,)])
def test_gray_becomes_rgb(channels: tuple[int, ...]) -> None:
    pixels = noise(2, channels=channels)
    images = check(pixels).images.images
    assert images.shape == (2, 20, 20, 3)
    for channel in range(3):
        np.testing.assert_array_equal(images[..., channel], pixels.reshape(2, 20, 20))


def test_floats_are_scaled_and_the_callers_array_is_left_alone() -> None:
    levels = noise(3)
    pixels = levels.astype(np.float32) / 255
    pixels[1, 4, 5, 0] = np.nan
    before = pixels.copy()
    checked = check(pixels)
    np.testing.assert_array_equal(checked.images.images, levels[[0, 2]])
    np.testing.assert_array_equal(pixels, before)


def test_each_fault_is_named_and_the_rest_stays() -> None:
    pixels = noise(7).astype(np.float64) / 255
    pixels[1] = 0.25
    pixels[2, 0, 0, 0] = np.nan
    pixels[3, 1, 1, 1] = np.inf
    pixels[4, 2, 2, 2] = 7
    ids = ["a", "constant", "nan", "inf", "range", "a", "b"]
    captions = [f"caption of {k}" for k in range(7)]
    checked = check(pixels, ids=ids, captions=captions)
    assert checked.images.ids == ("a", "b")
    assert checked.images.captions == ("caption of 0", "caption of 6")
    reasons = {(reject.id, reject.reason) for reject in checked.rejects}
    assert reasons == {
        ("constant", "constant: every pixel is the same"),
        ("nan", "NaN or infinite values"),
        ("inf", "NaN or infinite values"),
        ("range", "values from " + f"{pixels[4].min():g} to 7, not within 0 and 1"),
        ("a", "an earlier image has the same id"),
    }


def test_one_colour_is_constant_and_a_single_other_pixel_is_not() -> None:
    pixels = np.zeros((3, 20, 20, 3), dtype=np.uint8)
    pixels[:] = (10, 200, 30)
    pixels[1, 19, 19, 2] = 31
    pixels[2] = noise(1)[0]
    assert check(pixels).images.ids == ("i1", "i2")


def test_other_sizes_are_cropped_to_the_centre_and_averaged() -> None:
    pixels = np.zeros((1, 40, 60, 3), dtype=np.uint8)
    pixels[:, :, 30:50] = 255
    pixels[:, :, :10] = 77  # cropped away, as are the last ten columns
    images = check(pixels).images.images[0]
    np.testing.assert_array_equal(images[:, :6], 0)
    np.testing.assert_array_equal(images[:, 14:], 255)


@pytest.mark.parametrize(
    ("pixels", "columns", "message"),
    [
        (np.zeros((4, 20), dtype=np.uint8), {}, "shape"),
        (np.zeros((4, 20, 20, 4), dtype=np.uint8), {}, r"shape \(4, 20, 20, 4\)"),
        (np.zeros((4, 19, 20), dtype=np.uint8), {}, "20x19 pixels are smaller than size=20"),
        (np.zeros((4, 20, 20), dtype=np.uint16), {}, "type uint16"),
        (np.zeros((4, 20, 20), dtype=np.uint8), {}, "none of 4 images can be used, the first: i0: constant"),
        (np.zeros((0, 20, 20), dtype=np.uint8), {}, "none of 0 images"),
        (np.zeros((4, 20, 20), dtype=np.uint8), {"captions": ["x"] * 3}, "4 images have 3 values of text"),
        (np.zeros((4, 20, 20), dtype=np.uint8), {"declared": ["train"]}, "4 images have 1 values of split"),
    ],
)
def test_an_array_that_is_wrong_as_a_whole_is_refused(
    pixels: NDArray[Any], columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check(pixels, **columns)


def ramp(high: float, size: int = 32) -> NDArray[np.float64]:
    return np.linspace(0, high, size * size).reshape(size, size)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(np.rint(ramp(65535)).astype(np.uint16)),
        Image.fromarray(np.rint(ramp(65535)).astype(np.int32)),
        Image.fromarray(ramp(1).astype(np.float32)),
        Image.fromarray(np.rint(ramp(255)).astype(np.uint8)),
    ],
    ids=["16 bit", "32 bit", "float", "8 bit"],
)
def test_every_depth_maps_its_full_range_to_0_255(image: Image.Image) -> None:
    result = square_rgb(image, 32)
    expected = np.repeat(ramp(255)[..., None], 3, axis=-1)
    assert np.abs(result - expected).max() <= 1


def test_a_palette_is_looked_up() -> None:
    colours = np.array([[250, 10, 20], [30, 240, 50]], dtype=np.uint8)
    rows = np.random.default_rng(0).integers(0, 2, (16, 16), dtype=np.uint8)
    image = Image.fromarray(rows, mode="L")
    image.putpalette(colours.tobytes())
    assert image.mode == "P"
    np.testing.assert_array_equal(square_rgb(image, 16), colours[rows])


def test_transparency_turns_black() -> None:
    rgba = np.full((16, 16, 4), 200, dtype=np.uint8)
    rgba[:8, :, 3] = 0
    rgba[8:, :, 3] = 255
    result = square_rgb(Image.fromarray(rgba), 16)
    np.testing.assert_array_equal(result[:8], 0)
    np.testing.assert_array_equal(result[8:], 200)


def test_the_orientation_tag_is_followed() -> None:
    pixels = noise(1, 16)[0]
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = 3  # turned by 180 degrees
    np.testing.assert_array_equal(square_rgb(image, 16), pixels[::-1, ::-1])


def test_downscaling_does_not_alias() -> None:
    stripes = np.zeros((128, 128), dtype=np.uint8)
    stripes[:, ::2] = 255  # skipping pixels would give all white or all black
    inner = square_rgb(Image.fromarray(stripes), 32)[:, 2:-2]
    assert np.abs(inner.astype(int) - 128).max() <= 2


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Image.new("L", (40, 15)), "wrong shape: 40x15 pixels, smaller than 16"),
        (Image.fromarray(ramp(4095).astype(np.uint16)), "16-bit image with values up to 4095 only"),
        (Image.fromarray(np.full((16, 16), np.nan, dtype=np.float32)), "NaN"),
        (Image.fromarray(ramp(2).astype(np.float32)), "values from 0 to 2"),
    ],
)
def test_an_unusable_image_says_why(image: Image.Image, reason: str) -> None:
    with pytest.raises(UnusableImageError, match=reason):
        square_rgb(image, 16)
