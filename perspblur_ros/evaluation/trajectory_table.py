"""The trajectory half of the paper's tables on our clips: detail errors of every way to a path, in the same run.

Table 2 (dense): interpolation, track spline, the learned path alone (no refinement), classical cross-blur refinement
without the network, and the default (the gate decides). Clips of one split and group of ``sim.evaluation_set``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import so3
from ..config import Config
from ..pipeline import Pipeline
from ..sim.clips import SimulatedClip
from ..sim.evaluation_set import recipes, render
from ..types import DenseSamples, FrameResult

FloatArray = NDArray[np.float64]

SAMPLES = 30
WAYS = {  # densifier that is run, and whose samples are taken of it
    "interpolation": ("auto", "interpolation"),
    "track spline": ("auto", "spline"),
    "learned path alone": ("decoder", "decoder"),
    "cross-blur alone": ("crossblur", "crossblur"),
    "default": ("auto", ""),
}


@dataclass(frozen=True)
class Row:
    """Detail error of one clip by way, and whose path was published for how many of its frames by the default."""

    clip: str
    errors: dict[str, float]
    published: Counter[str]


def measured(clip: SimulatedClip, config: Config | None = None, with_depth: bool = True) -> Row:
    """Run the stream once per densifier over a clip whose exposure, readout and lever arm are told."""
    base = replace(
        config or Config(), exposure_s=clip.exposure_s, readout_s=clip.readout_s, lever_arm=clip.lever_arm_m,
        samples_per_frame=SAMPLES,
    )
    results = {
        densifier: _run(clip, replace(base, densifier=densifier), with_depth)
        for densifier in dict.fromkeys(densifier for densifier, _ in WAYS.values())
    }
    errors = {way: detail_error(clip, results[densifier], source) for way, (densifier, source) in WAYS.items()}
    return Row(clip.name, errors, Counter(result.dense.source for result in results["auto"]))


def _run(clip: SimulatedClip, config: Config, with_depth: bool) -> list[FrameResult]:
    pipeline = Pipeline(config)
    if with_depth:
        pipeline.add_depth(int(clip.stamps_ns[0]), clip.depth_m)
    results = []
    for stamp_ns, image in zip(clip.stamps_ns, clip.frames):
        results += pipeline.add_frame(int(stamp_ns), image, clip.camera)
    return results + pipeline.flush()


def detail_error(clip: SimulatedClip, results: Sequence[FrameResult], source: str) -> float:
    """Σ‖error‖ / Σ‖motion‖ about the frames' means; what was published where a frame lacks ``source`` ("": always)."""
    truth_s, R = clip.truth_ns * 1e-9, so3.from_quat_xyzw(clip.q_start_from_cam)
    wrong, motion = 0.0, 0.0
    for result in results:
        samples = _of(result, source)
        t = samples.stamp_ns * 1e-9
        inside = (t > truth_s[0]) & (t < truth_s[-1])
        if inside.sum() < SAMPLES // 2:
            continue
        true, found = so3.interpolate(t[inside], truth_s, R), so3.from_quat_xyzw(samples.q_start_from_cam[inside])
        a, b = (_about_mean(rotations) for rotations in (true, found))
        wrong += float(np.linalg.norm(a - b, axis=1).sum())
        motion += float(np.linalg.norm(a, axis=1).sum())
    return wrong / motion


def _of(result: FrameResult, source: str) -> DenseSamples:
    return result.dense if result.dense.source == source else result.alternatives.get(source, result.dense)


def _about_mean(R: FloatArray) -> FloatArray:
    phi = so3.log(R[len(R) // 2].T @ R)
    return phi - phi.mean(axis=0)


def table(
    split: str, group: str, data_dir: Path, config: Config | None = None,
    on_clip: Callable[[Row], None] | None = None,
) -> str:
    """Markdown: a row per clip and their mean, and each way's mean ratio to interpolation."""
    rows = []
    for seed, recipe in enumerate(recipes(split)):
        if recipe.group == group:
            rows.append(measured(render(recipe, data_dir, seed=seed), config))
            if on_clip:
                on_clip(rows[-1])
    return formatted(rows)


def formatted(rows: Sequence[Row]) -> str:
    lines = ["| clip | " + " | ".join(WAYS) + " | published |", "|---|" + "---:|" * len(WAYS) + "---|"]
    for row in rows:
        published = ", ".join(f"{source} {count}" for source, count in row.published.most_common())
        lines.append(f"| {row.clip} | " + " | ".join(f"{row.errors[way]:.3f}" for way in WAYS) + f" | {published} |")
    errors = np.array([[row.errors[way] for way in WAYS] for row in rows])
    for name, values in (("mean", errors.mean(axis=0)), ("mean ratio", (errors / errors[:, :1]).mean(axis=0))):
        lines.append(f"| **{name}** | " + " | ".join(f"**{value:.3f}**" for value in values) + " | |")
    return "\n".join(lines)
