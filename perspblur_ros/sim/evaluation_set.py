"""The simulated clips that the accuracy tables are made on: real pictures with real depth under real gyro recordings.

Pictures and recordings are read from the data folder at run time; nothing of them ships. Rates are scaled so that the
blur at the image centre has the stated mean length, and their mean over the clip is removed, so the view stays on the
picture. The pivot rests. ``dev`` is for tuning, ``test`` for reporting: no recording and no place is in both.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..camera import Camera
from ..errors import BagError, ConfigError
from .clips import SimulatedClip, centre_blur_px, simulate_clip
from .motion import MotionPath, from_gyro_csv
from .render import margin_px, prepare
from .scene import Scene, load_picture, load_rgbd, motorcycle, textured_plane, view_camera

FloatArray = NDArray[np.float64]

SPLITS = ("dev", "test")
WIDTH, HEIGHT = 640, 480
ANDROID_PORTRAIT, ANDROID_LANDSCAPE, AS_RECORDED = "+x-y-z", "-y-x-z", "+x+y+z"


@dataclass(frozen=True)
class Timing:
    """fps, exposure and readout of one group of clips."""

    fps: float
    exposure_s: float
    readout_s: float
    n_frames: int

    @property
    def duration_s(self) -> float:
        return (self.n_frames - 1) / self.fps + self.exposure_s + self.readout_s


LONG_EXPOSURE = Timing(fps=16.0, exposure_s=0.060, readout_s=0.002, n_frames=30)
ROLLING = Timing(fps=30.0, exposure_s=0.030, readout_s=0.020, n_frames=45)
GROUPS = {"60ms": LONG_EXPOSURE, "30fps": ROLLING}


@dataclass(frozen=True)
class Recipe:
    """One clip: place (folder/picture under rgbd, a texture, or "motorcycle"), gyro recording, and how they meet.

    blur_px      mean length of the blur path at the image centre
    lever_arm_m  pivot → optical centre, optical frame: a wrist is below and behind the camera
    margin       share of the picture kept outside the frame on each side; large = telephoto
    """

    place: str
    gyro: str
    start_s: float
    axes: str
    blur_px: float
    lever_arm_m: tuple[float, float, float]
    margin: float = 0.12
    group: str = "60ms"

    @property
    def name(self) -> str:
        picture = self.place.replace("/", "_")
        return f"{self.group}_{picture}_{self.gyro.rsplit('_', 1)[0]}_{self.start_s:g}s"


DEV = (
    Recipe("kitti_depth_metric3d/0000000050", "kajilab_pdr0523_490hz", 9.5, ANDROID_LANDSCAPE, 12, (0.03, -0.12, 0.10)),
    Recipe("sun3d_studyroom_nvblox/frame-000000", "kajilab_slowly_490hz", 11.5, ANDROID_LANDSCAPE, 8, (0, -0.1, 0.15)),
    Recipe("realsense_graspnet/0", "kajilab_run_490hz", 7.0, ANDROID_LANDSCAPE, 22, (0.02, -0.08, 0.06)),
    Recipe("eth3d_outdoor_grey/playground", "twistnsync_s0_phone0_500hz", 0.5, ANDROID_PORTRAIT, 16, (0.1, -0.15, 0.2)),
    Recipe("kinect_pcl_data/test60", "kajilab_pdr0523_490hz", 18.0, ANDROID_LANDSCAPE, 6, (0, -0.05, 0.25)),
    Recipe("wiki_010.png", "broad_02_slow_rotation_B_286hz", 85.0, AS_RECORDED, 14, (0.05, -0.10, 0.12)),
    Recipe(
        "kitti_depth_metric3d/0000000100", "kajilab_pdr0523_490hz", 20.0, ANDROID_LANDSCAPE, 5, (0.03, -0.12, 0.1),
        group="30fps",
    ),
    Recipe(
        "sun3d_studyroom_nvblox/frame-000116", "kajilab_run_490hz", 8.5, ANDROID_LANDSCAPE, 10, (0, -0.1, 0.15),
        group="30fps",
    ),
    Recipe(
        "realsense_graspnet/0", "twistnsync_s2_phone0_500hz", 1.0, ANDROID_PORTRAIT, 14, (0.02, -0.08, 0.06),
        group="30fps",
    ),
)

TEST = (
    Recipe("hololens_office_dvmvs/00072", "gyrodeblurnet_train_210hz", 20.0, ANDROID_PORTRAIT, 12, (0.03, -0.1, 0.12)),
    Recipe("motorcycle", "kajilab_fastwalk_490hz", 9.0, ANDROID_LANDSCAPE, 20, (0.05, -0.1, 0.2)),
    Recipe(
        "ddad_like_tri_dgp/scene_02_CAMERA_06_0", "kajilab_pdr0527_490hz", 6.5, ANDROID_LANDSCAPE, 8, (0, -0.2, 0.2)
    ),
    Recipe("nyu_dining_slambook2/4", "zoltan_realsense_room_200hz", 16.0, AS_RECORDED, 10, (0.02, -0.08, 0.1), 0.16),
    Recipe(
        "realsense_tabletops_uoc/000004", "gyrodeblurnet_train_210hz", 99.0, ANDROID_PORTRAIT, 28, (0.02, -0.1, 0.05)
    ),
    Recipe(
        "tum_desk_open3d/0", "twistnsync_s1_phone0_500hz", 1.0, ANDROID_PORTRAIT, 12, (-0.05, -0.15, 0.15), margin=0.2
    ),
    Recipe(
        "drone_brighton_nadir/0033", "kajilab_fastwalk_490hz", 7.5, ANDROID_LANDSCAPE, 6, (0.0, -0.1, 0.28), margin=0.4
    ),
    Recipe("hololens_office_dvmvs/00091", "zoltan_realsense_room_200hz", 97.0, AS_RECORDED, 5, (0.03, -0.1, 0.12)),
    Recipe(
        "ddad_like_tri_dgp/scene_02_CAMERA_05_0", "kajilab_pdr0527_490hz", 18.0, ANDROID_LANDSCAPE, 24, (0, -0.2, 0.2)
    ),
    Recipe("nyu_dining_slambook2/1", "gopro_hero7_198hz", 9.5, AS_RECORDED, 14, (0.02, -0.08, 0.1), 0.16),
    Recipe(
        "hololens_office_dvmvs/00063", "gyrodeblurnet_train_210hz", 43.0, ANDROID_PORTRAIT, 6, (0.03, -0.1, 0.12),
        group="30fps",
    ),
    Recipe("motorcycle", "kajilab_pdr0527_490hz", 18.5, ANDROID_LANDSCAPE, 12, (0.05, -0.1, 0.2), group="30fps"),
    Recipe(
        "ddad_like_tri_dgp/scene_02_CAMERA_07_2", "twistnsync_s1_phone0_500hz", 2.0, ANDROID_PORTRAIT, 4,
        (0, -0.2, 0.2), group="30fps",
    ),
    Recipe(
        "nyu_dining_slambook2/5", "kajilab_fastwalk_490hz", 9.5, ANDROID_LANDSCAPE, 4, (0, -0.1, 0.1), margin=0.16,
        group="30fps",
    ),
    Recipe(
        "realsense_tabletops_uoc/000006", "gyrodeblurnet_train_210hz", 128.0, ANDROID_PORTRAIT, 14, (0, -0.1, 0.1),
        group="30fps",
    ),
)


def recipes(split: str) -> tuple[Recipe, ...]:
    if split not in SPLITS:
        raise ConfigError(f"split '{split}' is none of {', '.join(SPLITS)}")
    return DEV if split == "dev" else TEST


def iter_clips(
    split: str, data_dir: Path, on_frame: Callable[[str, int, int], None] | None = None
) -> Iterator[SimulatedClip]:
    """Render the clips of a split one after the other. ``on_frame`` is told clip name, finished frames, all frames."""
    if not data_dir.is_dir():
        raise BagError(f"the evaluation data {data_dir} does not exist")
    for index, recipe in enumerate(recipes(split)):
        yield render(recipe, data_dir, seed=index, on_frame=on_frame)


def render(
    recipe: Recipe, data_dir: Path, seed: int = 0, on_frame: Callable[[str, int, int], None] | None = None
) -> SimulatedClip:
    """Render one clip from the pictures and recordings in ``data_dir``."""
    timing = GROUPS[recipe.group]
    scene = load_place(recipe.place, data_dir).grey()
    camera = view_camera(scene, WIDTH, HEIGHT, recipe.margin)
    return simulate_clip(
        scene,
        scaled_path(recipe, camera, data_dir),
        camera,
        timing.n_frames,
        timing.fps,
        timing.exposure_s,
        timing.readout_s,
        recipe.lever_arm_m,
        seed=seed,
        name=recipe.name,
        on_frame=None if on_frame is None else lambda done: on_frame(recipe.name, done, timing.n_frames),
    )


def scaled_path(recipe: Recipe, camera: Camera, data_dir: Path) -> MotionPath:
    """The recording's stretch with its rates scaled to the recipe's blur."""
    timing = GROUPS[recipe.group]
    csv = data_dir / "gyro" / f"{recipe.gyro}.csv"

    def stretch(amplitude: float) -> MotionPath:
        return from_gyro_csv(csv, recipe.start_s, timing.duration_s + 0.02, recipe.axes, amplitude, remove_mean=True)

    return stretch(float(recipe.blur_px / blur_lengths_px(stretch(1.0), camera, timing).mean()))


def blur_lengths_px(path: MotionPath, camera: Camera, timing: Timing) -> FloatArray:
    """Length of the blur path at the image centre, for every frame of a clip that starts with the path."""
    starts_s = np.arange(timing.n_frames) / timing.fps
    return np.array([centre_blur_px(path, camera, t, timing.exposure_s, timing.readout_s) for t in starts_s])


def load_place(place: str, data_dir: Path) -> Scene:
    """A scene: "motorcycle", a file of the folder ``textures`` (a plane at 2 m), or "folder/picture" of ``rgbd``."""
    if place == "motorcycle":
        return motorcycle()
    if "/" not in place:
        image = load_picture(data_dir / "textures" / place)
        height, width = image.shape[:2]
        focal_px = 0.9 * width
        return textured_plane(image, 2.0, Camera(width, height, focal_px, focal_px, (width - 1) / 2, (height - 1) / 2))
    source, picture = place.split("/")
    folder = data_dir / "rgbd" / source
    rgb = next((p for p in sorted((folder / "rgb").glob(f"{picture}.*"))), None)
    if rgb is None:
        raise BagError(f"the data folder has no picture {folder / 'rgb' / picture}")
    dense = folder / "depth_dense" / f"{picture}.png"
    depth = dense if dense.is_file() else folder / "depth" / f"{picture}.png"
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    values = meta["intrinsics"] if "intrinsics" in meta else meta["intrinsics_per_image"][picture]
    return load_rgbd(rgb, depth, meta["depth_scale"], Camera(**values))


def table(split: str, data_dir: Path) -> str:
    """The split as a Markdown table, measured without rendering."""
    lines = [
        "| clip | focal px | blur px, mean (least – most) | lever arm m | depth m, median | to the border px |",
        "|---|---|---|---|---|---|",
    ]
    for recipe in recipes(split):
        timing = GROUPS[recipe.group]
        scene = load_place(recipe.place, data_dir).grey()
        camera = view_camera(scene, WIDTH, HEIGHT, recipe.margin)
        path = scaled_path(recipe, camera, data_dir).centred(0.0, timing.duration_s)
        blur = blur_lengths_px(path, camera, timing)
        margin = margin_px(prepare(scene, camera), path, 0.0, timing.duration_s)
        lines.append(
            f"| {recipe.name} | {camera.focal_px:.0f} | {blur.mean():.1f} ({blur.min():.1f} – {blur.max():.1f}) "
            f"| {np.linalg.norm(recipe.lever_arm_m):.2f} | {np.median(scene.depth_m):.1f} | {margin:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    for split in SPLITS:
        print(f"\n{split}\n\n{table(split, Path(sys.argv[1]))}")
