"""The camera: pixels to rays and back, resizing, lens distortion, bad intrinsics; the shutter's instants."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perspblur_ros.camera import STAMP_REFERENCES, Camera, Shutter
from perspblur_ros.errors import FrameError

CAMERA = Camera(640, 480, 520.0, 510.0, 322.0, 236.0)
PLUMB_BOB = Camera(640, 480, 520.0, 510.0, 322.0, 236.0, (-0.28, 0.09, 0.001, -0.0005, -0.01))
RATIONAL = Camera(640, 480, 520.0, 510.0, 322.0, 236.0, (0.2, -0.3, 0.001, 0.0, 0.05, 0.1, -0.2, 0.02))
FISHEYE = Camera(640, 480, 300.0, 300.0, 320.0, 240.0, (-0.02, 0.003, -0.001, 0.0002), fisheye=True)

pixels = st.tuples(st.floats(0, 639), st.floats(0, 479)).map(np.array)


@given(pixels, st.floats(0.1, 100.0))
def test_projecting_a_ray_gives_its_pixel(pixel, depth_m):
    np.testing.assert_allclose(CAMERA.project(depth_m * CAMERA.rays(pixel)), pixel, atol=1e-9)


@given(pixels)
def test_K_is_the_projection(pixel):
    np.testing.assert_allclose(CAMERA.K @ CAMERA.rays(pixel), [*pixel, 1.0], atol=1e-9)


def distort(camera: Camera, ideal: np.ndarray) -> np.ndarray:
    """OpenCV's forward model, the one that calibration files mean."""
    rays = camera.rays(ideal)
    coefficients = np.array(camera.distortion)
    if camera.fisheye:
        return cv2.fisheye.distortPoints(np.ascontiguousarray(rays[:, None, :2]), camera.K, coefficients)[:, 0]
    return cv2.projectPoints(rays, np.zeros(3), np.zeros(3), camera.K, coefficients)[0][:, 0]


@pytest.mark.parametrize("camera", [PLUMB_BOB, RATIONAL, FISHEYE], ids=["plumb_bob", "rational", "fisheye"])
def test_undistorting_undoes_the_lens(camera):
    u, v = np.meshgrid(np.linspace(60, 580, 9), np.linspace(60, 420, 7))
    ideal = np.stack([u.ravel(), v.ravel()], axis=1)
    raw = distort(camera, ideal)
    assert np.abs(raw - ideal).max() > 1.0
    np.testing.assert_allclose(camera.undistort(raw), ideal, atol=0.05)


def test_without_distortion_pixels_stay():
    points = np.array([[0.0, 0.0], [639.0, 479.0]])
    np.testing.assert_array_equal(CAMERA.undistort(points), points)
    zeros = Camera(640, 480, 520.0, 510.0, 322.0, 236.0, (0.0,) * 5)
    np.testing.assert_array_equal(zeros.undistort(points), points)


@pytest.mark.parametrize("camera", [CAMERA, PLUMB_BOB], ids=["ideal", "plumb_bob"])
def test_undistorting_no_points_gives_no_points(camera):
    assert camera.undistort(np.empty((0, 2))).shape == (0, 2)


@given(pixels, st.sampled_from([0.25, 0.5, 0.75, 2.0]))
def test_a_resized_image_sees_the_same_rays(pixel, scale):
    """Pixel centres: the corner of the image, (−½, −½), stays the corner."""
    resized = CAMERA.scaled(scale)
    np.testing.assert_allclose(resized.rays((pixel + 0.5) * scale - 0.5), CAMERA.rays(pixel), atol=1e-12)
    assert (resized.width, resized.height) == (640 * scale, 480 * scale)


def test_resizing_to_whole_pixels_keeps_the_corners():
    """741 × 0.9 is 666.9 pixels: the intrinsics follow the 667 that the image really has."""
    camera = Camera(741, 500, 995.0, 995.0, 311.0, 255.0)
    resized = camera.scaled(0.9)
    np.testing.assert_allclose(resized.rays([667 - 0.5, 450 - 0.5]), camera.rays([741 - 0.5, 500 - 0.5]), atol=1e-12)


def test_resizing_there_and_back_is_nothing():
    back = PLUMB_BOB.scaled(0.5).scaled(2.0)
    np.testing.assert_allclose([back.fx, back.fy, back.cx, back.cy], [520.0, 510.0, 322.0, 236.0])
    assert back.distortion == PLUMB_BOB.distortion


def test_focal_px_is_the_geometric_mean():
    assert Camera(4, 4, 2.0, 8.0, 0.0, 0.0).focal_px == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"width": 0}, "0 x 480"),
        ({"height": -3}, "640 x -3"),
        ({"fx": float("nan")}, "nan"),
        ({"cx": float("inf")}, "inf"),
        ({"fy": 0.0}, "0.0"),
        ({"fx": -520.0}, "-520.0"),
        ({"distortion": (0.1, float("nan"), 0.0, 0.0)}, "nan"),
        ({"distortion": (0.1, 0.2, 0.3)}, "3 distortion"),
        ({"distortion": (0.1,) * 5, "fisheye": True}, "not 5"),
    ],
)
def test_bad_intrinsics_are_one_sentence_that_names_the_value(fields, named):
    good = {"width": 640, "height": 480, "fx": 520.0, "fy": 510.0, "cx": 322.0, "cy": 236.0}
    with pytest.raises(FrameError) as caught:
        Camera(**{**good, **fields})
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def first_row_start_ns(stamp_ns: int, exposure_ns: int, readout_ns: int, reference: str) -> int:
    """Start of the first row's exposure, by the meaning of each reference."""
    return {
        "exposure_start": stamp_ns,
        "mid": stamp_ns - (readout_ns + exposure_ns) // 2,
        "end": stamp_ns - exposure_ns,
        "readout_end": stamp_ns - readout_ns - exposure_ns,
    }[reference]


times_ns = st.integers(0, 200_000_000)


@given(times_ns, times_ns, st.integers(0, 2**60), st.sampled_from(STAMP_REFERENCES), st.integers(-(10**9), 10**9))
def test_mid_exposure_of_the_middle_row(exposure_ns, readout_ns, stamp_ns, reference, offset_ns):
    shutter = Shutter(exposure_ns, readout_ns, reference, offset_ns)
    t0_ns = first_row_start_ns(stamp_ns + offset_ns, exposure_ns, readout_ns, reference)
    mid_ns = shutter.mid_ns(stamp_ns)
    assert isinstance(mid_ns, int)
    assert mid_ns == t0_ns + (readout_ns + exposure_ns) // 2


@given(times_ns, st.integers(2, 2000))
def test_rows_are_spread_over_the_readout(readout_ns, height):
    shutter = Shutter(10_000_000, readout_ns)
    first, middle, last = shutter.row_offset_s([0, (height - 1) / 2, height - 1], height)
    assert last - first == pytest.approx(readout_ns * 1e-9)
    assert middle == pytest.approx(0.0, abs=1e-15)


def test_a_single_row_has_no_offset():
    assert Shutter(10_000_000, 5_000_000).row_offset_s([0], 1)[0] == 0.0
