"""True depth carried to another pose, and the table of depth."""

from __future__ import annotations

import numpy as np
import pytest

from perspblur_ros import so3
from perspblur_ros.camera import Camera
from perspblur_ros.errors import BagError
from perspblur_ros.evaluation.depth import carried, read_map
from perspblur_ros.evaluation.depth_accuracy import _means, depth_markdown

CAMERA = Camera(160, 120, 120.0, 120.0, 79.5, 59.5)
ARM_M = np.array([0.05, -0.1, 0.2])


def plane_m(camera: Camera, normal: np.ndarray, distance_m: float) -> np.ndarray:
    """Depth along the axis of the plane normal · X = distance, (H, W)."""
    v, u = np.mgrid[: camera.height, : camera.width]
    return distance_m / (camera.rays(np.stack([u, v], axis=-1)) @ normal)


@pytest.mark.parametrize("size", [(120, 160), (60, 80)])
def test_a_plane_is_carried_to_another_pose(size):
    normal, R = np.array([0.1, -0.2, 1.0]), so3.exp([0.03, -0.05, 0.02])  # of the other camera in this one
    centre = R @ ARM_M - ARM_M
    expected = plane_m(CAMERA.scaled(size[1] / 160), R.T @ normal, 2.0 - normal @ centre)
    found = carried(plane_m(CAMERA, normal, 2.0).astype(np.float32), CAMERA, R.T, ARM_M, size)
    seen = np.isfinite(found)
    assert 0.7 < seen.mean() < 1.0
    np.testing.assert_allclose(found[seen], expected[seen], rtol=0.01)


def test_the_means_keep_wide_and_narrow_views_and_controls_apart():
    columns = dict.fromkeys(
        ("delta1", "delta2", "constant_abs_rel", "fixed_abs_rel", "relative_sd", "within_1sigma", "within_2sigma",
         "rate", "sparse"), 0.5
    )
    rows = [
        {"name": name, "view_deg": view, "abs_rel": error, **columns}
        for name, view, error in (("a", 60.0, 0.1), ("b", 50.0, 0.2), ("c", 20.0, 0.4), ("control_a", 60.0, 9.0))
    ]
    means = {row["name"]: row["abs_rel"] for row in _means(rows)}
    assert means["mean of wide views"] == pytest.approx(0.15)
    assert means["mean of narrow views"] == pytest.approx(0.4)
    assert means["mean of all"] == pytest.approx(0.7 / 3)
    assert "| control_a | 60 | 9.000 |" in depth_markdown(rows, "Split")


def test_a_damaged_map_is_named(tmp_path):
    path = tmp_path / "1.npz"
    path.write_bytes(b"PK no map")
    with pytest.raises(BagError, match=r"1\.npz is not a depth map"):
        read_map(path)
    np.savez(path, depth_m=np.ones((2, 3)), variance=np.ones((3, 2)))
    with pytest.raises(BagError, match="shape"):
        read_map(path)
