"""Published depth maps against the truth of a bag: every map, the true depth carried to its pose."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..camera import Camera, Shutter
from ..config import DEFAULTS, UNKNOWN
from ..errors import BagError
from .metrics import Motion, depth_metrics

FloatArray = NDArray[np.float64]

CONSTANT_M = 2.0  # the baseline that needs no truth
MIN_VALID = 0.3  # share of a map on which there is truth
NEAR_S = 10.0  # the pivot is taken to rest for so long


def compare_maps(
    folder: Path, true_m: NDArray[np.float32], true_ns: int, camera: Camera, truth: Motion, epoch_ns: int,
    parameters: Mapping[str, Any],
) -> dict[str, Any] | None:
    """Metrics of the maps in ``folder``, mean over the maps; None where there is no map that shares a view.

    true_m (H, W) as the camera saw it at true_ns; parameters give the shutter and the lever arm of the run.
    """
    arm_m = np.array(parameters.get("lever_arm") or (0.0, 0.0, 0.0))
    shutter = _shutter(parameters)
    R_true = truth.rotation(np.array([(true_ns - epoch_ns) * 1e-9]))[0]
    found = []
    for path in sorted(folder.glob("*.npz")):
        if not path.stem.isdigit():
            continue
        stamp_ns = int(path.stem)
        mid_s = (shutter.mid_ns(stamp_ns) - epoch_ns) * 1e-9
        if not truth.covers(np.array([mid_s]))[0] or abs(stamp_ns - true_ns) > NEAR_S * 1e9:
            continue
        depth_m, variance = read_map(path)
        R = truth.rotation(np.array([mid_s]))[0]
        there = carried(true_m, camera, R.T @ R_true, arm_m, (depth_m.shape[0], depth_m.shape[1]))
        numbers = depth_metrics(depth_m, there, variance)
        if numbers["valid_share"] >= MIN_VALID:
            fixed = depth_metrics(np.full_like(there, CONSTANT_M), there)
            found.append({**numbers, **{f"fixed_{k}": fixed[k] for k in ("abs_rel", "delta1", "delta2")}})
    if not found:
        return None
    return {"maps": len(found), **{key: float(np.mean([numbers[key] for numbers in found])) for key in found[0]}}


def carried(
    true_m: NDArray[np.float32], camera: Camera, R_there_from_true: FloatArray, arm_m: FloatArray, size: tuple[int, int]
) -> FloatArray:
    """Depth (H, W) seen from a pose turned about the pivot, height × width ``size``; NaN where nothing falls.

    Of the points that fall into a cell the one nearest its centre counts.
    """
    rows, columns = true_m.shape
    v, u = np.mgrid[:rows, :columns]
    scale = np.array([camera.width / columns, camera.height / rows])
    pixels = (np.stack([u, v], axis=-1).reshape(-1, 2) + 0.5) * scale - 0.5
    z = np.asarray(true_m, float).ravel()
    pixels, z = pixels[valid := np.isfinite(z) & (z > 0)], z[valid]
    points = (camera.rays(camera.undistort(pixels)) * z[:, None] + arm_m) @ R_there_from_true.T - arm_m
    points = points[points[:, 2] > 0.01]
    at = (camera.distort(camera.project(points)) + 0.5) * (size[1] / camera.width, size[0] / camera.height)
    inside = np.all((at >= 0) & (at < (size[1], size[0])), axis=1)
    at, z = at[inside], points[inside, 2]
    cell = at.astype(int)
    nearest_last = np.argsort(-np.sum((at - cell - 0.5) ** 2, axis=1), kind="stable")
    out = np.full(size, np.nan)
    out[cell[nearest_last, 1], cell[nearest_last, 0]] = z[nearest_last]
    return out


def read_map(path: Path) -> tuple[FloatArray, FloatArray]:
    """Depth and its variance of a file that ``replay`` wrote, m and m²."""
    try:
        with np.load(path, allow_pickle=False) as content:
            depth, variance = np.asarray(content["depth_m"], float), np.asarray(content["variance"], float)
    except Exception as error:  # whatever a damaged archive makes zipfile and numpy raise
        raise BagError(f"{path} is not a depth map: {type(error).__name__}") from None
    if depth.ndim != 2 or depth.size == 0 or variance.shape != depth.shape:
        raise BagError(f"{path} holds a depth map of shape {depth.shape} with a variance of shape {variance.shape}")
    return depth, variance


def _shutter(parameters: Mapping[str, Any]) -> Shutter:
    exposure_s, readout_s = (max(float(parameters.get(n, UNKNOWN)), 0.0) for n in ("exposure_s", "readout_s"))
    reference = str(parameters.get("stamp_reference", DEFAULTS["stamp_reference"]))
    return Shutter(
        round(exposure_s * 1e9), round(readout_s * 1e9), reference, round(parameters.get("stamp_offset_s", 0.0) * 1e9)
    )
