"""Clips for the trajectory: a scene, a hand and a shutter, rendered at full size and run through the real pipeline.

What the learned layer corrects are the errors of the real tracker, spline and equations, so it learns from those. A
clip of 22 frames takes about 6 s of one core, a third of it rendering: the renderer looks up the source on every fourth
pixel and interpolates between, which moves depth edges by a pixel or two and no rotation at all.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import Akima1DInterpolator

from .. import decoder
from .. import detail_basis as db
from ..camera import Camera
from ..config import from_mapping
from ..decoder_stage import DecoderStage
from ..engine.interface import camera_values
from ..pipeline import Pipeline
from ..sim import render as sr
from ..sim.evaluation_set import load_place
from ..sim.hand_motion import hand_motion
from ..sim.motion import MotionPath, from_rates, read_gyro_csv, time_grid
from ..sim.scene import Scene, procedural, view_camera
from ..sim.sensor import Sensor
from .examples import example

FloatArray = NDArray[np.float64]
Grey = NDArray[np.uint8]

WIDTH, HEIGHT, FRAMES = 640, 480, 22
PICTURE_PX = 128
START_NS, LEAD_S = 1_000_000_000, 0.03
STEP_PX = 4  # between the pixels whose source is looked up
MIN_SUBFRAMES, MAX_SUBFRAMES = 9, 36
MAX_RATE_RAD_S, MIN_RATE_RAD_S = 8.0, 0.06
MAX_GAP_S = 0.03
LONGEST_PX = 1300  # of a picture kept in memory

PLACES = {  # what trains may be used by anybody; the pictures behind KITTI's and SUN3D's may not
    "train": (
        *("kinect_pcl_data", "elem_Ashim_DSilva.jpg", "elem_Photo_by_SpaceX.jpg", "elem_Ryan_Schroeder.jpg"),
        *("elem_Suluh_Kalba.jpg", "elem_Sunset_by_the_Pier.jpg"),
    ),
    "validation": (
        *("redwood_synth_open3d", "kitti_depth_metric3d", "sun3d_studyroom_nvblox", "elem_Snow-Capped_Mountain.jpg"),
    ),
}
RECORDINGS = {  # and how often each is drawn
    "train": {
        "broad_02_slow_rotation_B_286hz": 4.0, "broad_07_fast_rotation_B_286hz": 4.0,
        "lhaippp_phone_in_car_412hz": 1.5, "twistnsync_s0_phone0_500hz": 1.0, "twistnsync_s0_phone1_500hz": 1.0,
        "twistnsync_s2_phone0_500hz": 1.0, "twistnsync_s2_phone1_500hz": 1.0,
    },
    "validation": {
        "twistnsync_s4_phone0_500hz": 1.0, "twistnsync_s4_phone1_500hz": 1.0, "broad_21_fast_combined_286hz": 3.0,
    },
}


def sources(data_dir: Path) -> list[dict[str, str]]:
    """Name, source and licence of everything in the training split, for the manifest of what was trained on it."""
    textures = {
        entry["file"]: (entry["source_repo"], entry["licence"])
        for entry in json.loads((data_dir / "textures" / "meta.json").read_text(encoding="utf-8"))
    }
    recordings = json.loads((data_dir / "gyro" / "meta.json").read_text(encoding="utf-8"))
    found = {name: (recordings[name]["source"], recordings[name]["licence"]) for name in RECORDINGS["train"]}
    for place in PLACES["train"]:
        if place in textures:
            found[place] = textures[place]
        else:
            meta = json.loads((data_dir / "rgbd" / place / "meta.json").read_text(encoding="utf-8"))
            found[place] = f"{meta['source_repo']} ({meta['original_data']})", meta["repo_licence"]
    return [{"name": name, "source": source, "licence": licence} for name, (source, licence) in found.items()]


@dataclass(frozen=True)
class Clip:
    """Frames (uint8, H × W) from START_NS at ``fps``, and the path that made them, LEAD_S before the first frame."""

    place: str
    recording: str
    frames: list[Grey]
    fps: float
    exposure_s: float
    readout_s: float
    camera: Camera
    lever_arm_m: FloatArray
    lever_arm_known: bool
    depth_m: NDArray[np.float32] | None
    path: MotionPath

    @property
    def stamps_ns(self) -> NDArray[np.int64]:
        return START_NS + np.round(np.arange(len(self.frames)) / self.fps * 1e9).astype(np.int64)

    def rotation(self, t_s: FloatArray) -> FloatArray:
        """R_ref_from_cam at times of the stamps' clock, seconds."""
        return self.path.rotation(t_s - START_NS * 1e-9 + LEAD_S)


class Material:
    """The pictures and recordings of a split, read when first used."""

    def __init__(self, data_dir: Path, split: str) -> None:
        self.data_dir, self.split = data_dir, split
        self._scenes: dict[str, Scene] = {}
        self._recordings: dict[str, tuple[FloatArray, Akima1DInterpolator]] = {}
        self.places = [place for name in PLACES[split] for place in self._pictures(name)]

    def _pictures(self, name: str) -> list[str]:
        if "." in name:
            return [name]
        return [f"{name}/{path.stem}" for path in sorted((self.data_dir / "rgbd" / name / "rgb").iterdir())]

    def scene(self, place: str) -> Scene:
        if place not in self._scenes:
            scene = load_place(place, self.data_dir).grey()
            self._scenes[place] = scene.resized(min(1.0, LONGEST_PX / max(scene.image.shape)))
        return self._scenes[place]

    def recording(self, name: str) -> tuple[FloatArray, Akima1DInterpolator]:
        """Times from 0, and the rates as a function of them."""
        if name not in self._recordings:
            t, w = read_gyro_csv(self.data_dir / "gyro" / f"{name}.csv")
            self._recordings[name] = t - t[0], Akima1DInterpolator(t - t[0], w)
        return self._recordings[name]


def draw(seed: int, material: Material) -> Clip | None:
    """A random clip; None where the drawn motion is too fast or the recording at rest. Same seed, same clip."""
    rng = np.random.default_rng((seed, material.split == "train"))
    place, scene = _scene(rng, material)
    if rng.random() < 0.45:
        fps = rng.uniform(15.5, 17)
        exposure_s = rng.uniform(0.9, 0.99) / fps
    else:
        fps = rng.choice([20.0, 25.0, 30.0])
        exposure_s = max(0.015, rng.uniform(0.4, 0.99) / fps)
    readout_s = rng.uniform(0, 0.020) if rng.random() < 0.7 else rng.uniform(0, 0.003)
    camera = view_camera(scene, WIDTH, HEIGHT, rng.uniform(0.1, 0.3))
    duration_s = 2 * LEAD_S + (FRAMES - 1) / fps + exposure_s + readout_s
    drawn = _rates(rng, material, duration_s)
    if drawn is None:
        return None
    recording, rates = drawn
    opens_s = LEAD_S + np.arange(FRAMES) / fps + readout_s / 2
    inside = (opens_s[:, None] + exposure_s * np.linspace(0, 1, 20)) / 0.001
    blur_px = camera.focal_px * exposure_s * np.linalg.norm(rates[inside.astype(int)][..., :2], axis=-1).mean()
    rates = rates * (np.exp(rng.uniform(np.log(2.5), np.log(34))) / max(float(blur_px), 1e-6))
    if np.abs(rates).max() > MAX_RATE_RAD_S:
        return None
    pivot_m = None
    if rng.random() < 0.3:
        travel = hand_motion(int(rng.integers(2**31)), duration_s, 0.2, rng.uniform(0.01, 0.08))
        pivot_m = travel.pivot_m[: len(rates)]
    path = from_rates(time_grid(duration_s), rates, pivot_m).centred(0, duration_s)
    lever_arm_m = rng.uniform(0.05, 0.3) * np.array([rng.normal(0, 0.3), -rng.uniform(0.3, 1), rng.uniform(0.2, 1)])
    if rng.random() < 0.5:  # a pivot anywhere near
        lever_arm_m = 0.1 * rng.normal(0, 1, 3)
    gamma = None if rng.random() < 0.8 else rng.uniform(1.9, 2.5)
    sensor = Sensor(full_well_e=float(np.exp(rng.uniform(np.log(3000), np.log(30000)))), gamma=gamma)
    view = sr.prepare(scene, camera)
    frames = [
        sensor.expose(_frame(view, path, LEAD_S + k / fps, exposure_s, readout_s, lever_arm_m), rng)
        for k in range(FRAMES)
    ]
    depth_m = sr.render_depth(view, path, LEAD_S, lever_arm_m) if rng.random() < 0.5 else None
    known = bool(rng.random() < 0.5)
    return Clip(place, recording, frames, fps, exposure_s, readout_s, camera, lever_arm_m, known, depth_m, path)


def _scene(rng: np.random.Generator, material: Material) -> tuple[str, Scene]:
    """A place with its depth, brightness, contrast and focal length drawn; some are made up, some nearly flat."""
    if rng.random() < 0.12:
        place = f"procedural {rng.integers(10_000)}"
        scene = procedural(int(place.split()[1]) + 10_000 * (material.split == "validation"))
    else:
        place = material.places[rng.integers(len(material.places))]
        scene = material.scene(place)
    scene = scene.with_focal_scaled(float(np.exp(rng.uniform(np.log(0.7), np.log(1.8)))))
    image, depth_m = scene.image, scene.depth_m * np.float32(np.exp(rng.uniform(np.log(0.6), np.log(1.6))))
    if rng.random() < 0.5:
        image, depth_m = image[:, ::-1], depth_m[:, ::-1]
    if rng.random() < 0.3:
        image = image.mean() + (image - image.mean()) * rng.uniform(0.08, 0.5)
    image = np.ascontiguousarray(np.clip(image * rng.uniform(0.5, 1.3), 0, 1), np.float32)
    c = scene.camera
    camera = Camera(c.width, c.height, c.fx, c.fy, (c.width - 1) / 2, (c.height - 1) / 2)
    return place, Scene(image, np.ascontiguousarray(depth_m), camera)


def _rates(rng: np.random.Generator, material: Material, duration_s: float) -> tuple[str, FloatArray] | None:
    """Name and rates (N, 3) every millisecond: a hand's spectrum or a recording's stretch, axes and time turned."""
    if rng.random() < 0.25:
        name, rates = "hand_motion", hand_motion(int(rng.integers(2**31)), duration_s).omega
    else:
        found = _stretch(rng, material, duration_s)
        if found is None:
            return None
        name, rates = found
    rates = rates @ (np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)[:, None]).T
    if rng.random() < 0.5:
        rates = -rates[::-1]
    return name, rates - rates.mean(axis=0) if rng.random() < 0.8 else rates


def _stretch(rng: np.random.Generator, material: Material, duration_s: float) -> tuple[str, FloatArray] | None:
    weights = RECORDINGS[material.split]
    share = np.array(list(weights.values())) / sum(weights.values())
    grid = time_grid(duration_s)
    for _ in range(40):
        name = list(weights)[rng.choice(len(share), p=share)]
        t, rates_at = material.recording(name)
        if t[-1] < grid[-1]:
            continue
        start_s = rng.uniform(0, t[-1] - grid[-1])
        seen = t[(t >= start_s) & (t <= start_s + grid[-1])]
        rates = rates_at(np.minimum(start_s + grid, t[-1]))
        moving = float(np.sqrt(np.mean(np.sum(rates**2, axis=1)))) > MIN_RATE_RAD_S
        if moving and len(seen) > 10 and np.diff(seen).max() < MAX_GAP_S:
            return name, rates
    return None


def _frame(
    view: sr.View, path: MotionPath, t0_s: float, exposure_s: float, readout_s: float, lever_arm_m: FloatArray
) -> NDArray[np.float32]:
    """``sim.render.render_frame`` with the source looked up on a coarse grid, and no more sub-frames than needed."""
    camera = view.camera
    n = min(sr.subframes(view, path, t0_s, exposure_s, readout_s, lever_arm_m, MIN_SUBFRAMES), MAX_SUBFRAMES)
    u, v = (np.arange(-1, size // STEP_PX + 1) * STEP_PX + (STEP_PX - 1) / 2 for size in (camera.width, camera.height))
    rays = camera.rays(np.stack(np.meshgrid(u, v), axis=-1))[..., :2].astype(np.float32)
    coarse = sr.View(camera, view.source, view.image, view.inv_depth, rays)
    starts_s = t0_s + readout_s * v / max(camera.height - 1, 1)
    t = starts_s[:, None] + exposure_s * (np.arange(n) + 0.5) / n
    R = path.rotation(t)
    centre = sr.camera_centre(R, path.pivot(t), lever_arm_m)
    total = np.zeros((camera.height, camera.width), np.float32)
    size = (len(u) * STEP_PX, len(v) * STEP_PX)
    for s in range(n):
        maps = sr.source_map(coarse, R[:, s], centre[:, s])[:2]
        x, y = (cv2.resize(m, size, interpolation=cv2.INTER_LINEAR) for m in maps)
        inner = slice(STEP_PX, -STEP_PX)
        at = (np.ascontiguousarray(m[inner, inner], np.float32) for m in (x, y))
        cv2.accumulate(sr.sample(view.image, *at), total)
    return total / np.float32(n)


class _Recorder(DecoderStage):
    """The untrained layer in the stream, writing down what it sees of each frame."""

    def __init__(self, lag_frames: int, counts: Counter[str]) -> None:
        super().__init__(None, lag_frames, counts)
        self.network = decoder.untrained
        self.seen: dict[int, tuple[decoder.Window, decoder.Photometry]] = {}

    def _decoded(self, frame: int, seen: decoder.Window, photometry: decoder.Photometry) -> decoder.Decoded | None:
        self.seen[frame] = seen, photometry
        return super()._decoded(frame, seen, photometry)


def rows(clip: Clip, number: int) -> Iterator[dict[str, np.ndarray]]:
    """Run the pipeline over a clip; a row of ``examples.Examples`` for every frame that the learned layer would see."""
    values: dict[str, Any] = {"exposure_s": clip.exposure_s, "readout_s": clip.readout_s, "engine": "none"}
    if clip.lever_arm_known:
        values["lever_arm"] = [float(metres) for metres in clip.lever_arm_m]
    pipeline = Pipeline(from_mapping({**values, "densifier": "decoder"}))
    pipeline.decoder = recorder = _Recorder(pipeline.config.lag_frames, pipeline.counts)
    if clip.depth_m is not None:
        pipeline.add_depth(int(clip.stamps_ns[0]), clip.depth_m)
    for stamp_ns, image in zip(clip.stamps_ns, clip.frames):
        pipeline.add_frame(int(stamp_ns), image, clip.camera)
    px, offsets_s = db.pixel_units(clip.camera), db.sample_offsets_s(clip.exposure_s)
    first_mid_s = pipeline.shutter.mid_ns(START_NS) * 1e-9
    seen_camera = camera_values(
        clip.camera.focal_px / clip.camera.width, clip.exposure_s, 1 / clip.fps, clip.readout_s,
        tuple(clip.lever_arm_m) if clip.lever_arm_known else (),
    )
    for k, (window, photometry) in recorder.seen.items():
        reduced = decoder.reduce(window, photometry)[0]
        seen = decoder.geometry(window, photometry, reduced)
        if not np.isfinite(seen).all():
            continue
        mids_s = first_mid_s + (k + np.array([-1, 0, 1])) / clip.fps
        truth = np.array([db.coefficients(clip.rotation(t + offsets_s), px) for t in mids_s])
        spline = db.coefficients(window.state.rotation(window.mid_s[-1 - decoder.AFTER] + offsets_s), px)
        picture = cv2.resize(clip.frames[k], (PICTURE_PX, PICTURE_PX), interpolation=cv2.INTER_AREA)
        yield example(
            seen, reduced, truth, spline, px, seen_camera, clip.exposure_s, window.blur_px, number, np.asarray(picture)
        )
