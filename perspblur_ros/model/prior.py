"""The small network of the learned Gauss–Newton layer: what the path is likely to be, and how far to trust the pixels.

It sees the geometry only. The solve itself is numpy at run time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .presets import Preset

AXES = 3  # one network serves all: what it sees of an axis, and what it says of it, come axis by axis
VAGUE_LOG_SD, FAINT_LOG_WEIGHT = 2.0, -5.0  # untrained, the layer is the plain Gauss–Newton step
DROPOUT = 0.2  # thousands of examples, not millions
FEATURE_RANGE = 6.0  # standard deviations


class Prior(nn.Module):
    """Geometry (B, F) → mean and log sd of the unknowns (B, U) each, and the log weight of the data (B, W).

    Features, unknowns and weights are those of ``perspblur_ros.decoder``, a third for each axis.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        per_axis, self.unknowns, self.weights = (
            n // AXES for n in (preset.prior_inputs, preset.prior_unknowns, preset.prior_weights)
        )
        wide = preset.prior_width
        self.register_buffer("mean", torch.zeros(per_axis))
        self.register_buffer("deviation", torch.ones(per_axis))
        layers = (nn.Linear(per_axis, wide), nn.GELU(), nn.Dropout(DROPOUT))
        self.hidden = nn.Sequential(*layers, nn.Linear(wide, wide), nn.GELU(), nn.Dropout(DROPOUT))
        self.out = nn.Linear(wide, 2 * self.unknowns + self.weights)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        with torch.no_grad():
            self.out.bias[self.unknowns : 2 * self.unknowns] = VAGUE_LOG_SD
            self.out.bias[-1] = FAINT_LOG_WEIGHT

    def normalise(self, geometry: Tensor, signed: int) -> None:
        """Take the features' mean and deviation from examples (B, F); the first ``signed`` keep their sign."""
        per_axis = geometry.reshape(-1, len(self.mean))
        self.mean.copy_(per_axis.mean(dim=0))
        self.mean[:signed] = 0.0
        self.deviation.copy_(per_axis.sub(self.mean).square().mean(dim=0).sqrt() + 1e-3)

    def forward(self, geometry: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        per_axis = geometry.reshape(-1, AXES, len(self.mean))
        seen = ((per_axis - self.mean) / self.deviation).clamp(-FEATURE_RANGE, FEATURE_RANGE)
        parts = self.out(self.hidden(seen)).split((self.unknowns, self.unknowns, self.weights), dim=-1)
        mean, log_sd, log_weight = (part.flatten(1) for part in parts)
        return mean, log_sd, log_weight
