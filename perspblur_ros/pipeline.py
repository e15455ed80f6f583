"""Camera frames in, sparse and dense rotation out.

    frame → ring buffer → tracker → optics (sparse) → track spline → (decoder →) cross-blur → densifier
                                                          └→ depth, with the network's where one runs

``Pipeline.add_frame`` is the whole method; everything it calls is a component that knows nothing of the others.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from . import crossblur, densifier, optics, so3
from .calibration import SolvedWindow, TimingEstimator
from .camera import Camera, Shutter
from .config import Config
from .decoder_stage import DecoderStage
from .depth_filter import Points
from .depth_prior import DepthPrior
from .depth_stage import DepthStage
from .motion_prior import knot_precision
from .ring_buffer import Rejected, RingBuffer
from .spline import FixedLagSpline, StreamSolution, TrackWindow, measured_depths
from .spline_state import SplineState
from .tracker import Tracker, is_blind, load_matcher
from .types import DenseSamples, Frame, FrameResult, SparsePose, Status

FloatArray = NDArray[np.float64]

MIN_SPLINE_FRAMES = 4
OWN_DEPTH_RELATIVE_SD = 0.2  # of a map that was measured from the same tracks: enough to hold the scene's level
MIN_TRACKS = 12
MAX_TRACK_NOISE_PX = 6.0  # beyond it the tracks do not tell of one rigid scene
PICTURE_DENSIFIERS = ("auto", "decoder", "crossblur")
MIN_SIGHTINGS = 3  # of a track, before it says anything about the spline
ASSUMED_PERIOD_NS = 33_333_333
STAGE_MEMORY = 512
COARSE_BLUR_PX = 25.0
FINAL_REFINEMENTS = 4  # of frames that no later one will settle
RETRACK_BLUR_PX = 3.0
BLUR_PATH_POINTS = 21
SHARP_BLUR_PX = 1.5  # shorter blur tells less than the tracks, and its refinement only costs time
UNTRUSTED_BLUR_SHARE = 50 / 640  # of the width: tracks are biased by so long a blur, and the spline with them
BLIND_VARIANCE_RAD2 = 1.0
# of what is stated where the lever arm is known; calibrated on the development clips, as is 1 where it is unknown
LEVER_ARM_VARIANCE_SCALE = {"spline": 0.4, "crossblur": 0.4, "decoder": 0.2}


@dataclass
class _Posed:
    """A frame of the present segment: its sparse pose by the optics, its best known orientation, and how many tracks
    the spline has of it."""

    frame: Frame
    sparse: SparsePose
    R_start_from_cam: FloatArray
    tracks: int = 0
    coherent: bool = True  # False where the tracks up to here do not tell of one rigid scene


@dataclass(frozen=True)
class _Solved:
    """What the newest window says: the track spline and, where pictures could be compared, what they made of it.

    decoded, refinement  the learned step, and the refinement that went on from it, as the gate judged them

    raw  (N, T, 2) the window's sightings in raw pixels
    """

    window: TrackWindow
    raw: FloatArray
    stream: StreamSolution
    decoded: crossblur.Refinement | None
    refinement: crossblur.Refinement | None


class Pipeline:
    """The stream. Results come in frame order, ``lag_frames`` late.

    counts    monotone: frames, drops and resets by cause, gate decisions, fallbacks
    stage_ms  recent wall milliseconds per stage
    shutter   the timing in force, assumed where the configuration leaves it open
    decoder   the learned step; training puts its own here
    depth_stage  what the newest depth map was made of
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._ring = RingBuffer(config.clip_frames, config.window_frames, round(config.max_gap_s * 1e9))
        self.counts: Counter[str] = self._ring.counts
        self.stage_ms: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=STAGE_MEMORY))
        lever_arm_m = np.array(config.lever_arm) if config.lever_arm else None
        matcher = load_matcher(config.tracker, config.tracker_callable)
        self._tracker = Tracker(matcher, config.max_tracks, config.smoother_frames, config.grid_half_count)
        # without the lever arm, parallax since the keyframe would pass for rotation: go from frame to frame
        self._optics = optics.KeyframeChain(lever_arm_m, min_shared=0.5 if lever_arm_m is not None else 2.0)
        self._spline = FixedLagSpline(
            config.knot_spacing_s,
            lever_arm_m,
            config.hand_motion_amplitude,
            config.translation_amplitude_m_s,
            config.smoother_iterations,
        )
        self._crossblur = crossblur.CrossBlur(
            config.crossblur_patches, config.crossblur_pairs, config.crossblur_iterations
        )
        self._depth = DepthPrior(scale_is_observable=lever_arm_m is not None)
        self._depth_given = False
        self.depth_stage = DepthStage(config, self.counts)
        self.decoder = DecoderStage(self.depth_stage.engine, config.lag_frames, self.counts)
        self._variance_scale = LEVER_ARM_VARIANCE_SCALE if config.lever_arm else {}
        self._timing = TimingEstimator(config.exposure_ns, config.readout_ns, config.samples_per_frame)
        self._period_ns = ASSUMED_PERIOD_NS
        self.shutter = self._resolved_shutter()
        self._segment = 0
        self._posed: list[_Posed] = []
        self._emitted = 0  # of the posed frames
        self._origin_ns = 0
        self._solved: _Solved | None = None
        self._idle = "off"  # why the newest pictures were not compared, one word
        self._dense: DenseSamples | None = None  # what was published last
        self._R_out = np.eye(3)  # the published orientation of the last frame
        self._typical_blur_px = 0.0
        self._begin()

    def add_frame(self, stamp_ns: int, image: NDArray[np.uint8], camera: Camera) -> list[FrameResult]:
        """One camera frame (uint8, H × W grey or H × W × 3 RGB); returns the frames that became final."""
        with self._timed("buffer"):
            frame = self._ring.add(stamp_ns, image, camera, self.shutter)
        if isinstance(frame, Rejected):
            return []
        results = self._new_segment(frame) if frame.segment != self._segment else []

        blind = is_blind(frame.image)
        with self._timed("tracker"):
            if blind:
                self._tracker.skip()
            else:
                self._tracker.add(frame.image)
        with self._timed("optics"):
            self._posed.append(self._pose(frame, blind))
        with self._timed("network"):
            self.depth_stage.add_frame(self._posed[-1], self.shutter, self._period_ns)
        if self.config.densifier in PICTURE_DENSIFIERS:
            with self._timed("crossblur"):
                self._crossblur.add_picture(frame.image, (frame.mid_ns - self._origin_ns) * 1e-9)
        if len(self._posed) < MIN_SPLINE_FRAMES:
            return results

        with self._timed("spline"):
            self._learn_period()
            window, raw = self._track_window()
            stream = self._solve(window)
        with self._timed("crossblur"):
            decoded, refinement = self._refine(window, raw, stream) if stream else (None, None)
        self._solved = _Solved(window, raw, stream, decoded, refinement) if stream else None
        if stream:
            with self._timed("retrack"):
                self._retrack(stream, refinement or decoded)
            with self._timed("timing"):
                self._observe_timing(window, raw, stream)
        with self._timed("densifier"):
            results += self._emit(len(self._posed) - self.config.lag_frames)
        with self._timed("depth"):
            return self._with_depth(results)

    def add_depth(self, stamp_ns: int, depth_m: NDArray[np.float32]) -> None:
        """A metric depth image (H × W, metres, NaN invalid) from outside, of the moment ``stamp_ns``."""
        self._depth_given = True
        nearest = min(self._posed, key=lambda p: abs(p.frame.stamp_ns - stamp_ns), default=None)
        self._depth.set_map(depth_m, nearest.R_start_from_cam if nearest else np.eye(3))

    def flush(self) -> list[FrameResult]:
        """The frames still waiting for later ones; no frame will come to settle them, so they are refined here."""
        solved = self._solved
        if solved is not None and (solved.decoded or solved.refinement) and self._emitted < len(self._posed):
            for _ in range(FINAL_REFINEMENTS):
                decoded, refinement = self._refine(solved.window, solved.raw, solved.stream)
            self._solved = replace(solved, decoded=decoded, refinement=refinement)
        return self._emit(len(self._posed))

    def reset(self) -> None:
        """Forget what was seen; the next frame starts a new segment."""
        self._ring.reset()

    @property
    def engine_name(self) -> str:
        """What runs the networks, "none" without any."""
        return self.depth_stage.engine_name

    @property
    def engine_failure(self) -> str:
        """Why the networks have ended in the middle of the stream, one sentence; empty while they run."""
        return self.depth_stage.failure or self.decoder.failure

    # --- one frame ---------------------------------------------------------------------------------------------------

    def _pose(self, frame: Frame, blind: bool) -> _Posed:
        """Sparse pose of the newest frame; its step joins the best orientation of the frame before."""
        pixels = self._tracker.table.pixels[:, -1]
        seen = np.flatnonzero(np.isfinite(pixels[:, 0]))
        ideal = frame.camera.undistort(pixels[seen])
        row_s = self.shutter.row_offset_s(pixels[seen, 1], frame.camera.height)
        last = self._posed[-1] if self._posed else None
        R_guess = last.R_start_from_cam if last else self._R_out
        rho, rho_sd, _ = self._depth.inverse_depths(frame.camera, ideal[:, None], R_guess[None], R_guess)
        sparse = self._optics.add(
            optics.Sightings(
                frame.index, frame.mid_ns, self._exposure_s, frame.camera, self._tracker.table.ids[seen], ideal, row_s,
                rho, rho_sd,
            )
        )
        if blind:
            self.counts["blind"] += 1
            sparse = replace(sparse, status=Status.BLIND, covariance=np.eye(3) * BLIND_VARIANCE_RAD2)
        if last is None:
            self._origin_ns = frame.mid_ns
            return _Posed(frame, sparse, self._R_out)
        step = last.sparse.R_start_from_cam.T @ sparse.R_start_from_cam
        return _Posed(frame, sparse, last.R_start_from_cam @ step)

    def _track_window(self) -> tuple[TrackWindow, FloatArray]:
        """The longest tracks, over the frames that are solved together; and their raw pixels (N, T, 2)."""
        table = self._tracker.table
        window = self._posed[-table.pixels.shape[1] :]
        sightings = np.isfinite(table.pixels[:, :, 0]).sum(axis=1)
        long = np.flatnonzero(sightings >= MIN_SIGHTINGS)
        longest = long[np.argsort(-sightings[long], kind="stable")]
        long = np.sort(longest[: self.config.max_tracks])
        raw, camera = table.pixels[long], window[-1].frame.camera
        seen = np.isfinite(raw[:, :, 0])
        ideal = np.full(raw.shape, np.nan)
        ideal[seen] = camera.undistort(raw[seen])
        R = np.array([p.R_start_from_cam for p in window])
        rho, rho_sd, shared_sd = self._depth.inverse_depths(camera, ideal, R, R[len(R) // 2])
        row_s = self.shutter.row_offset_s(raw[:, :, 1], camera.height)
        mid_s = np.array([p.frame.mid_ns - self._origin_ns for p in window]) * 1e-9
        return TrackWindow(table.ids[long], ideal, row_s, mid_s, rho, rho_sd, np.ones(len(rho)), shared_sd), raw

    def _solve(self, window: TrackWindow) -> StreamSolution | None:
        """The track spline of the newest window; None (counted) where there is too little to solve."""
        posed = self._posed[-len(window.mid_s) :]
        for p, count in zip(posed, np.isfinite(window.ideal[:, :, 0]).sum(axis=0)):
            p.tracks = int(count)
        if len(window.ids) < MIN_TRACKS:
            self.counts["fallback.few_tracks"] += 1
            self._spline.reset()
            return None
        try:
            stream = self._spline.add(
                window, posed[-1].frame.camera, self._exposure_s, self._period_ns * 1e-9 / 2,
                np.array([p.R_start_from_cam for p in posed]),
            )
        except np.linalg.LinAlgError:
            stream = None
        finite = stream is not None and bool(np.all(np.isfinite(stream.solution.state.c)))
        if stream is None or not finite or stream.solution.sigma_px > MAX_TRACK_NOISE_PX:
            self.counts["fallback.incoherent_tracks" if finite else "fallback.not_solved"] += 1
            posed[-1].coherent = not finite
            self._spline.reset()
            return None
        state = stream.solution.state
        phi = state.grid.mean_rows(window.mid_s, self._exposure_s) @ state.c
        for p, R in zip(posed, stream.R_start_from_ref @ so3.exp(phi)):
            p.R_start_from_cam = R
        self._depth.learn_level(state.rho)
        return stream

    def _refine(
        self, window: TrackWindow, raw: FloatArray, stream: StreamSolution
    ) -> tuple[crossblur.Refinement | None, crossblur.Refinement | None]:
        """The learned path and, where it is refused, the refined one; None (counted) where nothing can be compared."""
        self._idle = "off"
        if self.config.densifier not in PICTURE_DENSIFIERS:
            return None, None
        solution, camera = stream.solution, self._posed[-1].frame.camera
        blur_px = self._blur_px(solution.state, float(window.mid_s[-1]))
        self._set_working_scale(blur_px)
        compared_s = window.mid_s[-self.config.crossblur_pairs - 1 :]
        if max(self._blur_px(solution.state, float(t)) for t in compared_s) < SHARP_BLUR_PX:
            self._idle = "sharp"
            return None, None
        grid = solution.state.grid
        solved = crossblur.Solved(
            solution.state, solution.information, solution.tracks, solution.weights,
            knot_precision(grid.count, grid.spacing_s) / solution.amplitude**2,
        )
        sightings = crossblur.Sightings(window.ids, raw, window.ideal, window.row_s)
        given = (sightings, solved, camera, self._exposure_s, blur_px)
        decoded, refinement, start = None, None, None
        try:
            start = self._crossblur.start(*given)
            if start is not None:
                decoded = self._decode(window, stream, solved, start, blur_px)
            if start is not None and not _settled(decoded, self.config.densifier):
                refinement = self._crossblur.refine(*given, start)
        except np.linalg.LinAlgError:
            pass
        if decoded is None and refinement is None:
            self._idle = "no_patches"
            self.counts["fallback.no_patches"] += 1
        return decoded, refinement

    def _decode(
        self,
        window: TrackWindow,
        stream: StreamSolution,
        solved: crossblur.Solved,
        start: crossblur.Start,
        blur_px: float,
    ) -> crossblur.Refinement | None:
        """Learned steps, as many as the refinement would take; judged."""
        if self.config.densifier == "crossblur":
            return None
        posed, decoded = self._posed[-len(window.mid_s) :], None
        for _ in range(self.config.crossblur_iterations):
            if decoded is not None:
                start = start.moved(decoded.state)
            decoded = self.decoder.step(
                window, stream.solution, solved, start, posed, self.shutter, self._period_ns * 1e-9, blur_px
            )
            if decoded is None:
                return None
        assert decoded is not None
        return self._crossblur.judge(start, solved, decoded.state, decoded.information)

    def _retrack(self, stream: StreamSolution, refinement: crossblur.Refinement | None) -> None:
        """Once the paths are known, follow the newest step again on cross-blurred pictures: the next windows profit."""
        accepted = refinement is not None and refinement.gate == "accepted"
        state = refinement.state if refinement is not None and accepted else stream.solution.state
        if self._posed[-1].sparse.status is Status.BLIND:
            return
        before, after = (p.frame for p in self._posed[-2:])
        paths = [self._blur_path(state, (f.mid_ns - self._origin_ns) * 1e-9) for f in (before, after)]
        if max(float(np.ptp(path, axis=0).max()) for path in paths) > RETRACK_BLUR_PX:
            self._tracker.retrack(before.image, after.image, *paths)
            table = self._tracker.table
            seen = np.isfinite(table.pixels[:, -1, 0])
            self._optics.amend(table.ids[seen], after.camera.undistort(table.pixels[seen, -1]))

    # --- results -----------------------------------------------------------------------------------------------------

    def _with_depth(self, results: list[FrameResult]) -> list[FrameResult]:
        """The results, the last of them with the depth map that is due."""
        if not results or not self.depth_stage.due:
            return results
        if self._solved is not None:
            window, stream = self._solved.window, self._solved.stream
            camera, newest_ns = self._posed[-1].frame.camera, self._posed[-1].frame.mid_ns
            try:
                points = self._points_of_pictures()
                if points is None:
                    depths = measured_depths(
                        window, camera, self._exposure_s, stream.solution, self._spline.translation_m_s
                    )
                    points = Points.of(depths.ids, depths.rays, depths.rho, depths.covariance)
                span_ns = len(window.mid_s) * self._period_ns
                self.depth_stage.measure(points, stream.R_start_from_ref, newest_ns, span_ns)
            except np.linalg.LinAlgError:
                self.counts["fallback.no_depth"] += 1
        last = self._posed[max(self._emitted, 1) - 1]
        depth = self.depth_stage.depth_map(last)
        trusted = self.depth_stage.trusted(depth) if depth and not self._depth_given else None
        if trusted is not None:
            self._depth.set_map(trusted, last.R_start_from_cam, OWN_DEPTH_RELATIVE_SD)
        return [*results[:-1], replace(results[-1], depth=depth)]

    def _points_of_pictures(self) -> Points | None:
        """Inverse depths of the newest window from its pictures; None where pictures or lever arm tell none."""
        solved, wanted = self._solved, self.config.depth_from_pictures and self.config.densifier in PICTURE_DENSIFIERS
        if solved is None or not wanted or not self.depth_stage.metric:
            return None
        window, solution = solved.window, solved.stream.solution
        posed, grid = self._posed[-len(window.mid_s) :], solution.state.grid
        starts = [solution.state, *(judged.state for _, judged in self._judged() if judged.gate == "accepted")]
        try:
            found = crossblur.blur_depths(
                [p.frame.image for p in posed], window.mid_s, window.ids, solved.raw, starts[-1],
                knot_precision(grid.count, grid.spacing_s) / solution.amplitude**2, posed[-1].frame.camera,
                self.shutter, self._crossblur.scale,
            )
        except np.linalg.LinAlgError:
            found = None
        if found is None:
            self.counts["fallback.depth_from_tracks"] += 1
            return None
        return Points(found.ids, found.rays, found.rho, found.variance, found.scale_variance)

    def _emit(self, until: int) -> list[FrameResult]:
        """Results of the posed frames up to ``until``; forgets what no window needs any more."""
        results = [self._result(k) for k in range(self._emitted, until)]
        self._emitted = max(self._emitted, until)
        surplus = len(self._posed) - self.config.smoother_frames
        if surplus > 0:
            del self._posed[:surplus]
            self._emitted -= surplus
        return results

    def _result(self, k: int) -> FrameResult:
        posed = self._posed[k]
        mid_ns = np.array([p.frame.mid_ns for p in self._posed])
        joining = self.config.sample_span == "period" and len(mid_ns) > 1
        span_ns = None if joining else self.shutter.exposure_ns
        stamps = densifier.sample_times_ns(mid_ns, k, self.config.samples_per_frame, span_ns)
        near = slice(max(k - 1, 0), k + 2)
        R_optics = np.array([p.sparse.R_start_from_cam for p in self._posed[near]])
        R_optics = self._R_out @ R_optics[0].T @ R_optics
        R_out = {"interpolation": R_optics[k - near.start]}
        seeing = all(p.sparse.status is Status.OK and p.coherent for p in self._posed[near])
        candidates = {"interpolation": densifier.interpolate(posed.frame.index, stamps, mid_ns[near], R_optics, seeing)}
        gate, blur_px = "no_spline", 0.0
        if self._solved is not None:
            solved = self._solved.stream.solution
            states = {"spline": (solved.state, solved.information)}
            gate = self._idle
            for source, judged in self._judged():
                states[source] = judged.state, judged.information
                gate = judged.gate
            near_s = 1e-9 * (mid_ns[near] - self._origin_ns).astype(float)
            sample_s = 1e-9 * (stamps - self._origin_ns).astype(float)
            blur_px = self._blur_px(solved.state, float((mid_ns[k] - self._origin_ns) * 1e-9))
            for source, (state, information) in states.items():
                # frame k goes on from what was published of frame k − 1
                R_start_from_ref = self._R_out @ self._mean_rotation(state, near.start).T
                R_out[source] = R_start_from_ref @ self._mean_rotation(state, k)
                candidates[source] = densifier.from_spline(
                    posed.frame.index, stamps, sample_s, near_s, state, information, R_start_from_ref,
                    self._variance_scale.get(source, 1.0), source, posed.tracks >= MIN_TRACKS,
                )
        chosen = self._chosen(candidates, blur_px)
        self._R_out = R_out[chosen]
        self.counts[f"gate.{gate}"] += 1
        self.counts[f"source.{chosen}"] += 1
        dense = self._dense = densifier.joined(candidates.pop(chosen), self._dense)
        sparse = replace(posed.sparse, R_start_from_cam=self._R_out)
        return FrameResult(sparse, dense, candidates, None, blur_px, gate)

    def _mean_rotation(self, state: SplineState, k: int) -> FloatArray:
        """Frame k's mean rotation in the state's own reference."""
        mid_s = (self._posed[k].frame.mid_ns - self._origin_ns) * 1e-9
        return so3.exp(state.grid.mean_rows(mid_s, self._exposure_s) @ state.c)

    def _judged(self) -> list[tuple[str, crossblur.Refinement]]:
        """What the pictures made of the newest window, the best last."""
        if self._solved is None:
            return []
        found = (("decoder", self._solved.decoded), ("crossblur", self._solved.refinement))
        return [(source, judged) for source, judged in found if judged is not None]

    def _chosen(self, candidates: dict[str, DenseSamples], blur_px: float) -> str:
        """Whose samples are published: the configured densifier where it exists, else what the gate lets pass."""
        wanted = self.config.densifier
        if wanted == "auto":
            passed = [source for source, judged in self._judged() if judged.gate == "accepted"]
            wanted = passed[-1] if passed else "spline"
            if wanted == "spline" and blur_px > UNTRUSTED_BLUR_SHARE * self._posed[-1].frame.camera.width:
                wanted = "interpolation"
        for source in (wanted, "spline", "interpolation"):
            if source in candidates and np.all(np.isfinite(candidates[source].omega)):
                return source
        return "interpolation"

    # --- time and segments -------------------------------------------------------------------------------------------

    def _new_segment(self, frame: Frame) -> list[FrameResult]:
        results = self.flush()
        self._begin()
        self._segment = frame.segment
        return results

    def _begin(self) -> None:
        self._posed, self._emitted, self._origin_ns, self._solved, self._dense = [], 0, 0, None, None
        self._tracker.reset()
        self._optics.cut()
        self._spline.reset()
        self._crossblur.reset()
        self.depth_stage.begin()
        if not self._depth_given:
            self._depth.forget_map()

    @property
    def _exposure_s(self) -> float:
        return self.shutter.exposure_ns * 1e-9

    def _resolved_shutter(self) -> Shutter:
        return Shutter(*self._timing.resolved, self.config.stamp_reference, self.config.stamp_offset_ns)

    def _learn_period(self) -> None:
        """The frame period; once per segment it fixes what the configuration leaves open of the timing."""
        mid_ns = np.array([p.frame.mid_ns for p in self._posed])
        self._period_ns = int(np.median(np.diff(mid_ns)))
        self._timing.learn_period(self._period_ns)
        if len(mid_ns) > MIN_SPLINE_FRAMES or self._solved is not None:
            return
        self._timing.assume()
        self.shutter = self._resolved_shutter()
        self._ring.retime(self.shutter)
        for p in self._posed:
            p.frame = replace(p.frame, mid_ns=self.shutter.mid_ns(p.frame.stamp_ns))
            p.sparse = replace(p.sparse, stamp_ns=p.frame.mid_ns)
        self._optics.shift(self._posed[0].frame.mid_ns - self._origin_ns)
        self._origin_ns = self._posed[0].frame.mid_ns

    def _observe_timing(self, window: TrackWindow, raw: FloatArray, stream: StreamSolution) -> None:
        """Refine in the background what the configuration leaves open of the timing; the next frame uses it."""
        camera, travel = self._posed[-1].frame.camera, self._spline.translation_m_s
        self._timing.observe(SolvedWindow(window, raw, camera, stream.solution, travel), self._crossblur)
        self.shutter = self._resolved_shutter()

    def _blur_path(self, state: SplineState, mid_s: float) -> FloatArray:
        """Path of a far point at the image centre over one exposure, about its mean, full-size pixels (S, 2)."""
        t = mid_s + np.linspace(-0.5, 0.5, BLUR_PATH_POINTS) * self._exposure_s
        phi = state.grid.rows(t) @ state.c
        path = np.stack([-phi[:, 1], phi[:, 0]], axis=1) * self._posed[-1].frame.camera.focal_px
        return path - path.mean(axis=0)

    def _blur_px(self, state: SplineState, mid_s: float) -> float:
        """Length of the blur path at the image centre, full-size pixels."""
        return float(np.linalg.norm(np.diff(self._blur_path(state, mid_s), axis=0), axis=1).sum())

    def _set_working_scale(self, blur_px: float) -> None:
        """How far pictures are reduced for cross-blur, so that the blur stays a few pixels; slow to change."""
        self._typical_blur_px += 0.1 * (blur_px - self._typical_blur_px)
        self._crossblur.scale = 4 if self._typical_blur_px > COARSE_BLUR_PX else 2

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.stage_ms[stage].append((time.perf_counter() - start) * 1e3)


def _settled(decoded: crossblur.Refinement | None, densifier: str) -> bool:
    """Whether the learned path leaves nothing to refine: the gate accepts it, or nothing else is asked for."""
    return decoded is not None and (decoded.gate == "accepted" or densifier == "decoder")
