"""Speed of the whole pipeline on a rendered stream: against real time, per stage, and over the stream's length.

A short clip is rendered once and played to and fro: within a frame blur does not show its direction, so the reversed
clip is as real as the first, and the stream can be of any length. Frames are fed as fast as they are taken.
"""

from __future__ import annotations

import cProfile
import io
import os
import platform
import pstats
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from . import __version__
from .config import Config, from_mapping, parse_assignment
from .engine import Engine
from .engine.incremental import Incremental
from .engine.select import select_engine
from .errors import EngineError
from .evaluation.replay import FrameSink, make_pipeline, percentiles
from .sim.clips import SimulatedClip, simulate_clip
from .sim.motion import MotionPath, from_rates, time_grid
from .sim.scene import procedural, view_camera

CLIP_FRAMES = 40
DUTY = 0.9  # exposure as a share of the frame period
RATE_RMS_RAD_S = 0.5
WARM_UP = 30  # frames that are not counted: first calls, filling windows
MEMORY_SAMPLES = 120
PROFILE_LINES = 30


def run_bench(
    seconds: float,
    width: int = 640,
    height: int = 480,
    fps: float = 30.0,
    profile: bool = False,
    assignments: Sequence[str] = (),
    on_frame: Callable[..., None] | None = None,
    make_sink: Callable[[Config], FrameSink] | None = None,
) -> dict[str, Any]:
    """Measure ``seconds`` of a ``fps`` stream; the numbers as a dictionary that JSON can hold."""
    report = on_frame or (lambda done, of, label: None)
    timing = {"exposure_s": DUTY / fps, "readout_s": 0.0}
    config = from_mapping({**timing, **dict(map(parse_assignment, assignments))})
    clip = render_clip(width, height, fps, lambda done: report(done, CLIP_FRAMES, "Rendering"))
    sink = (make_sink or make_pipeline)(config)
    n_frames = WARM_UP + max(1, round(seconds * fps))
    profiler = cProfile.Profile() if profile else None
    result = _feed(sink, clip, fps, n_frames, profiler, report)
    if profiler:
        text = io.StringIO()
        pstats.Stats(profiler, stream=text).strip_dirs().sort_stats("tottime").print_stats(PROFILE_LINES)
        result["profile"] = text.getvalue()
    return result


def bench_network(folder: Path, choice: str = "auto", frames: int = 120, threads: int = 1) -> dict[str, Any]:
    """Measure an exported network alone: each graph, the stream, and what running the clip again would cost.

    ``frames`` of noise are streamed after the clip is full: encoder and decoder for every frame, the windows' graphs
    and the head when a window is finished. ``rerun`` is the last T frames as one clip for every frame, from the same
    medians.
    """
    engine = select_engine(choice, folder, threads).engine
    if engine is None:
        raise EngineError(f"no engine runs {folder}")
    timed = TimedEngine(engine)
    T, S = engine.manifest.sizes["clip_frames"], engine.manifest.sizes["window_frames"]
    frame_ms, cpu_ms = _stream_network(timed, T, frames)
    quarter, windows = max(1, frames // 4), T // S
    ms = {graph: float(np.median(timed.graph_ms.get(graph, [0.0]))) for graph in engine.manifest.graphs}
    decoder = ms.get("decoder", 0.0)
    per_window = ms["window"] + (windows - 1) * ms["cross"] + ms["head"]
    of_clip = T * ms["encoder"] + windows * ms["window"] + (windows - 1) * ms["cross"] + ms["head"] + decoder
    result = {
        "machine": machine(),
        "network": {"preset": engine.manifest.preset, "engine": engine.name, "threads": threads, "frames": frames},
        "graphs_ms": {graph: percentiles(times) for graph, times in timed.graph_ms.items()},
        "stream_ms_per_frame": round(ms["encoder"] + decoder + per_window / S, 3),
        "rerun_ms_per_frame": round(of_clip, 3),
        "cpu_ms_per_frame": round(cpu_ms / frames, 3),
        "frame_ms_first_quarter": round(float(np.median(frame_ms[:quarter])), 3),
        "frame_ms_last_quarter": round(float(np.median(frame_ms[-quarter:])), 3),
        "memory_mb": resident_mb(),
    }
    engine.close()
    return result


class TimedEngine:
    """An engine that notes how long each graph takes."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.name, self.manifest, self.close = engine, engine.name, engine.manifest, engine.close
        self.graph_ms: dict[str, list[float]] = defaultdict(list)

    def run(self, graph: str, inputs: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        start_s = time.perf_counter()
        outputs = self.engine.run(graph, inputs)
        self.graph_ms[graph].append(1e3 * (time.perf_counter() - start_s))
        return outputs


def _stream_network(engine: TimedEngine, warm_up: int, frames: int) -> tuple[list[float], float]:
    """Noise through a new stream: milliseconds of every frame after the warm-up, and of the processor in all."""
    rng = np.random.default_rng(0)
    given = {name: graph.inputs for name, graph in engine.manifest.graphs.items()}
    image = rng.random(given["encoder"]["image"][1:], dtype=np.float32)
    camera = rng.random(given["window"]["camera"][1:], dtype=np.float32)
    path = {
        name: rng.random(shape[1:], dtype=np.float32) + np.float32(0.1)
        for name, shape in given.get("decoder", {}).items()
        if name in ("trajectory", "guess")
    }
    stream, frame_ms, cpu_s = Incremental(engine), [], 0.0
    for k in range(warm_up + frames):
        if k == warm_up:
            engine.graph_ms.clear()
            cpu_s = time.process_time()
        start_s = time.perf_counter()
        if stream.add_frame(k, image, camera) is not None:
            stream.depth()
        if path:
            stream.decode(k, camera, **path)
        frame_ms.append(1e3 * (time.perf_counter() - start_s))
    return frame_ms[warm_up:], 1e3 * (time.process_time() - cpu_s)


def render_clip(width: int, height: int, fps: float, on_frame: Callable[[int], None] | None = None) -> SimulatedClip:
    """The clip that is played to and fro; it rests at both ends, so the reversal is smooth."""
    scene = procedural(seed=3).grey()
    duration_s = CLIP_FRAMES / fps
    camera = view_camera(scene, width, height, 0.15)
    path = _to_and_fro(duration_s)
    return simulate_clip(scene, path, camera, CLIP_FRAMES, fps, DUTY / fps, 0.0, on_frame=on_frame, name="bench")


def _to_and_fro(duration_s: float) -> MotionPath:
    """A hand-like motion whose rate is zero at both ends: sines of whole half periods up to 12 Hz."""
    rng = np.random.default_rng(5)
    t = time_grid(duration_s + 0.1)
    omega = np.zeros((len(t), 3))
    for k in range(1, max(2, int(24 * duration_s))):
        frequency_hz = k / (2 * duration_s)
        omega += rng.normal(size=3) / (1 + frequency_hz) * np.sin(2 * np.pi * frequency_hz * t)[:, None]
    omega *= RATE_RMS_RAD_S / np.sqrt(np.mean(np.sum(omega**2, axis=1)))
    return from_rates(t, omega)


def _feed(
    sink: FrameSink,
    clip: SimulatedClip,
    fps: float,
    n_frames: int,
    profiler: cProfile.Profile | None,
    report: Callable[..., None],
) -> dict[str, Any]:
    frame_ms: list[float] = []
    stage_ms: dict[str, list[float]] = defaultdict(list)
    memory_mb: list[tuple[float, float]] = []
    every = max(1, n_frames // MEMORY_SAMPLES)
    start_s = cpu_s = 0.0
    for k, (stamp_ns, image) in enumerate(_stream(clip, fps, n_frames)):
        if k == WARM_UP:
            start_s, cpu_s = time.perf_counter(), time.process_time()
            stage_ms.clear()
            frame_ms.clear()
        frame_start_s = time.perf_counter()
        with profiler if profiler and k >= WARM_UP else nullcontext():
            sink.add_frame(stamp_ns, image, clip.camera)
        frame_ms.append(1e3 * (time.perf_counter() - frame_start_s))
        for stage, recent in sink.stage_ms.items():
            stage_ms[stage].extend(recent)
            recent.clear()
        if k >= WARM_UP and (k - WARM_UP) % every == 0:
            memory_mb.append((round(k / fps, 2), resident_mb()))
        report(k + 1, n_frames, "Frames")
    wall_s, cpu_s = time.perf_counter() - start_s, time.process_time() - cpu_s
    return _numbers(sink, clip, fps, frame_ms, stage_ms, memory_mb, wall_s, cpu_s)


def _stream(clip: SimulatedClip, fps: float, n_frames: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Stamps and pictures, forwards and backwards; the frames at the ends are at rest and are shown once."""
    n = len(clip.frames)
    order = [*range(n), *range(n - 2, 0, -1)]
    start_ns = int(clip.stamps_ns[0])
    for k in range(n_frames):
        yield start_ns + round(k * 1e9 / fps), clip.frames[order[k % len(order)]]


def _numbers(
    sink: FrameSink,
    clip: SimulatedClip,
    fps: float,
    frame_ms: list[float],
    stage_ms: dict[str, list[float]],
    memory_mb: list[tuple[float, float]],
    wall_s: float,
    cpu_s: float,
) -> dict[str, Any]:
    n = len(frame_ms)
    quarter = max(1, n // 4)
    return {
        "version": __version__,
        "machine": machine(),
        "stream": {
            "size": f"{clip.camera.width}x{clip.camera.height}",
            "fps": fps,
            "frames": n,
            "blur_px": round(float(np.mean(clip.blur_px)), 2),
        },
        "speed": {
            "fps": round(n / wall_s, 2),
            "real_time_ratio": round(n / wall_s / fps, 3),
            "cpu_ms_per_frame": round(1e3 * cpu_s / n, 2),
        },
        "stages_ms": {stage: percentiles(ms) for stage, ms in {**stage_ms, "total": frame_ms}.items() if ms},
        "frame_ms_first_quarter": round(float(np.median(frame_ms[:quarter])), 2),
        "frame_ms_last_quarter": round(float(np.median(frame_ms[-quarter:])), 2),
        "memory_mb": {
            "first": memory_mb[0][1],
            "last": memory_mb[-1][1],
            "max": max(mb for _, mb in memory_mb),
            "over_time": memory_mb,
        },
        "counts": dict(sorted(sink.counts.items())),
    }


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }


def resident_mb() -> float:
    """Resident memory of this process; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0.0
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
