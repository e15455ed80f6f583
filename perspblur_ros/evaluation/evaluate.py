"""Evaluate: the files of a run against the truth in a bag, every densifier and baseline in the same table."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import UNKNOWN, read_parameters
from ..errors import BagError
from . import metrics
from .bags import TRUTH_DEPTH_TOPIC, BagReader, ImuLog
from .depth import compare_maps
from .metrics import Estimate, Motion
from .replay import DEPTH_FOLDER, FRAME_COLUMNS, FRAMES_FILE, PARAMETERS_FILE, TIMING_FILE
from .writers import DENSE_FILE, SPARSE_FILE, DenseTrajectory, SparseTrajectory, read_dense, read_sparse, write_text

FloatArray = NDArray[np.float64]

METRICS_FILE = "metrics.json"
ESTIMATE, INTERPOLATION, SPLINE, PERFECT = "estimate", "interpolation", "spline", "perfect_means"


@dataclass(frozen=True)
class Run:
    """The files of one replay (or of anything that writes the same CSVs). ``timing`` and ``frames`` may be empty."""

    folder: Path
    dense: DenseTrajectory
    sparse: SparseTrajectory
    alternatives: dict[str, DenseTrajectory]
    parameters: dict[str, Any]
    timing: dict[str, Any]
    frames: list[dict[str, str]]

    @property
    def resets(self) -> list[int]:
        return list(self.timing.get("resets", []))


@dataclass(frozen=True)
class Comparison:
    """A run beside its truth: what the report draws.

    estimates, offsets_s  per method; ``metrics`` the content of metrics.json
    """

    run: Run
    truth: Motion
    epoch_ns: int
    estimates: dict[str, Estimate]
    offsets_s: dict[str, float]
    metrics: dict[str, Any]


def load_run(folder: Path) -> Run:
    """Read a run's folder; the two trajectories are required."""
    folder = Path(folder)
    if not folder.is_dir():
        raise BagError(f"folder {folder} does not exist")
    others = {
        path.stem.removeprefix("dense_"): read_dense(path)
        for path in sorted(folder.glob("dense_*.csv"))
        if path.name != DENSE_FILE
    }
    parameters = folder / PARAMETERS_FILE
    return Run(
        folder,
        read_dense(folder / DENSE_FILE),
        read_sparse(folder / SPARSE_FILE),
        others,
        read_parameters(parameters) if parameters.is_file() else {},
        _timing(folder / TIMING_FILE),
        _frames(folder / FRAMES_FILE),
    )


def evaluate(folder: Path, truth_bag: Path, out: Path | None = None) -> Comparison:
    """Compare the run in ``folder`` with the truth in ``truth_bag`` and write metrics.json into ``out``."""
    run = load_run(folder)
    with BagReader(truth_bag) as reader:
        log = reader.truth()
        exposure_s = _exposure_s(reader.parameters, run.parameters)
        comparison = compare(run, log, exposure_s)
        comparison.metrics["depth"] = _depth(run, reader, comparison.truth, comparison.epoch_ns)
    out = Path(out or folder)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / METRICS_FILE, json.dumps(_plain(comparison.metrics), indent=1, allow_nan=False) + "\n")
    return comparison


def compare(run: Run, log: ImuLog, exposure_s: float) -> Comparison:
    """Every metric of trajectories; the estimate, its alternatives and both interpolations on the same samples."""
    epoch_ns = int(run.dense.stamp_ns[0])
    truth = Motion(log, epoch_ns)
    gyro_only = log.q_ref_from_cam is None
    frames = np.unique(run.dense.frame)
    complete = {name: t for name, t in run.alternatives.items() if np.array_equal(np.unique(t.frame), frames)}
    dense = {ESTIMATE: run.dense, **complete}
    dense.setdefault(INTERPOLATION, metrics.interpolated(run.sparse, run.dense))
    estimates = {name: Estimate.of(table, epoch_ns, run.resets) for name, table in dense.items()}
    fitted = {name: metrics.time_offset_s(estimate, truth) for name, estimate in estimates.items()}
    offsets = fitted if gyro_only else dict.fromkeys(fitted, 0.0)
    own = offsets[ESTIMATE]
    means = metrics.perfect_means(run.sparse, truth, epoch_ns, own, exposure_s)
    estimates[PERFECT] = Estimate.of(metrics.interpolated(means, run.dense), epoch_ns, run.resets)
    offsets[PERFECT] = own
    estimate = estimates[ESTIMATE]
    numbers = {
        "truth": {
            "topic": log.topic,
            "kind": "gyro" if gyro_only else "orientation and rate",
            "offset_applied": gyro_only,
            "time_offset_s": fitted,
            "exposure_s": exposure_s,
        },
        "frames": len(run.sparse.frame),
        "duration_s": float(estimate.t_s[-1] - estimate.t_s[0]),
        "segments": int(estimate.segment[-1]) + 1,
        "sources": _shares(run),
        "gate": dict(Counter(row["gate"] for row in run.frames)),
        "blur_px": _blur(run.frames),
        "sparse": metrics.sparse_metrics(run.sparse, truth, epoch_ns, own, exposure_s, run.resets),
        "methods": {name: _method(e, truth, offsets[name]) for name, e in estimates.items()},
        "calibration": metrics.calibration(estimate, truth, own),
        "timing": run.timing.get("stages_ms", {}),
        "left_out": sorted(set(run.alternatives) - set(complete)),  # they do not cover every frame
        "depth": None,
    }
    return Comparison(run, truth, epoch_ns, estimates, offsets, numbers)


def verdict(numbers: dict[str, Any]) -> tuple[str, str]:
    """What the numbers mean: a headline, and the sentence behind it."""
    own, line = (numbers["methods"][name] for name in (ESTIMATE, INTERPOLATION))
    ratio = own["rate_error"] / line["rate_error"] if line["rate_error"] else math.nan
    if not math.isfinite(ratio):
        return "The camera did not move", "There is nothing to compare."
    rates = f"The rate error is {own['rate_error']:.3f}, with interpolated frame means {line['rate_error']:.3f}"
    if ratio >= 1.0:
        return "No gain over interpolation here", f"{rates}."
    recovered, by_line = (max(0.0, 1.0 - method["dense_30"]["detail_error"]) for method in (own, line))
    return (
        f"{1 / ratio:.1f} times closer to the true motion than interpolation",
        f"{rates}; {100 * recovered:.0f} % of the motion inside the frames is recovered, "
        f"by interpolation {100 * by_line:.0f} %.",
    )


def _method(estimate: Estimate, truth: Motion, offset_s: float) -> dict[str, Any]:
    dense = {f"dense_{n}": metrics.dense_metrics(estimate, truth, offset_s, n) for n in metrics.PER_FRAME}
    return {**metrics.rate_metrics(estimate, truth, offset_s), **dense, "offset_s": offset_s}


def _depth(run: Run, reader: BagReader, truth: Motion, epoch_ns: int) -> dict[str, Any] | None:
    """Depth metrics over all maps, or why there are none."""
    if TRUTH_DEPTH_TOPIC not in reader.topics("sensor_msgs/msg/Image"):
        return None
    if run.parameters.get("depth_topic") == TRUTH_DEPTH_TOPIC:
        return {"note": "the true depth map was given to the pipeline"}
    true, frame = next(reader.depth_frames(TRUTH_DEPTH_TOPIC), None), next(reader.frames(), None)
    if true is None or frame is None:
        return {"note": "the bag has no true depth map that can be read"}
    parameters = {**reader.parameters, **run.parameters}
    numbers = compare_maps(
        run.folder / DEPTH_FOLDER, true.depth_m, true.stamp_ns, frame.camera, truth, epoch_ns, parameters
    )
    return numbers or {"note": "the run has no depth map"}


def _timing(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        timing = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BagError(f"{path} is not JSON: {str(error).splitlines()[0]}") from None
    resets = timing.get("resets", []) if isinstance(timing, dict) else None
    if not isinstance(resets, list) or not all(isinstance(frame, int) for frame in resets):
        raise BagError(f"{path} is not the timing of a run")
    return timing


def _frames(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        lines = csv.DictReader(file)
        missing = [name for name in FRAME_COLUMNS if name not in (lines.fieldnames or ())]
        if missing:
            raise BagError(f"{path} has no column {', '.join(missing)}")
        return list(lines)


def _exposure_s(*parameters: dict[str, Any]) -> float:
    """The first stated exposure; 0 (an instant) where none is known."""
    for values in parameters:
        exposure_s = values.get("exposure_s", UNKNOWN)
        if isinstance(exposure_s, (int, float)) and exposure_s > 0:
            return float(exposure_s)
    return 0.0


def _shares(run: Run) -> dict[str, float]:
    """Share of the frames by the densifier that won."""
    first = np.unique(run.dense.frame, return_index=True)[1]
    counts = Counter(run.dense.source[first].tolist())
    return {name: n / len(first) for name, n in counts.items()}


def _blur(frames: list[dict[str, str]]) -> dict[str, float] | None:
    try:
        blur = [float(row["blur_px"]) for row in frames]
    except ValueError:
        return None
    return (
        {"mean": float(np.mean(blur)), "median": float(np.median(blur)), "max": float(np.max(blur))} if blur else None
    )


def _plain(value: Any) -> Any:
    """For JSON, which has no NaN: null."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
