"""Scenes for training: real pictures with real depth, and rooms made of photographs, as small square pictures.

Which pictures and recordings train, and which only validate, stands here once, with the licence of each. Trained
weights ship, so nothing trains whose licence is non-commercial, for research only or not stated; and nothing trains
that is a place or a recording of the test split (``sim/evaluation_set.py``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import BagError, ConfigError
from ..sim.evaluation_set import load_place
from ..sim.motion import read_gyro_csv
from ..sim.scene import load_picture

FloatArray = NDArray[np.float64]
FloatImage = NDArray[np.float32]

SPLITS = ("train", "validation")
RGBD_PLACES = {
    "train": ("kinect_pcl_data",),
    "validation": ("redwood_synth_open3d", "sun3d_studyroom_nvblox", "kitti_depth_metric3d"),
}
PHOTOGRAPHS = {
    "train": (
        *("elem_Ashim_DSilva.jpg", "elem_Photo_by_SpaceX.jpg", "elem_Ryan_Schroeder.jpg"),
        *("elem_Suluh_Kalba.jpg", "elem_Sunset_by_the_Pier.jpg"),
    ),
    "validation": ("elem_Snow-Capped_Mountain.jpg",),
}
SCIKIT_IMAGE = {  # ships in scikit-image; licences as its docstrings state them
    "train": {
        "astronaut": "public domain (NASA)",
        "brick": "CC0 (CC0Textures)",
        "chelsea": "CC0 (Stefan van der Walt)",
        "coffee": "CC0 (Rachel Michetti)",
        "gravel": "CC0 (CC0Textures)",
        "rocket": "public domain (SpaceX)",
    },
    "validation": {"camera": "CC0 (Lav Varshney)", "grass": "CC0"},
}
RECORDINGS = {
    "train": (
        *("broad_02_slow_rotation_B_286hz", "broad_07_fast_rotation_B_286hz", "broad_21_fast_combined_286hz"),
        *("lhaippp_phone_in_car_412hz", "twistnsync_s0_phone0_500hz", "twistnsync_s0_phone1_500hz"),
        *("twistnsync_s2_phone0_500hz", "twistnsync_s2_phone1_500hz"),
    ),
    "validation": ("twistnsync_s4_phone0_500hz", "twistnsync_s4_phone1_500hz"),
}
LONGEST_PX = 900  # of a picture kept in memory


@dataclass(frozen=True)
class Picture:
    """Grey linear light (h, w); depth_m (h, w) or None; focal length over the width."""

    name: str
    image: FloatImage
    depth_m: FloatImage | None = None
    focal: float = 0.9


@dataclass(frozen=True)
class Material:
    """All that clips of one split are made of. recordings: name → times (N,) s and rates (N, 3) rad/s."""

    pictures: tuple[Picture, ...]
    recordings: dict[str, tuple[FloatArray, FloatArray]]

    @property
    def rgbd(self) -> list[Picture]:
        return [p for p in self.pictures if p.depth_m is not None]


def load_material(data_dir: Path | None, split: str) -> Material:
    """Read a split. Without a data folder: scikit-image's pictures and the hand-motion model alone."""
    if split not in SPLITS:
        raise ConfigError(f"split '{split}' is none of {', '.join(SPLITS)}")
    pictures = [_from_scikit_image(name) for name in SCIKIT_IMAGE[split]]
    recordings = {}
    if data_dir is not None:
        if not data_dir.is_dir():
            raise BagError(f"the data folder {data_dir} does not exist")
        pictures += [_small(name, _grey(load_picture(data_dir / "textures" / name))) for name in PHOTOGRAPHS[split]]
        pictures += [p for place in RGBD_PLACES[split] for p in _rgbd(place, data_dir)]
        recordings = {name: read_gyro_csv(data_dir / "gyro" / f"{name}.csv") for name in RECORDINGS[split]}
    return Material(tuple(pictures), recordings)


def sources(data_dir: Path | None) -> list[dict[str, str]]:
    """Name, source and licence of everything in the training split, for the manifest of what was trained on it."""
    found = [
        {"name": f"skimage.data.{name}", "source": "scikit-image", "licence": licence}
        for name, licence in SCIKIT_IMAGE["train"].items()
    ]
    if data_dir is None:
        return found
    for entry in json.loads((data_dir / "textures" / "meta.json").read_text(encoding="utf-8")):
        if entry["file"] in PHOTOGRAPHS["train"]:
            found.append({"name": entry["file"], "source": entry["source_repo"], "licence": entry["licence"]})
    for place in RGBD_PLACES["train"]:
        meta = json.loads((data_dir / "rgbd" / place / "meta.json").read_text(encoding="utf-8"))
        source = f"{meta['source_repo']} ({meta['original_data']})"
        found.append({"name": place, "source": source, "licence": meta["repo_licence"]})
    recordings = json.loads((data_dir / "gyro" / "meta.json").read_text(encoding="utf-8"))
    for name in RECORDINGS["train"]:
        entry = recordings[name]
        found.append({"name": name, "source": entry["source"], "licence": entry["licence"]})
    return found


def _from_scikit_image(name: str) -> Picture:
    from skimage import data

    from ..sim.sensor import decode_srgb

    return _small(name, _grey(decode_srgb(getattr(data, name)())))


def _rgbd(place: str, data_dir: Path) -> list[Picture]:
    found = []
    for path in sorted((data_dir / "rgbd" / place / "rgb").iterdir()):
        scene = load_place(f"{place}/{path.stem}", data_dir).grey()
        focal = scene.camera.focal_px / scene.camera.width
        found.append(_small(f"{place}/{path.stem}", scene.image, scene.depth_m, focal))
    return found


def _grey(image: FloatImage) -> FloatImage:
    return image if image.ndim == 2 else image @ np.array([0.2126, 0.7152, 0.0722], np.float32)


def _small(name: str, image: FloatImage, depth_m: FloatImage | None = None, focal: float = 0.9) -> Picture:
    scale = min(1.0, LONGEST_PX / max(image.shape))
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.float32)
    if depth_m is not None:
        depth_m = np.asarray(cv2.resize(depth_m, size, interpolation=cv2.INTER_NEAREST), np.float32)
    return Picture(name, small, depth_m, focal)


def real_scene(
    rng: np.random.Generator, picture: Picture, aspect: float, size: int
) -> tuple[FloatImage, FloatImage, float]:
    """A random cut of a picture with depth → image, inverse depth (size, size), focal length over the cut's width."""
    assert picture.depth_m is not None
    height, width = picture.image.shape
    largest = min(width, height * aspect)
    w = largest * rng.uniform(0.75, 1.0)
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - w / aspect)
    image = _cut(picture.image, x, y, w, w / aspect, size, cv2.INTER_AREA)
    depth = _cut(picture.depth_m, x, y, w, w / aspect, size, cv2.INTER_NEAREST)
    if rng.random() < 0.5:
        image, depth = image[:, ::-1], depth[:, ::-1]
    inv_depth = np.asarray(1 / depth, np.float32)
    return np.ascontiguousarray(image), inv_depth, picture.focal * width / w


def layered_scene(rng: np.random.Generator, pictures: tuple[Picture, ...], size: int) -> tuple[FloatImage, FloatImage]:
    """A room of photographs with flat things in it → image, inverse depth (size, size), nearest depth 1 at the back.

    A plane's inverse depth is affine in the pixel, and of the planes around a camera the nearest one is seen: a room is
    the largest of a few affine functions. Things before it are photographs cut to random shapes, on their own planes.
    """
    y, x = np.mgrid[-1:1:size * 1j, -1:1:size * 1j].astype(np.float32)
    planes = [1 + _slope(rng, 0.15, x, y)]
    if rng.random() < 0.7:  # a floor
        planes.append(rng.uniform(0.8, 2.5) * (y - rng.uniform(-0.2, 0.3)) + 0.3 * _slope(rng, 0.3, x, y))
    for _ in range(rng.integers(0, 3)):  # walls and ceilings
        planes.append(rng.uniform(0.4, 1.1) + _slope(rng, 0.8, x, y))
    stack = np.stack(planes)
    which, inv_depth = stack.argmax(axis=0), stack.max(axis=0)
    image = np.choose(which, [_texture(rng, pictures, size) for _ in planes])
    for _ in range(rng.integers(0, 7)):
        mask = _shape(rng, size)
        own = inv_depth[mask].max(initial=0.3) * rng.uniform(1.05, 2.2) * (1 + _slope(rng, 0.15, x, y))
        image = np.where(mask, _texture(rng, pictures, size), image)
        inv_depth = np.where(mask, own, inv_depth)
    return image.astype(np.float32), np.maximum(inv_depth, 0.05).astype(np.float32)


def _slope(rng: np.random.Generator, strength: float, x: FloatImage, y: FloatImage) -> FloatImage:
    a, b = rng.normal(0, strength, 2)
    return np.asarray(a * x + b * y, np.float32)


def _texture(rng: np.random.Generator, pictures: tuple[Picture, ...], size: int) -> FloatImage:
    """A random cut of a random photograph, turned, mirrored and with its own brightness."""
    image = pictures[rng.integers(len(pictures))].image
    side = min(image.shape) * rng.uniform(0.35, 1.0)
    x, y = rng.uniform(0, image.shape[1] - side), rng.uniform(0, image.shape[0] - side)
    cut = np.rot90(_cut(image, x, y, side, side, size, cv2.INTER_AREA), rng.integers(2) * 2)
    level = rng.uniform(0.08, 0.4) / max(float(cut.mean()), 0.02)
    return np.asarray(np.clip(cut[:, :: rng.choice((-1, 1))] * level, 0, 1), np.float32)


def _shape(rng: np.random.Generator, size: int) -> NDArray[np.bool_]:
    """A filled ellipse, box or polygon as a mask (size, size)."""
    mask = np.zeros((size, size), np.uint8)
    centre, axes = rng.integers(0, size, 2), rng.integers(size // 20, size // 4, 2)
    kind = rng.integers(3)
    if kind == 0:
        cv2.ellipse(mask, centre.tolist(), axes.tolist(), float(rng.uniform(0, 180)), 0, 360, 1, -1)
    elif kind == 1:
        cv2.rectangle(mask, (centre - axes).tolist(), (centre + axes).tolist(), 1, -1)
    else:
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
        corners = centre + axes * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        cv2.fillPoly(mask, [corners.astype(np.int32)], 1)
    return mask.astype(bool)


def _cut(image: FloatImage, x: float, y: float, w: float, h: float, size: int, how: int) -> FloatImage:
    x0, y0 = int(x), int(y)
    part = image[y0 : y0 + max(2, int(h)), x0 : x0 + max(2, int(w))]
    if how == cv2.INTER_AREA and max(part.shape) < size:
        how = cv2.INTER_LINEAR
    return np.asarray(cv2.resize(part, (size, size), interpolation=how), np.float32)
