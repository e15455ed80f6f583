"""The paper's "optics-based algorithm": three angles one after the other from a grid of query points.

Kept as the readable reference. Being first order it is biased (about half a milliradian at 20 px of displacement),
and a lever arm it cannot represent; ``rotation.solve_rotation`` is what the pipeline uses.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..camera import Camera

FloatArray = NDArray[np.float64]

ON_AXIS_PX = 0.5  # a grid line this close to the optical axis counts as the on-axis row or column


def cascade(camera: Camera, ideal_ref: ArrayLike, ideal_cur: ArrayLike) -> FloatArray:
    """Rotation vector φ (pitch, yaw, roll about x, y, z; rad) with R_ref_from_cur = exp(φ), pure rotation.

    ideal_ref, ideal_cur (N, 2) ideal pixels of the same points; the grid must hold the on-axis row and column.

    From d = B φ at offset (x, y) and focal length f: on the row y = 0, d_y = f φ_x − x φ_z, so its slope is the roll;
    on the column x = 0, d_x = −f φ_y + y φ_z gives the yaw; then d_y gives the pitch at every point. Weights fall
    linearly with the field radius.
    """
    reference = np.asarray(ideal_ref, float)
    d = (np.asarray(ideal_cur, float) - reference) * (camera.focal_px / np.array([camera.fx, camera.fy]))
    x, y = camera.focal_px * camera.rays(reference)[:, :2].T
    f = camera.focal_px
    radius = np.hypot(x, y)
    weight = 1.0 - radius / (radius.max() * 1.001)

    row = np.abs(y) < ON_AXIS_PX
    roll = -np.sum(x[row] * (d[row, 1] - d[row, 1].mean())) / np.sum(x[row] ** 2)

    column = np.abs(x) < ON_AXIS_PX
    yaw = np.average((y[column] * roll - d[column, 0]) / f, weights=weight[column])

    pitch = np.average((d[:, 1] + x * roll + x * y / f * yaw) / (f + y * y / f), weights=weight)
    return np.array([pitch, yaw, roll])
