"""The paper's dense decoder in its own form (3.4): interpolated path, frame and depth features, no equations.

No part of the pipeline; it stands in the tables beside what is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .. import detail_basis as db
from .. import so3
from ..decoder import AFTER
from ..engine import Engine
from ..engine.incremental import Incremental
from ..engine.interface import camera_values, picture
from ..errors import EngineError
from ..sim.clips import SimulatedClip
from ..types import DenseSamples, FrameResult

FloatArray = NDArray[np.float64]


def decoded(clip: SimulatedClip, interpolation: Sequence[FrameResult], engine: Engine) -> list[DenseSamples]:
    """The samples of every frame, at the interpolation's times; the first and the last frame keep the interpolation.

    interpolation  results of a run that interpolates, one for each of the clip's frames
    engine         of a network whose decoder was trained without a guess; it decodes when AFTER later frames have come
    """
    if "decoder" not in engine.manifest.graphs:
        raise EngineError(f"{engine.manifest.folder} holds no decoder")
    stream, sizes = Incremental(engine), engine.manifest.sizes
    period_s = float(np.median(np.diff(clip.stamps_ns))) * 1e-9
    share = clip.camera.focal_px / clip.camera.width
    values = camera_values(share, clip.exposure_s, period_s, clip.readout_s, clip.lever_arm_m)
    out = [result.dense for result in interpolation]
    last = len(out) - 1
    for k in range(last + AFTER):
        if k <= last:
            stream.add_frame(k, picture(clip.frames[k], sizes["image_px"]), values)
        j = k - AFTER
        if 0 < j < last:
            out[j] = _decoded(clip, interpolation[j - 1 : j + 2], stream, values, sizes["samples"])
    return out


def _decoded(
    clip: SimulatedClip, near: Sequence[FrameResult], stream: Incremental, values: NDArray[np.float32], samples: int
) -> DenseSamples:
    """The middle one of three frames; the interpolation where the network gives no number.

    The network knows the path inside the exposure; samples outside it keep the correction at the exposure's end.
    """
    px, given = db.pixel_units(clip.camera), near[1].dense
    knots_s = np.array([(result.sparse.stamp_ns - near[1].sparse.stamp_ns) * 1e-9 for result in near])
    R = np.array([result.sparse.R_start_from_cam for result in near])
    own = db.coefficients(so3.interpolate(db.sample_offsets_s(clip.exposure_s), knots_s, R), px)
    trajectory = db.synthesis(samples) @ own
    guess = np.concatenate([trajectory, np.ones_like(trajectory)], axis=1)
    found = stream.decode(near[1].dense.frame, values, np.float32(trajectory), np.float32(guess))
    if found is None:
        return given
    t_s = (given.stamp_ns - near[1].sparse.stamp_ns) * 1e-9
    inside = np.clip(t_s / clip.exposure_s + 0.5, 0.0, 1.0)
    correction = np.cos(np.pi * inside[:, None] * np.arange(1, db.ORDERS + 1)) @ (found[0] - own) / px
    q = so3.to_quat_xyzw(so3.interpolate(t_s, knots_s, R) @ so3.exp(correction))
    return DenseSamples(
        given.frame, given.stamp_ns, q, given.omega, given.cov_rotation, given.cov_omega, "pure_decoder"
    )
