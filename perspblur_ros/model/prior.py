"""The small network of the learned Gauss–Newton layer: what the path is likely to be, and how far to trust the pixels.

It sees the geometry only. The solve itself is numpy at run time.
"""

from __future__ import annotations

from torch import Tensor, nn

from .presets import Preset


class Prior(nn.Module):
    """Geometry (B, F) → mean and log sd of the unknowns (B, U) each, and the log weight of the data (B, W)."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.sizes = (preset.prior_unknowns, preset.prior_unknowns, preset.prior_weights)
        wide = preset.prior_width
        self.hidden = nn.Sequential(nn.Linear(preset.prior_inputs, wide), nn.GELU(), nn.Linear(wide, wide), nn.GELU())
        self.out = nn.Linear(wide, sum(self.sizes))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, geometry: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_sd, log_weight = self.out(self.hidden(geometry)).split(self.sizes, dim=-1)
        return mean, log_sd, log_weight
