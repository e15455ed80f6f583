"""The records that pass between the layers.

Axes (everywhere): camera optical frame, x right, y down, z forward. ``R_start_from_cam`` turns a vector of the
camera frame at that time into the camera frame of the stream's start. Rotation errors and covariances are small
rotation vectors in the camera (body) frame, radians; rates are body rates, rad/s. Times are integer nanoseconds.
Letters at arrays: N points or samples, H × W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from .camera import Camera

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class Status(str, Enum):
    """How a solver ended; the value is the sentence a user reads."""

    OK = "solved"
    BLIND = "the image carries no usable texture (dark, saturated or flat)"
    FEW_POINTS = "too few tracked points for a rotation"
    NOT_CONVERGED = "the solver did not converge"


@dataclass(frozen=True)
class Frame:
    """One accepted camera frame.

    image      uint8, H × W, grey as the camera delivered it (gamma-encoded)
    index      0-based number of the input frame, counted over everything that arrived
    segment    counts resets: frames of different segments share no geometry
    mid_ns     mid-exposure of the middle row, the frame's own time everywhere downstream
    """

    image: NDArray[np.uint8]
    index: int
    segment: int
    stamp_ns: int
    mid_ns: int
    camera: Camera


@dataclass(frozen=True)
class SparsePose:
    """The camera's mean rotation over one frame.

    R_start_from_cam  3 × 3
    covariance        3 × 3, rad², body frame; large (not NaN) when the frame is blind
    """

    frame: int
    stamp_ns: int
    R_start_from_cam: FloatArray
    covariance: FloatArray
    status: Status = Status.OK
    n_points: int = 0


@dataclass(frozen=True)
class DenseSamples:
    """Rotation samples inside one frame.

    stamp_ns          N, strictly increasing, each sample's true time
    q_start_from_cam  N × 4, x y z w
    omega             N × 3, rad/s, body rate in the optical frame
    cov_rotation      N × 3 × 3, rad², of the rotation relative to the frame's neighbourhood, not of the drift
    cov_omega         N × 3 × 3, (rad/s)²
    source            which densifier won: "interpolation", "spline", "crossblur" (or "decoder")
    """

    frame: int
    stamp_ns: IntArray
    q_start_from_cam: FloatArray
    omega: FloatArray
    cov_rotation: FloatArray
    cov_omega: FloatArray
    source: str


@dataclass(frozen=True)
class DepthMap:
    """Metric depth of one frame: ``depth_m`` and ``variance_m2`` H × W float32, NaN where nothing is known."""

    frame: int
    stamp_ns: int
    depth_m: NDArray[np.float32]
    variance_m2: NDArray[np.float32]


@dataclass(frozen=True)
class FrameResult:
    """Everything the pipeline says about one frame, in frame order, ``lag_frames`` late.

    alternatives  the densifiers that lost or serve as baselines, by source ("interpolation", "spline", …)
    blur_px       length of the blur path at the image centre
    gate          what the gate decided, one word: "accepted", "held_out", "energy", "sharp", "no_patches", "off", …
    """

    sparse: SparsePose
    dense: DenseSamples
    alternatives: dict[str, DenseSamples] = field(default_factory=dict)
    depth: DepthMap | None = None
    blur_px: float = 0.0
    gate: str = "off"
