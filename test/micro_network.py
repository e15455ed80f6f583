"""A network of the real architecture, small enough for tests, with every weight in play. Needs torch."""

from __future__ import annotations

from dataclasses import replace

import torch

from perspblur_ros.model.presets import PRESETS

MICRO = replace(
    PRESETS["tiny"],
    name="micro",
    image_px=32,
    encoder_width=16,
    encoder_layers=2,
    encoder_heads=2,
    fused_layers=(1, 2),
    width=16,
    heads=2,
    window_frames=2,
    clip_frames=6,
    self_layers=1,
    head_px=12,
    head_width=4,
    samples=5,
)


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Weights that start at zero are given values too."""
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
    return module.eval()
