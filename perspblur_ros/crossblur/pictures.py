"""One frame as cross-blur sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]

PATCH = 7  # pixels at the working scale, each way
GAMMA = 2.2

_LINEAR = (np.linspace(0, 1, 256) ** GAMMA * 255).astype(np.float32)


@dataclass(frozen=True)
class View:
    """One frame as the refinement sees it: times in seconds from the segment's origin.

    picture   h × w × 3 float32: linear light and its two gradients at the working scale
    light     h × w, its first channel
    contrast  h × w float32, RMS contrast of the patch around every pixel
    """

    picture: NDArray[np.float32]
    light: NDArray[np.float32]
    contrast: NDArray[np.float32]
    scale: float
    mid_s: float


def view(image: Grey, scale: int, mid_s: float) -> View:
    """Linearise, reduce by ``scale`` and differentiate."""
    f: NDArray[Any] = cv2.LUT(image, _LINEAR)
    if scale > 1:
        f = cv2.resize(f, None, fx=1 / scale, fy=1 / scale, interpolation=cv2.INTER_AREA)
    f = cv2.GaussianBlur(f, (0, 0), 0.8)
    gradients: list[NDArray[Any]] = [cv2.Scharr(f, -1, dx, 1 - dx, scale=1 / 32) for dx in (1, 0)]
    mean = cv2.blur(f, (PATCH, PATCH))
    contrast = np.sqrt(np.maximum(cv2.blur(f * f, (PATCH, PATCH)) - mean * mean, 0))
    picture: NDArray[Any] = cv2.merge([f, *gradients])
    return View(picture, np.asarray(f, np.float32), contrast, 1 / scale, mid_s)
