"""The paper's tables on our clips, by one command: `perspblur evaluate --table`. No torch: the shipped graphs run.

Table 2 (trajectory) is made by ``trajectory_table``, Table 3 (ablations) by ``ablation_table``.
Table 1 (depth): held-out places under held-out recordings, with a lever arm of 0.1 to 0.3 m, real tracks on rendered
blur, and as a control without a lever arm. Every depth map that the stream publishes is compared with the truth.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..config import Config
from ..engine import Engine
from ..engine.incremental import Incremental
from ..engine.interface import UNMEASURED_VARIANCE, camera_values, picture
from ..engine.select import select_engine
from ..errors import BagError, EngineError
from ..pipeline import Pipeline
from ..share import share_path
from ..sim.clips import START_NS, SimulatedClip, simulate_clip
from ..sim.evaluation_set import (
    ANDROID_LANDSCAPE,
    ANDROID_PORTRAIT,
    AS_RECORDED,
    HEIGHT,
    LONG_EXPOSURE,
    WIDTH,
    Recipe,
    load_place,
    recipes,
    scaled_path,
)
from ..sim.evaluation_set import render as render_clip
from ..sim.motion import MotionPath
from ..sim.render import View, prepare, render_depth, render_frame
from ..sim.scene import view_camera
from ..sim.sensor import Sensor
from . import ablation_table, trajectory_table
from .accuracy import DATA
from .metrics import depth_metrics
from .tables import number
from .writers import write_text

FloatMap = NDArray[np.float32]

SPLIT = "test"
FRAMES = 18
FULL_CHAIN = 12  # frames before maps count: the first ones know half of a clip
METRICS = ("abs_rel", "delta1", "delta2")
TRAIN_MEDIAN_M = 2.2  # of the scenes that training draws: the constant that knows nothing of the picture
WIDE, NORMAL = 0.7, 1.1  # focal length in frame widths: 71 and 49 degrees from left to right
GROUPS = ("wide", "normal", "control")
WAYS = {
    "constant": "constant (median of the training scenes)",
    "median": "the image's own median (oracle)",
    "sharp": "network trained on sharp, still frames",
    "own": "network alone, pixels only (the paper's form)",
    "measured": "blurred pictures, closed form",
    "fused": "network and blurred pictures",
}


@dataclass(frozen=True)
class DepthClip:
    """A recipe seen through a lens whose focal length is ``focal`` frame widths; ``group`` one of GROUPS."""

    group: str
    recipe: Recipe
    focal: float


def _clip(
    group: str, place: str, gyro: str, start_s: float, axes: str, blur_px: float, lever_arm_m: Sequence[float],
    margin: float = 0.12,
) -> DepthClip:
    x, y, z = lever_arm_m
    recipe = Recipe(place, gyro, start_s, axes, blur_px, (x, y, z), margin)
    return DepthClip(group, recipe, NORMAL if group == "normal" else WIDE)


_HOLOLENS, _NYU = "hololens_office_dvmvs", "nyu_dining_slambook2"
_FASTWALK, _PDR, _ROOM = "kajilab_fastwalk_490hz", "kajilab_pdr0527_490hz", "zoltan_realsense_room_200hz"
_SHAKE, _SYNC, _ACTION = "gyrodeblurnet_train_210hz", "twistnsync_s1_phone0_500hz", "gopro_hero7_198hz"
_TABLE = "realsense_tabletops_uoc"

DEPTH_CLIPS = (
    _clip("wide", f"{_HOLOLENS}/00072", _SHAKE, 20.0, ANDROID_PORTRAIT, 10, (0.05, -0.12, 0.15)),
    _clip("wide", f"{_HOLOLENS}/00091", _FASTWALK, 9.0, ANDROID_LANDSCAPE, 14, (0.05, -0.10, 0.25)),
    _clip("wide", f"{_HOLOLENS}/00017", _PDR, 6.5, ANDROID_LANDSCAPE, 12, (0.0, -0.2, 0.2)),
    _clip("wide", f"{_HOLOLENS}/00212", _ROOM, 16.0, AS_RECORDED, 8, (0.02, -0.15, 0.1)),
    _clip("wide", f"{_NYU}/4", _ACTION, 9.5, AS_RECORDED, 12, (0.02, -0.2, 0.15), 0.16),
    _clip("wide", f"{_NYU}/1", _SYNC, 1.0, ANDROID_PORTRAIT, 16, (0.1, -0.1, 0.2), 0.16),
    _clip("wide", "tum_desk_open3d/0", _FASTWALK, 7.5, ANDROID_LANDSCAPE, 10, (-0.05, -0.15, 0.15), 0.2),
    _clip("wide", f"{_TABLE}/000005", _SHAKE, 99.0, ANDROID_PORTRAIT, 12, (0.02, -0.1, 0.05)),
    _clip("wide", f"{_TABLE}/000004", _PDR, 18.0, ANDROID_LANDSCAPE, 8, (0.0, -0.08, 0.07)),
    _clip("wide", "motorcycle", _ROOM, 97.0, AS_RECORDED, 12, (0.05, -0.15, 0.2)),
    _clip("normal", f"{_HOLOLENS}/00063", _FASTWALK, 9.5, ANDROID_LANDSCAPE, 12, (0.03, -0.1, 0.12)),
    _clip("normal", f"{_NYU}/5", _SHAKE, 43.0, ANDROID_PORTRAIT, 14, (0, -0.15, 0.2), 0.16),
    _clip("normal", "tum_desk_open3d/0", _SYNC, 1.0, ANDROID_PORTRAIT, 12, (-0.05, -0.15, 0.15), 0.2),
    _clip("normal", "motorcycle", _PDR, 18.5, ANDROID_LANDSCAPE, 16, (0.05, -0.1, 0.2)),
    _clip("control", f"{_HOLOLENS}/00072", _FASTWALK, 9.0, ANDROID_LANDSCAPE, 12, (0, 0, 0)),
    _clip("control", f"{_NYU}/1", _SHAKE, 20.0, ANDROID_PORTRAIT, 12, (0, 0, 0), 0.16),
    _clip("control", "motorcycle", _PDR, 6.5, ANDROID_LANDSCAPE, 12, (0, 0, 0)),
)


@dataclass(frozen=True)
class Rendered:
    """A clip and what its truth is made from; ``sharp`` is its first frame without blur."""

    clip: SimulatedClip
    view: View
    path: MotionPath
    sharp: NDArray[np.uint8]

    def depth_m(self, stamp_ns: int) -> FloatMap:
        """True depth H × W at the mid-exposure of the frame with this stamp."""
        shutter = self.clip.shutter
        t_s = (stamp_ns - START_NS + (shutter.exposure_ns + shutter.readout_ns) / 2) * 1e-9
        return render_depth(self.view, self.path, t_s, self.clip.lever_arm_m)


def render(chosen: DepthClip, data_dir: Path, seed: int, frames: int = FRAMES) -> Rendered:
    """Render one clip from the pictures and recordings in the data folder."""
    scene = load_place(chosen.recipe.place, data_dir).grey()
    given = view_camera(scene, WIDTH, HEIGHT, chosen.recipe.margin).focal_px
    scene = scene.with_focal_scaled(chosen.focal * WIDTH / given)
    camera = view_camera(scene, WIDTH, HEIGHT, chosen.recipe.margin)
    path = scaled_path(chosen.recipe, camera, data_dir)
    timing = LONG_EXPOSURE
    clip = simulate_clip(
        scene, path, camera, frames, timing.fps, timing.exposure_s, timing.readout_s, chosen.recipe.lever_arm_m,
        seed=seed, name=f"{chosen.group}_{chosen.recipe.name}",
    )
    end_s = (frames - 1) / timing.fps + timing.exposure_s + timing.readout_s
    view, path = prepare(scene, camera), path.centred(0.0, end_s)
    still = render_frame(view, path, timing.exposure_s / 2, 1e-6, 0.0, chosen.recipe.lever_arm_m, n_subframes=1)
    return Rendered(clip, view, path, Sensor().expose(still, np.random.default_rng(seed)))


def sharp_depth(engine: Engine, rendered: Rendered) -> FloatMap:
    """Log depth (h, h) of a network trained on sharp, still pictures, given what it was trained on."""
    clip, stream, timing = rendered.clip, Incremental(engine), LONG_EXPOSURE
    image = picture(rendered.sharp, engine.manifest.sizes["image_px"])
    share = clip.camera.focal_px / clip.camera.width
    camera = camera_values(share, timing.exposure_s, 1 / timing.fps, timing.readout_s, clip.lever_arm_m)
    for k in range(engine.manifest.sizes["clip_frames"]):
        stream.add_frame(k, image, camera)
    found = stream.depth()
    assert found is not None
    return found.own[0]


def streamed_depths(rendered: Rendered, folder: Path) -> Iterator[tuple[int, dict[str, FloatMap]]]:
    """Replay a clip; stamp and log depth (and "sd", of the fused one) of every map from a full chain."""
    clip = rendered.clip
    config = Config(
        exposure_s=clip.exposure_s, readout_s=clip.readout_s, lever_arm=clip.lever_arm_m,
        engine="onnxruntime", engine_dir=str(folder),
    )
    pipeline = Pipeline(config)
    for k, (stamp_ns, frame) in enumerate(zip(clip.stamps_ns, clip.frames)):
        for result in pipeline.add_frame(int(stamp_ns), frame, clip.camera):
            fused = pipeline.depth_stage.fused
            if result.depth is None or fused is None or k + 1 < FULL_CHAIN:
                continue
            depth_m = result.depth.depth_m
            maps = {
                "own": fused.own[0],
                "fused": np.log(depth_m),
                "sd": np.asarray(np.sqrt(result.depth.variance_m2) / depth_m, np.float32),
            }
            if fused.measured[1].min() < UNMEASURED_VARIANCE:
                maps["measured"] = fused.measured[0]
            yield result.depth.stamp_ns, maps
    if pipeline.depth_stage.engine:
        pipeline.depth_stage.engine.close()


def depth_row(
    chosen: DepthClip, data_dir: Path, seed: int, folder: Path, sharp: Engine | None = None
) -> dict[str, float | str]:
    """group, name, maps, and the metrics of every way, means over the clip's maps."""
    rendered = render(chosen, data_dir, seed)
    found = []
    for stamp_ns, ways in streamed_depths(rendered, folder):
        if sharp:
            ways["sharp"] = sharp_depth(sharp, rendered)
        found.append(scores(ways, rendered.depth_m(stamp_ns)))
    if not found:
        raise EngineError(f"no depth map came of clip {rendered.clip.name}")
    row: dict[str, float | str] = {"group": chosen.group, "name": rendered.clip.name, "maps": len(found)}
    row |= {key: float(np.mean([f[key] for f in found])) for key in found[0]}
    return {**row, "focal": rendered.clip.camera.focal_px / WIDTH}


def scores(maps: Mapping[str, FloatMap], true_m: FloatMap) -> dict[str, float]:
    """AbsRel, δ1, δ2 of every way on the pixels of its own map, and what the fused map says of itself.

    Keys "way abs_rel" and so on. fused sd: median of the stated relative deviation; fused within: share of pixels
    within one of it. Both constants are judged on the true map.
    """
    found: dict[str, float] = {}
    for name in (name for name in maps if name in WAYS):
        numbers = depth_metrics(np.exp(np.asarray(maps[name], float)), _resized(true_m, maps[name].shape))
        found |= {f"{name} {key}": numbers[key] for key in METRICS}
    true = _resized(true_m, maps["fused"].shape)
    numbers = depth_metrics(np.full(true.shape, TRAIN_MEDIAN_M), true)
    found |= {f"constant {key}": numbers[key] for key in METRICS}
    found |= {f"median {key}": numbers[f"constant_{key}"] for key in METRICS}
    error = np.abs(np.asarray(maps["fused"], float) - np.log(true))
    found["fused sd"] = float(np.median(maps["sd"]))
    found["fused within"] = float(np.mean(error < maps["sd"]))
    return found


def _resized(true_m: FloatMap, shape: tuple[int, ...]) -> NDArray[np.float64]:
    return np.asarray(cv2.resize(true_m, shape[::-1], interpolation=cv2.INTER_NEAREST), float)


def depth_markdown(rows: Sequence[Mapping[str, float | str]]) -> str:
    """Table 1: a line per way, a block of columns per group; then what the fused variance says."""
    groups = [group for group in GROUPS if any(row["group"] == group for row in rows)]

    def mean(group: str, key: str) -> float:
        values = [float(row[key]) for row in rows if row["group"] == group and key in row]
        return float(np.mean(values)) if values else float("nan")

    heads = [f"{group}: {label}" for group in groups for label in ("AbsRel", "δ1", "δ2")]
    lines = ["| depth | " + " | ".join(heads) + " |", "|---" + "|---:" * len(heads) + "|"]
    for way, label in WAYS.items():
        cells = [number(mean(group, f"{way} {key}")) for group in groups for key in METRICS]
        if any(cell != number(None) for cell in cells):
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += ["", "| fused | clips | stated sd, relative | pixels within 1 sd |", "|---|---:|---:|---:|"]
    for group in groups:
        count = sum(row["group"] == group for row in rows)
        sd, within = number(mean(group, "fused sd")), number(mean(group, "fused within"))
        lines.append(f"| {group} | {count} | {sd} | {within} |")
    return "\n".join(lines) + "\n"


def write_tables(
    out: Path, data_dir: Path | None = None, folder: Path | None = None, sharp: Path | None = None,
    pure: Path | None = None, ablations: Path | None = None, only: str = "",
    on_progress: Callable[[int, int, str], None] | None = None,
) -> str:
    """Measure and write ``tables.json`` and ``tables.md``; returns the Markdown.

    folder     exported network of the pipeline; default: the shipped one
    sharp      one trained on sharp, still frames; pure: one whose decoder is the paper's pure form
    ablations  folder of `perspblur train ablation`, for Table 3
    only       measure the clips that have this in their names
    """
    data_dir = data_dir or DATA
    if not data_dir.is_dir():
        raise BagError(f"data folder {data_dir} does not exist")
    trained = ablation_table.load(ablations) if ablations else []
    depths = [(seed, clip) for seed, clip in enumerate(DEPTH_CLIPS) if only in f"{clip.group}_{clip.recipe.name}"]
    paths = [(seed, recipe) for seed, recipe in enumerate(recipes(SPLIT)) if only in recipe.name]
    if not depths and not paths:
        raise BagError(f"no clip of the tables has '{only}' in its name")
    folder = folder or share_path("engines", "tiny")
    config = Config(engine="onnxruntime", engine_dir=str(folder))
    sharp_engine, pure_engine = (
        select_engine("onnxruntime", chosen).engine if chosen else None for chosen in (sharp, pure)
    )
    rows: dict[str, list[Any]] = {"depth": [], "trajectory": [], "ablation": trained}
    advance = on_progress or (lambda done, of, name: None)
    for done, (seed, clip) in enumerate(depths):
        advance(done, len(depths) + len(paths), clip.recipe.name)
        rows["depth"].append(depth_row(clip, data_dir, seed, folder, sharp_engine))
    for done, (seed, recipe) in enumerate(paths):
        advance(len(depths) + done, len(depths) + len(paths), recipe.name)
        found = trajectory_table.measured(render_clip(recipe, data_dir, seed), config, pure_engine)
        rows["trajectory"].append({"name": recipe.name, "group": recipe.group, **found})
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "tables.json", json.dumps(rows, indent=1) + "\n")
    text = markdown(rows)
    write_text(out / "tables.md", text)
    return text


def markdown(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The tables that have rows, each under its heading."""
    made = {
        "Table 1: depth": ("depth", depth_markdown),
        "Table 2: trajectory": ("trajectory", trajectory_table.markdown),
        "Table 3: ablations": ("ablation", ablation_table.markdown),
    }
    parts = [f"## {title}\n\n{make(rows[kind])}" for title, (kind, make) in made.items() if rows[kind]]
    return "\n".join(parts)
