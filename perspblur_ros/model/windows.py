"""Depth from windows of frames (paper 3.3, Eqs. 5–7): window embedding, Self-Window, Cross-Window."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..engine.interface import CAMERA_VALUES
from .layers import CrossBlock, SelfBlock
from .presets import Preset


class WindowEmbedding(nn.Module):
    """Features of S frames (B, S, P, d) → one window (B, P, d): channels side by side, 3×3 convolution (Eq. 5)."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.grid = preset.grid
        self.conv = nn.Conv2d(preset.window_frames * preset.width, preset.width, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        maps = features.transpose(2, 3).flatten(1, 2).unflatten(-1, (self.grid, self.grid))
        return self.conv(maps).flatten(2).transpose(1, 2)


class SelfWindow(nn.Module):
    """Tokens (B, P, d) and the camera (B, C) → tokens (B, P, d) (Eq. 6).

    Used on embedded windows for the depth and, with the same weights, on single frames for the trajectory. The camera
    joins as one more token that every patch can attend to; it is left out of the result.
    """

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        d = preset.width
        self.position = nn.Parameter(0.02 * torch.randn(1, preset.tokens, d))
        self.camera = nn.Sequential(nn.Linear(CAMERA_VALUES, d), nn.GELU(), nn.Linear(d, d))
        self.blocks = nn.ModuleList(SelfBlock(d, preset.heads) for _ in range(preset.self_layers))

    def forward(self, x: Tensor, camera: Tensor) -> Tensor:
        x = torch.cat((x + self.position, self.camera(camera)[:, None]), dim=1)
        for block in self.blocks:
            x = block(x)
        return x[:, :-1]


class CrossWindow(nn.Module):
    """Earlier window (B, P, d) as query, the refined later one as key and value → the earlier, refined (Eq. 7)."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(CrossBlock(preset.width, preset.heads) for _ in range(preset.cross_layers))

    def forward(self, earlier: Tensor, later: Tensor) -> Tensor:
        for block in self.blocks:
            earlier = block(earlier, later)
        return earlier
