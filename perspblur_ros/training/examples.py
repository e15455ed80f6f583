"""Frames that the real pipeline has seen, with the truth: what the trajectory networks learn from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .. import decoder as dc
from ..errors import BagError


@dataclass(frozen=True)
class Examples:
    """N frames k. Coefficients are pixels of k − 1, k, k + 1 or of k alone; matrices as in ``decoder.Equations``.

    geometry                     (N, 3 · FEATURES)
    pictures, trusted, known     (N, 45, 45), pull, by_tracks (N, 45), in units of scale_px (N, 3)
    start, interpolated, truth   (N, 3, ORDERS, 3)
    spline                       (N, ORDERS, 3)
    px                           (N, 3) pixels per radian
    camera                       (N, 8), ``engine.interface.camera_values``
    exposure_s, blur_px, clip    (N,); clip: which one of ``names`` the frame is of
    picture                      (N, H, H) uint8, the whole frame squeezed to the network's square
    names                        per clip: place and recording
    """

    geometry: Tensor
    pictures: Tensor
    trusted: Tensor
    known: Tensor
    pull: Tensor
    by_tracks: Tensor
    scale_px: Tensor
    start: Tensor
    interpolated: Tensor
    truth: Tensor
    spline: Tensor
    px: Tensor
    camera: Tensor
    exposure_s: Tensor
    blur_px: Tensor
    clip: Tensor
    picture: Tensor
    names: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        return len(self.clip)

    def __getitem__(self, which: Tensor) -> Examples:
        return replace(self, **{name: getattr(self, name)[which] for name in _TENSORS})

    def mirrored(self, signs: Tensor) -> Examples:
        """The same frames with the motion about some axes reversed; signs (N, 3), ±1. Pictures stay as they are."""
        z = signs.repeat(1, dc.UNKNOWNS // 3)
        both = z[:, :, None] * z[:, None]
        turned = torch.ones(dc.FEATURES).repeat(len(signs), 3, 1)
        turned[:, :, : dc.SIGNED] = signs[:, :, None]
        return replace(
            self,
            geometry=self.geometry * turned.flatten(1),
            pull=self.pull * z,
            by_tracks=self.by_tracks * z,
            **{name: getattr(self, name) * both for name in ("pictures", "trusted", "known")},
            **{name: getattr(self, name) * signs[:, None, None] for name in ("start", "interpolated", "truth")},
            spline=self.spline * signs[:, None],
        )


_TENSORS = tuple(f.name for f in fields(Examples) if f.name != "names")


def example(
    geometry: np.ndarray, reduced: dc.Reduced, truth: np.ndarray, spline: np.ndarray, px: np.ndarray,
    camera: np.ndarray, exposure_s: float, blur_px: float, clip: int, picture: np.ndarray,
) -> dict[str, np.ndarray]:
    """One frame's row of every tensor."""
    *matrices, pull, by_tracks = dc.equations(reduced)
    values = {
        "geometry": geometry, **dict(zip(("pictures", "trusted", "known"), matrices)), "pull": pull,
        "by_tracks": by_tracks, "scale_px": reduced.scale_px, "start": reduced.start, "spline": spline,
        "interpolated": reduced.interpolated, "truth": truth, "px": px, "camera": camera, "exposure_s": exposure_s,
        "blur_px": blur_px,
    }
    row = {name: np.asarray(value, np.float32) for name, value in values.items()}
    return {**row, "clip": np.asarray(clip), "picture": picture}


def gathered(rows: Sequence[dict[str, np.ndarray]], names: Sequence[tuple[str, str]]) -> Examples:
    return Examples(
        **{name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in _TENSORS}, names=tuple(names)
    )


def save_examples(path: Path, examples: Examples) -> None:
    save_file(
        {name: getattr(examples, name).contiguous() for name in _TENSORS}, path, {"names": json.dumps(examples.names)}
    )


def load_examples(path: Path) -> Examples:
    """BagError where the file is missing or lacks something."""
    if not path.is_file():
        raise BagError(f"training examples {path} do not exist; `perspblur train` makes them")
    with safe_open(path, framework="pt") as file:
        names = json.loads(file.metadata()["names"])
        missing = sorted(set(_TENSORS) - set(file.keys()))
        if missing:
            raise BagError(f"training examples {path} lack {', '.join(missing)}")
        tensors = {name: file.get_tensor(name) for name in _TENSORS}
    return Examples(**tensors, names=tuple((place, recording) for place, recording in names))
