"""What goes into the graphs and comes out of them: names, shapes, units. The only place that says so.

P tokens and width d of a picture, S frames in a window, n samples in a frame, h × h depth map; batch 1, float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
Shapes = dict[str, tuple[int, ...]]

CAMERA_VALUES, LEVER_ARM_X = 8, 4  # and which of them changes its sign in a mirror
DCT_ORDERS = 4  # orders 1 to 4 of the path about its frame mean; 0.016 of the motion lies above them
UNMEASURED_VARIANCE = 1e4  # of log depth, where nothing was measured

REQUIRED = ("encoder", "window", "cross", "head")
OPTIONAL = ("decoder", "prior")


def interface(sizes: Mapping[str, Any]) -> dict[str, tuple[Shapes, Shapes]]:
    """Inputs and outputs of every graph, by graph. ``sizes`` is the manifest's table (``model.presets.Preset``).

    encoder  picture RGB 0 to 1 → features of one frame
    window   features of S frames, camera → tokens of the window, after Self-Window
    cross    earlier window, refined later window → earlier window, refined
    head     refined first window, measured log depth with its variance → log depth [log m], its log variance, and
             ``own``: both of the network alone
    decoder  features of the frame, refined tokens of the newest finished chain (zeros before there is one), camera,
             interpolated path about its mean and a guess with its sd (pixel units) → cosine coefficients, log sd
    prior    geometry → mean and log sd of the Gauss–Newton layer's unknowns, log weight of its data
    """
    P = (sizes["image_px"] // sizes["patch_px"]) ** 2
    d, S, h, n = sizes["width"], sizes["window_frames"], sizes["head_px"], sizes["samples"]
    tokens, camera, unknowns = (1, P, d), (1, CAMERA_VALUES), (1, sizes["prior_unknowns"])
    return {
        "encoder": ({"image": (1, 3, sizes["image_px"], sizes["image_px"])}, {"features": tokens}),
        "window": ({"features": (1, S, P, d), "camera": camera}, {"window": tokens}),
        "cross": ({"earlier": tokens, "later": tokens}, {"refined": tokens}),
        "head": (
            {"refined": tokens, "measured": (1, 2, h, h)},
            {"log_depth": (1, 1, h, h), "log_variance": (1, 1, h, h), "own": (1, 2, h, h)},
        ),
        "decoder": (
            {
                "features": tokens,
                "depth_features": tokens,
                "camera": camera,
                "trajectory": (1, n, 3),
                "guess": (1, n, 6),
            },
            {"coefficients": (1, DCT_ORDERS, 3), "log_sd": (1, DCT_ORDERS, 3)},
        ),
        "prior": (
            {"geometry": (1, sizes["prior_inputs"])},
            {"mean": unknowns, "log_sd": unknowns, "log_weight": (1, sizes["prior_weights"])},
        ),
    }


def picture(image: NDArray[np.uint8], image_px: int) -> FloatArray:
    """A frame, grey H × W or RGB H × W × 3, squeezed to the network's square: (3, image_px, image_px), 0 to 1."""
    small = cv2.resize(image, (image_px, image_px), interpolation=cv2.INTER_AREA)
    planes = np.broadcast_to(small, (3, *small.shape)) if small.ndim == 2 else small.transpose(2, 0, 1)
    return np.multiply(planes, np.float32(1 / 255), dtype=np.float32)


def camera_values(
    focal_share: float, exposure_s: float, period_s: float, readout_s: float, lever_arm_m: Sequence[float] = ()
) -> FloatArray:
    """The camera as the networks see it, (8,). focal_share = f / width; an empty lever arm is an unknown one."""
    arm = [5.0 * metres for metres in lever_arm_m] + [1.0] if len(lever_arm_m) else [0.0] * 4
    return np.array([focal_share, 10 * exposure_s, 10 * period_s, 10 * readout_s, *arm], dtype=np.float32)
