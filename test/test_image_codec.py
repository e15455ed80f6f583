"""Image messages to arrays: every encoding against OpenCV's inverse, and everything malformed refused."""

from __future__ import annotations

import array

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perspblur_ros.errors import FrameError
from perspblur_ros.image_codec import ENCODINGS, decode, decode_camera, decode_compressed, decode_depth_m

HEIGHT, WIDTH = 12, 16


def smooth_rgb() -> np.ndarray:
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH].astype(float)
    return np.stack([60 + 5 * u, 90 + 4 * v + 2 * u, 160 - 3 * u - 2 * v], axis=-1).round().astype(np.uint8)


def grey_of(rgb: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)


def mosaic(rgb: np.ndarray, pattern: str) -> np.ndarray:
    out = np.empty(rgb.shape[:2], np.uint8)
    for i, colour in enumerate(pattern):
        out[i // 2 :: 2, i % 2 :: 2] = rgb[i // 2 :: 2, i % 2 :: 2, "rgb".index(colour)]
    return out


def yuv444(rgb: np.ndarray) -> np.ndarray:
    r, g, b = np.moveaxis(rgb.astype(float), -1, 0)
    y = 16 + 0.257 * r + 0.504 * g + 0.098 * b
    u = 128 - 0.148 * r - 0.291 * g + 0.439 * b
    v = 128 + 0.439 * r - 0.368 * g - 0.071 * b
    return np.stack([y, u, v], axis=-1).round().astype(np.uint8)


def encode(encoding: str, rgb: np.ndarray, big: bool) -> np.ndarray:
    """Rows of bytes of ``rgb`` in ``encoding``; the slow twin of the decoder."""
    wide = encoding.endswith("16") or encoding.startswith("16")
    base = encoding.removesuffix("16").removesuffix("8")
    yuv = yuv444(rgb)
    if base.startswith("bayer_"):
        pixels = mosaic(rgb, base.removeprefix("bayer_"))
    elif base == "mono" or encoding.endswith("UC1"):
        pixels = grey_of(rgb)
    elif base in ("rgb", "rgba"):
        pixels = rgb
    elif base in ("bgr", "bgra") or "UC" in encoding:
        pixels = rgb[..., ::-1]
    elif encoding in ("uyvy", "yuv422", "yuyv", "yuv422_yuy2"):
        first_chroma = encoding in ("uyvy", "yuv422")
        chroma = np.where(
            np.arange(WIDTH) % 2 == 0, yuv[:, (np.arange(WIDTH) // 2) * 2, 1], yuv[:, (np.arange(WIDTH) // 2) * 2, 2]
        )
        pixels = np.stack([chroma, yuv[..., 0]] if first_chroma else [yuv[..., 0], chroma], axis=-1)
    elif encoding in ("nv12", "nv21"):
        order = [1, 2] if encoding == "nv12" else [2, 1]
        return np.concatenate([yuv[..., 0], yuv[::2, ::2][..., order].reshape(HEIGHT // 2, WIDTH)])
    else:
        assert encoding == "nv24"
        return np.concatenate([yuv[..., 0], yuv[..., 1:].reshape(2 * HEIGHT, WIDTH)])
    if encoding.removesuffix("16").removesuffix("8").endswith("a") or encoding.endswith("UC4"):
        pixels = np.concatenate([pixels, np.full((HEIGHT, WIDTH, 1), 255, np.uint8)], axis=-1)
    if wide:
        low = np.full_like(pixels, 7)
        pixels = np.stack([pixels, low] if big else [low, pixels], axis=-1)
    return np.ascontiguousarray(pixels).reshape(HEIGHT, -1)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(("padding", "big"), [(0, False), (5, True)])
def test_every_encoding_reads_back(encoding: str, padding: int, big: bool) -> None:
    rgb = smooth_rgb()
    rows = encode(encoding, rgb, big)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=255)
    message = (encoding, HEIGHT, WIDTH, padded.shape[1], big, padded.tobytes())
    grey = decode(*message)
    assert grey.shape == (HEIGHT, WIDTH)
    assert grey.dtype == np.uint8
    is_yuv = encoding[:2] in ("yu", "uy", "nv")
    expected = yuv444(rgb)[..., 0] if is_yuv else grey_of(rgb)
    assert np.abs(grey[2:-2, 2:-2].astype(int) - expected[2:-2, 2:-2]).max() <= 4
    colour = decode(*message, rgb=True)
    assert colour.shape == (HEIGHT, WIDTH, 3)
    if grey_only := ("mono" in encoding or encoding.endswith("UC1")):
        assert np.array_equal(colour, np.repeat(grey[..., None], 3, axis=-1))
    tolerance = 0 if not is_yuv and "bayer" not in encoding else 12
    if not grey_only:
        assert np.abs(colour[2:-2, 2:-2].astype(int) - rgb[2:-2, 2:-2]).max() <= tolerance


@pytest.mark.parametrize("container", [bytes, bytearray, memoryview, lambda b: array.array("B", b)])
def test_result_does_not_share_memory_with_the_message(container) -> None:
    data = container(bytes(range(6)))
    image = decode("mono8", 2, 3, 3, 0, data)
    image[:] = 99
    assert bytes(data) == bytes(range(6))


@pytest.mark.parametrize(
    ("encoding", "height", "width", "step", "n_bytes", "says"),
    [
        ("mono8", 0, 4, 4, 0, "no pixels"),
        ("mono8", 4, 0, 0, 0, "no pixels"),
        ("mono8", 2**32 - 1, 2**32 - 1, 2**32 - 1, 16, "more than"),
        ("mono8", 2**32 - 1, 1, 1, 16, "more than"),
        ("mono8", 4, 4, 2**32 - 1, 16, "16 bytes"),
        ("mono8", 4, 4, 3, 12, "step is 3"),
        ("rgb8", 4, 4, 4, 16, "needs 12 bytes"),
        ("mono8", 4, 4, 4, 15, "15 bytes"),
        ("mono8", 4, 4, 4, 17, "17 bytes"),
        ("mono8", 4, 4, 4, 0, "0 bytes"),
        ("nv12", 3, 4, 4, 18, "odd"),
        ("yuyv", 4, 3, 6, 24, "odd"),
        ("bayer_rggb8", 2, 2, 2, 4, "too small"),
        ("32FC1", 4, 4, 16, 64, "'32FC1'"),
        ("h264", 4, 4, 16, 64, "'h264'"),
        ("", 4, 4, 4, 16, "''"),
    ],
)
def test_malformed_images_are_refused(encoding, height, width, step, n_bytes, says) -> None:
    with pytest.raises(FrameError, match=says):
        decode(encoding, height, width, step, 0, bytes(n_bytes))


uint32 = st.one_of(st.integers(0, 20), st.integers(0, 2**32 - 1))


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([*ENCODINGS, "32FC1", "?"]),
    uint32,
    uint32,
    uint32,
    st.integers(0, 255),
    st.binary(max_size=200),
    st.booleans(),
)
def test_any_header_gives_an_image_or_a_frame_error(encoding, height, width, step, big, data, rgb) -> None:
    for reader in (lambda *a: decode(*a, rgb=rgb), decode_depth_m):
        try:
            image = reader(encoding, height, width, step, big, data)
        except FrameError:
            continue
        assert image.shape[:2] == (height, width)


@pytest.mark.parametrize("big", [False, True])
def test_depth_in_metres_with_nan_for_unknown(big: bool) -> None:
    order = ">" if big else "<"
    metres = np.array([[1.5, 0.0, np.inf], [-2.0, np.nan, 7.25]], f"{order}f4")
    expected = np.array([[1.5, np.nan, np.nan], [np.nan, np.nan, 7.25]], np.float32)
    np.testing.assert_array_equal(decode_depth_m("32FC1", 2, 3, 12, big, metres.tobytes()), expected)
    millimetres = np.array([[1500, 0, 65535]], f"{order}u2")
    depth = decode_depth_m("16UC1", 1, 3, 6, big, millimetres.tobytes())
    np.testing.assert_allclose(depth, [[1.5, np.nan, 65.535]], rtol=1e-6)
    with pytest.raises(FrameError, match="rgb8"):
        decode_depth_m("rgb8", 1, 1, 3, 0, bytes(3))


@pytest.mark.parametrize(("suffix", "tolerance"), [(".png", 0), (".jpg", 6)])
def test_compressed_pictures(suffix: str, tolerance: int) -> None:
    rgb = cv2.resize(smooth_rgb(), (64, 48))
    blob = cv2.imencode(suffix, rgb[..., ::-1])[1].tobytes()
    assert np.abs(decode_compressed(blob, rgb=True).astype(int) - rgb).max() <= tolerance
    assert np.abs(decode_compressed(array.array("B", blob)).astype(int) - grey_of(rgb)).max() <= tolerance + 1


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_damaged_compressed_pictures_are_refused(suffix: str) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (48, 64), dtype=np.uint8)
    blob = cv2.imencode(suffix, noise)[1].tobytes()
    for cut in (0, 1, 3, 10, 30, len(blob) // 2, len(blob) - 20):
        with pytest.raises(FrameError):
            decode_compressed(blob[:cut])
    with pytest.raises(FrameError, match="neither JPEG nor PNG"):
        decode_compressed(b"GIF89a" + bytes(50))


def test_a_compressed_picture_of_huge_size_is_refused_before_it_is_allocated() -> None:
    blob = bytearray(cv2.imencode(".png", np.zeros((4, 4), np.uint8))[1].tobytes())
    blob[16:24] = (2**31 - 1).to_bytes(4, "big") * 2
    with pytest.raises(FrameError, match="2147483647 x 2147483647"):
        decode_compressed(bytes(blob))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([".png", ".jpg"]), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6))
def test_mutated_compressed_pictures_never_raise_anything_else(suffix: str, mutations) -> None:
    blob = bytearray(cv2.imencode(suffix, smooth_rgb())[1].tobytes())
    for at, value in mutations:
        blob[at % len(blob)] = value
    try:
        image = decode_compressed(bytes(blob))
    except FrameError:
        return
    assert image.ndim == 2


K = (500.0, 0.0, 320.0, 0.0, 510.0, 240.0, 0.0, 0.0, 1.0)


def test_camera_info_gives_the_camera() -> None:
    camera = decode_camera(640, 480, "plumb_bob", [0.1, 0.0, 0.0, 0.0, 0.0], K)
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (500.0, 510.0, 320.0, 240.0)
    assert camera.distortion == (0.1, 0.0, 0.0, 0.0, 0.0)
    assert decode_camera(640, 480, "equidistant", [0.1, 0.0, 0.0, 0.0], K).fisheye
    assert decode_camera(640, 480, "equidistant", [0.0] * 4, K) == decode_camera(640, 480, "", [], K)


@pytest.mark.parametrize(
    ("model", "d", "k", "says"),
    [
        ("plumb_bob", [], [0.0] * 9, "focal length"),
        ("plumb_bob", [], [float("nan"), *K[1:]], "finite"),
        ("plumb_bob", [], [-500.0, *K[1:]], "not positive"),
        ("plumb_bob", [0.1, 0.2, 0.3], K, "3 distortion coefficients"),
        ("equidistant", [0.1] * 5, K, "4 coefficients"),
        ("plumb_bob", [], K[:6], "6 numbers"),
        ("kannala", [], K, "'kannala'"),
    ],
)
def test_a_calibration_that_is_none_is_refused(model, d, k, says) -> None:
    with pytest.raises(FrameError, match=says):
        decode_camera(640, 480, model, d, k)
