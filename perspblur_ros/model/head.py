"""From tokens to metric depth with variance (paper 3.3, Fig. 4b), fused with what the geometry measured."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .presets import Preset

TYPICAL_DEPTH_M = 2.5  # where an untrained network starts
LOG_VARIANCE_LIMIT = 8.0  # |log variance| stays below; keeps the fusion finite


class DepthHead(nn.Module):
    """Tokens (B, P, d) and a measured depth (B, 2, h, h) → depth (B, 1, h, h), its variance, and the network's own.

    The network's own Gaussian is the paper's head with the exponential as the activation that makes depth positive. It
    is multiplied with the measured Gaussian (log depth, variance of log depth), and a small convolution that starts at
    zero corrects the product.
    """

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        half, c = preset.width // 2, preset.head_width
        self.grid, self.head_px = preset.grid, preset.head_px
        self.norm = nn.LayerNorm(preset.width)
        self.halve = nn.Conv2d(preset.width, half, 3, padding=1)
        self.hidden = nn.Conv2d(half, c, 3, padding=1)
        self.own = nn.Conv2d(c, 2, 3, padding=1)
        self.mix = nn.Conv2d(c + 3, c, 3, padding=1)
        self.residual = nn.Conv2d(c, 2, 3, padding=1)
        for parameter in self.residual.parameters():
            nn.init.zeros_(parameter)

    def forward(self, refined: Tensor, measured: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log depth [log m] (B, 1, h, h), its log variance (B, 1, h, h), and ``own`` (B, 2, h, h), both of the network.

        measured: log depth and its variance, the latter very large (1e4) where nothing was measured.
        """
        maps = self.norm(refined).transpose(1, 2).unflatten(-1, (self.grid, self.grid))
        size = (self.head_px, self.head_px)
        x = F.gelu(self.hidden(F.interpolate(self.halve(maps), size, mode="bilinear", align_corners=False)))
        raw = self.own(x)
        own = torch.cat((raw[:, :1] + math.log(TYPICAL_DEPTH_M), bounded(raw[:, 1:])), dim=1)
        log_depth, log_variance = fuse(own, measured)
        context = torch.cat((x, log_depth - own[:, :1], own[:, 1:], log_variance), dim=1)
        correction = self.residual(F.gelu(self.mix(context)))
        return log_depth + correction[:, :1], log_variance + bounded(correction[:, 1:]), own


def bounded(x: Tensor) -> Tensor:
    """Smoothly within ± LOG_VARIANCE_LIMIT."""
    return LOG_VARIANCE_LIMIT * torch.tanh(x / LOG_VARIANCE_LIMIT)


def fuse(own: Tensor, measured: Tensor) -> tuple[Tensor, Tensor]:
    """Product of two Gaussians of log depth: mean and log variance, (B, 1, h, h) each.

    own (B, 2, h, h) mean and log variance; measured (B, 2, h, h) mean and variance.
    """
    own_precision, precision = torch.exp(-own[:, 1:]), 1 / measured[:, 1:]
    total = own_precision + precision
    return (own_precision * own[:, :1] + precision * measured[:, :1]) / total, -torch.log(total)
