"""Table 2 of the paper on our clips: errors of every way to a trajectory, and all baselines, in the same run.

Every way is a run of its own over the same clip, so that no baseline profits from a better path published before. The
paper's rivals (COLMAP, DUSt3R, DiffusionSfM) and its trackers are not run here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import so3
from ..config import Config
from ..engine import Engine
from ..pipeline import Pipeline
from ..sim.clips import SimulatedClip
from ..types import DenseSamples, FrameResult
from .bags import ImuLog
from .metrics import PER_FRAME, Estimate, Motion, dense_metrics, relative_errors, seconds
from .pure_decoder import decoded
from .tables import number

FloatArray = NDArray[np.float64]

SAMPLES = 30
PURE = "paper's decoder, pure form"
DENSE = {  # every way and the densifier that is run for it; the pure decoder goes on from the interpolation's run
    "interpolation": "interpolation",
    "track spline": "spline",
    PURE: "",
    "learned path alone": "decoder",
    "refinement, no learned step": "crossblur",
    "default": "auto",
}
# rotations of the frames, and the way whose run has them
SPARSE = {"optics, closed form": "interpolation", "track spline": "track spline", "default": "default"}
COLUMNS = {"AbsRel": "abs_rel", "e1": "e1", "e2": "e2", "detail": "detail_error", "ratio": "ratio"}


def measured(clip: SimulatedClip, config: Config | None = None, pure: Engine | None = None) -> dict[str, Any]:
    """Run the stream once per way over a clip whose exposure, readout, lever arm and first depth map are told.

    pure     runs the paper's decoder, where a network trained in that form is at hand
    Returns sparse, dense_15 and dense_30, each by way with AbsRel, e1, e2 and, of dense, the detail error; and whose
    paths the default published for how many frames.
    """
    base = replace(
        config or Config(), exposure_s=clip.exposure_s, readout_s=clip.readout_s, lever_arm=clip.lever_arm_m,
        samples_per_frame=SAMPLES,
    )
    runs = {way: _run(clip, replace(base, densifier=name)) for way, name in DENSE.items() if name}
    dense = {way: [result.dense for result in results] for way, results in runs.items()}
    if pure:
        dense[PURE] = decoded(clip, runs["interpolation"], pure)
    epoch_ns = int(clip.truth_ns[0])
    truth = Motion(ImuLog("", clip.truth_ns, clip.omega, clip.q_start_from_cam), epoch_ns)
    found: dict[str, Any] = {"published": dict(Counter(samples.source for samples in dense["default"]))}
    found["sparse"] = {way: sparse_errors(runs[of], truth, epoch_ns, clip.exposure_s) for way, of in SPARSE.items()}
    for n in PER_FRAME:
        found[f"dense_{n}"] = {
            way: dense_metrics(estimate(dense[way], epoch_ns), truth, 0.0, n) for way in DENSE if way in dense
        }
    return found


def _run(clip: SimulatedClip, config: Config) -> list[FrameResult]:
    pipeline = Pipeline(config)
    pipeline.add_depth(int(clip.stamps_ns[0]), clip.depth_m)
    results = []
    for stamp_ns, image in zip(clip.stamps_ns, clip.frames):
        results += pipeline.add_frame(int(stamp_ns), image, clip.camera)
    return results + pipeline.flush()


def estimate(frames: Sequence[DenseSamples], epoch_ns: int) -> Estimate:
    """Dense samples as the metrics take them; one segment, what the samples say of their certainty left out."""
    stamp_ns = np.concatenate([samples.stamp_ns for samples in frames])
    R = so3.from_quat_xyzw(np.concatenate([samples.q_start_from_cam for samples in frames]))
    frame = np.concatenate([np.full(len(samples.stamp_ns), samples.frame) for samples in frames])
    unknown = np.full((len(R), 3), np.nan)
    return Estimate(
        seconds(stamp_ns, epoch_ns), R, unknown, unknown, unknown, frame, np.zeros(len(R), np.int64)
    )


def sparse_errors(
    results: Sequence[FrameResult], truth: Motion, epoch_ns: int, exposure_s: float
) -> dict[str, float]:
    """AbsRel, e1, e2 of the frames' mean rotations, relative to the first frame's."""
    t = np.array([(result.sparse.stamp_ns - epoch_ns) * 1e-9 for result in results])
    true, found = truth.mean_rotation(t, exposure_s), np.array([result.sparse.R_start_from_cam for result in results])
    rel_true, rel_found = true[0].T @ true, found[0].T @ found
    return relative_errors(so3.log(np.swapaxes(rel_true, 1, 2) @ rel_found), so3.log(rel_true))


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Table 2: a line per way, a block of columns per group of clips; then the clips' detail errors.

    rows: what ``measured`` returns, with the clip's name and group. ratio: mean of the clips' own ratios of detail
    errors to interpolation.
    """
    groups = list(dict.fromkeys(row["group"] for row in rows))
    heads = [f"{group}: {label}" for group in groups for label in COLUMNS]
    lines = ["| trajectory | " + " | ".join(heads) + " |", "|---" + "|---:" * len(heads) + "|"]
    kinds = {"sparse": "*one rotation per frame*"} | {f"dense_{n}": f"*dense, {n} per frame*" for n in PER_FRAME}
    for kind, title in kinds.items():
        lines.append(f"| {title} |" + " |" * len(heads))
        for way in rows[0][kind]:
            cells = [number(_mean(rows, group, kind, way, key)) for group in groups for key in COLUMNS.values()]
            lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n" + _by_clip(rows)


def _mean(rows: Sequence[Mapping[str, Any]], group: str, kind: str, way: str, key: str) -> float:
    """Mean of a number over the clips of a group; NaN where the kind has no such number."""
    of = [row[kind] for row in rows if row["group"] == group]
    if kind == "sparse" and key in ("detail_error", "ratio"):
        return float("nan")
    if key == "ratio":
        return float(np.mean([ways[way]["detail_error"] / ways["interpolation"]["detail_error"] for ways in of]))
    return float(np.mean([ways[way][key] for ways in of]))


def _by_clip(rows: Sequence[Mapping[str, Any]]) -> str:
    ways = list(rows[0]["dense_30"])
    lines = ["| detail error, 30 per frame | " + " | ".join(ways) + " | published |"]
    lines.append("|---" + "|---:" * len(ways) + "|---|")
    for row in rows:
        published = ", ".join(f"{source} {n}" for source, n in sorted(row["published"].items(), key=lambda x: -x[1]))
        cells = [number(row["dense_30"][way]["detail_error"]) for way in ways]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + f" | {published} |")
    return "\n".join(lines) + "\n"
