"""Replay: every frame of a bag through the pipeline, in recorded order, none dropped, into files.

The same bag and parameters give the same bytes in every CSV; only ``timing.json`` holds wall-clock times. Rows are
written as results become final, so memory does not grow with the bag.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import yaml
from numpy.typing import NDArray

from .. import __version__, so3
from ..camera import Camera, Shutter
from ..config import UNKNOWN, Config, from_mapping, parse_assignment, read_parameters
from ..errors import BagError
from ..types import DenseSamples, DepthMap, FrameResult, SparsePose
from .bags import BagReader, CameraFrame, DepthFrame
from .writers import (
    DENSE_COLUMNS,
    DENSE_FILE,
    SPARSE_COLUMNS,
    SPARSE_FILE,
    CsvStream,
    DenseTrajectory,
    SparseTrajectory,
    atomic_file,
    write_text,
)

FRAMES_FILE = "frames.csv"
TIMING_FILE = "timing.json"
PARAMETERS_FILE = "resolved_params.yaml"
DEPTH_FOLDER = "depth"
FRAME_COLUMNS = ("frame", "t_ns", "status", "points", "blur_px", "gate", "source")
BASELINES = ("interpolation", "spline")
PERCENTILES = (50, 95, 99)


class FrameSink(Protocol):
    """What replay needs of ``perspblur_ros.pipeline.Pipeline``."""

    @property
    def counts(self) -> Counter[str]: ...
    @property
    def stage_ms(self) -> Mapping[str, deque[float]]: ...
    @property
    def shutter(self) -> Shutter: ...
    def add_frame(self, stamp_ns: int, image: Any, camera: Camera) -> list[FrameResult]: ...
    def add_depth(self, stamp_ns: int, depth_m: Any) -> None: ...
    def flush(self) -> list[FrameResult]: ...


@dataclass
class Run:
    """What happened while frames went through the pipeline.

    frame_ms  wall time of every frame; stage_ms the same per stage of the pipeline
    resets    numbers of the frames at which a new segment began
    refused   messages that could not be used, by sentence
    """

    stamps_ns: list[int] = field(default_factory=list)
    frame_ms: list[float] = field(default_factory=list)
    stage_ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    resets: list[int] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    counts: dict[str, int] = field(default_factory=dict)
    frames_out: int = 0
    wall_s: float = 0.0

    @property
    def frames_in(self) -> int:
        return len(self.stamps_ns) + sum(self.refused.values())

    @property
    def video_s(self) -> float:
        return (self.stamps_ns[-1] - self.stamps_ns[0]) * 1e-9

    def stages(self) -> dict[str, dict[str, float]]:
        """Percentiles per stage; the whole frame is "total"."""
        return {stage: percentiles(ms) for stage, ms in {**self.stage_ms, "total": self.frame_ms}.items() if ms}


def resolve_config(bag_parameters: dict[str, Any], file: Path | None, assignments: Sequence[str]) -> Config:
    """The bag's own params.yaml, overridden by ``--params FILE``, overridden by ``--set key=value``."""
    values = {**bag_parameters, **(read_parameters(file) if file else {})}
    values.update(parse_assignment(text) for text in assignments)
    return from_mapping(values)


def replay(
    bag: Path,
    out: Path,
    params: Path | None = None,
    assignments: Sequence[str] = (),
    image_topic: str = "",
    make_sink: Callable[[Config], FrameSink] | None = None,
    on_frame: Callable[[int, int], None] | None = None,
    command: str = "",
) -> Run:
    """Run the pipeline over ``bag`` and write the files of a run into the folder ``out``.

    ``on_frame`` is called with the number of frames done and expected; ``command`` is noted in timing.json.
    """
    with BagReader(bag, image_topic) as reader:
        config = resolve_config(reader.parameters, params, assignments)
        sink = (make_sink or make_pipeline)(config)
        expected = reader.count(reader.image_topic)
        with _OutputFolder(out) as files:
            events = _events(reader, bag, config.depth_topic)
            run = _feed(events, sink, files, lambda done: on_frame(done, expected) if on_frame else None)
            run.refused = reader.refused
            if not run.frames_out:
                raise BagError(_nothing(bag, run))
            files.write_yaml(PARAMETERS_FILE, _resolved(config, sink.shutter))
            files.write_json(TIMING_FILE, {**_timing(run, bag, command), "estimated": _estimated(config)})
    return run


def _feed(
    events: Iterator[CameraFrame | DepthFrame], sink: FrameSink, files: _OutputFolder, on_frame: Callable[[int], None]
) -> Run:
    run = Run()
    started_s = time.perf_counter()
    for event in events:
        if isinstance(event, DepthFrame):
            sink.add_depth(event.stamp_ns, event.depth_m)
            continue
        resets = _resets(sink.counts)
        frame_started_s = time.perf_counter()
        results = sink.add_frame(event.stamp_ns, event.image, event.camera)
        run.frame_ms.append(1e3 * (time.perf_counter() - frame_started_s))
        for stage, recent in sink.stage_ms.items():
            run.stage_ms[stage].extend(recent)
            recent.clear()
        if _resets(sink.counts) != resets:
            run.resets.append(len(run.stamps_ns))
        run.stamps_ns.append(event.stamp_ns)
        files.write(results)
        on_frame(len(run.stamps_ns))
    files.write(sink.flush())
    run.wall_s = time.perf_counter() - started_s
    run.counts = dict(sorted(sink.counts.items()))
    run.frames_out = files.frames
    return run


def _timing(run: Run, bag: Path, command: str) -> dict[str, Any]:
    return {
        "version": __version__,
        "command": command,
        "bag": Path(bag).name,
        "frames": {
            "in": run.frames_in,
            "out": run.frames_out,
            "dropped": run.frames_in - run.frames_out,
            "refused": dict(run.refused),
        },
        "counts": run.counts,
        "resets": run.resets,
        "stages_ms": run.stages(),
        "frame_ms": [round(ms, 3) for ms in run.frame_ms],
        "wall_s": round(run.wall_s, 3),
        "video_s": round(run.video_s, 3),
    }


def make_pipeline(config: Config) -> FrameSink:
    """The real one; it is imported late, so that stand-ins need none of it."""
    from ..pipeline import Pipeline

    return Pipeline(config)


def percentiles(ms: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and the mean."""
    values = np.percentile(ms, PERCENTILES)
    return {**{f"p{p}": round(float(v), 3) for p, v in zip(PERCENTILES, values)}, "mean": round(float(np.mean(ms)), 3)}


def dense_table(samples: DenseSamples, R_ref_from_start: NDArray[np.float64]) -> DenseTrajectory:
    """The samples of one frame as rows of a file, relative to the reference rotation."""
    R = R_ref_from_start @ so3.from_quat_xyzw(samples.q_start_from_cam)
    n = len(samples.stamp_ns)
    return DenseTrajectory(
        samples.stamp_ns,
        so3.to_quat_xyzw(R),
        samples.omega,
        _deviations(samples.cov_rotation),
        _deviations(samples.cov_omega),
        np.full(n, samples.frame),
        np.full(n, samples.source),
    )


def sparse_table(pose: SparsePose, R_ref_from_start: NDArray[np.float64]) -> SparseTrajectory:
    """One frame's pose as a row of a file, relative to the reference rotation."""
    return SparseTrajectory(
        np.array([pose.stamp_ns]),
        so3.to_quat_xyzw(R_ref_from_start @ pose.R_start_from_cam)[None],
        _deviations(pose.covariance)[None],
        np.array([pose.frame]),
    )


class _OutputFolder:
    """The growing files of one run. All of them appear when the block ends well; none when it does not."""

    def __init__(self, folder: Path) -> None:
        self.frames = 0
        self._folder = Path(folder)
        self._stack = ExitStack()
        self._tables: dict[str, CsvStream] = {}
        self._R_ref_from_start: NDArray[np.float64] | None = None

    def __enter__(self) -> _OutputFolder:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BagError(f"folder {self._folder} cannot be made: {error.strerror}") from None
        for old in [*self._folder.glob("dense_*.csv"), *(self._folder / DEPTH_FOLDER).glob("*.npz")]:
            old.unlink()
        return self

    def __exit__(self, *exception: Any) -> bool | None:
        return self._stack.__exit__(*exception)

    def write(self, results: list[FrameResult]) -> None:
        for result in results:
            self._write(result)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        write_text(self._folder / name, json.dumps(content, indent=1) + "\n")

    def write_yaml(self, name: str, content: dict[str, Any]) -> None:
        write_text(self._folder / name, yaml.safe_dump(content, sort_keys=False))

    def _write(self, result: FrameResult) -> None:
        if self._R_ref_from_start is None:
            self._R_ref_from_start = so3.from_quat_xyzw(result.dense.q_start_from_cam[0]).T
        ref = self._R_ref_from_start
        self._table(DENSE_FILE, DENSE_COLUMNS).write(dense_table(result.dense, ref).rows())
        for name, samples in self._others(result).items():
            self._table(f"dense_{name}.csv", DENSE_COLUMNS).write(dense_table(samples, ref).rows())
        self._table(SPARSE_FILE, SPARSE_COLUMNS).write(sparse_table(result.sparse, ref).rows())
        self._table(FRAMES_FILE, FRAME_COLUMNS).write([_frame_row(result)])
        if result.depth is not None:
            self._write_depth(result.depth)
        self.frames += 1

    @staticmethod
    def _others(result: FrameResult) -> dict[str, DenseSamples]:
        """The alternatives; a baseline that won this frame belongs in its own file too, so that it has every frame."""
        own = {result.dense.source: result.dense} if result.dense.source in BASELINES else {}
        return {**result.alternatives, **own}

    def _write_depth(self, depth: DepthMap) -> None:
        (self._folder / DEPTH_FOLDER).mkdir(exist_ok=True)
        with atomic_file(self._folder / DEPTH_FOLDER / f"{depth.stamp_ns}.npz") as file:
            np.savez_compressed(file, depth_m=depth.depth_m, variance=depth.variance_m2)

    def _table(self, name: str, columns: tuple[str, ...]) -> CsvStream:
        if name not in self._tables:
            file: IO[bytes] = self._stack.enter_context(atomic_file(self._folder / name))
            self._tables[name] = CsvStream(file, columns)
        return self._tables[name]


def _events(reader: BagReader, bag: Path, depth_topic: str) -> Iterator[CameraFrame | DepthFrame]:
    """Frames in recorded order; a depth map comes before the first frame that is not older than it."""
    if not depth_topic:
        yield from reader.frames()
        return
    with BagReader(bag) as second:
        depths = second.depth_frames(depth_topic)
        waiting = next(depths, None)
        for frame in reader.frames():
            while waiting is not None and waiting.stamp_ns <= frame.stamp_ns:
                yield waiting
                waiting = next(depths, None)
            yield frame
    reader.refused.update(second.refused)


def _resets(counts: Counter[str]) -> int:
    return sum(n for cause, n in counts.items() if cause.startswith("reset."))


def _deviations(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sqrt(np.maximum(np.diagonal(covariance, axis1=-2, axis2=-1), 0.0))


def _frame_row(result: FrameResult) -> str:
    pose = result.sparse
    return (
        f"{pose.frame},{pose.stamp_ns},{pose.status.name.lower()},{pose.n_points},"
        f"{result.blur_px:.3f},{result.gate},{result.dense.source}"
    )


def _estimated(config: Config) -> list[str]:
    """The timing parameters that were not given."""
    return [name for name in ("exposure_s", "readout_s") if getattr(config, name) == UNKNOWN]


def _resolved(config: Config, shutter: Shutter) -> dict[str, Any]:
    """Every parameter in force, with the timing as it was used at the end (given or estimated)."""
    values = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(config).items()}
    values["exposure_s"] = shutter.exposure_ns * 1e-9
    values["readout_s"] = shutter.readout_ns * 1e-9
    return values


def _nothing(bag: Path, run: Run) -> str:
    reasons = [f"{n} × {sentence}" for sentence, n in run.refused.most_common(2)]
    reasons += [f"{n} × {cause}" for cause, n in run.counts.items() if cause.startswith("drop.")]
    return f"no frame of bag {bag} gave a result ({len(run.stamps_ns)} read{''.join('; ' + r for r in reasons)})"
