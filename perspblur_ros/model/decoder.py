"""The dense path inside a frame (paper 3.4): trajectory tokens that attend to the frame's picture and depth features.

Attention among the trajectory tokens is disentangled into content and relative position, as in DeBERTa (He et al.,
ICLR 2021, Eq. 2). The result is a residual on a guess, as coefficients of a cosine basis.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..engine.interface import CAMERA_VALUES, DCT_ORDERS
from .layers import CrossBlock, join_heads, split_heads
from .presets import Preset

SCALE_FLOOR_PX = 0.3  # added to the path's size, so that a resting camera does not divide by zero
DISTANCES = 30  # relative positions are counted in this share of a frame, whatever the number of samples


class TrajectoryNetwork(nn.Module):
    """Samples of one frame with picture and depth features → cosine coefficients of its path.

    Rotations are in pixel units: (φ_x f, φ_y f, φ_z W/3) of a rotation vector φ, f and the width W in pixels. The
    network sees them relative to the path's own size, so that it is equivariant to scale but for ``SCALE_FLOOR_PX``.
    """

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        d = preset.width
        self.value = nn.Sequential(nn.Linear(10, d), nn.GELU(), nn.Linear(d, d))
        self.image, self.camera = nn.Linear(2 * d, d), nn.Linear(CAMERA_VALUES, d)
        self.blocks = nn.ModuleList(TrajectoryBlock(d, preset.heads) for _ in range(preset.decoder_layers))
        self.norm = nn.LayerNorm(d)
        self.residual, self.log_sd = nn.Linear(d, 3), nn.Linear(d, 3 * DCT_ORDERS)
        for layer in (self.residual, self.log_sd):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, frame_tokens: Tensor, depth_features: Tensor, camera: Tensor, trajectory: Tensor, guess: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Coefficients (B, 4, 3) of cosine orders 1 to 4 about the frame mean, and the log of their sd (B, 4, 3).

        frame_tokens (B, P, d)    Self-Window of the frame's features, no window embedding
        depth_features (B, P, d)  last features of the depth decoder; zeros before the first window is finished
        camera (B, C)             see ``engine.interface.camera_values``
        trajectory (B, n, 3)      the sparse path, interpolated, about its frame mean
        guess (B, n, 6)           a better path where there is one, and its sd; the paper's form: trajectory and ones
        """
        basis = cosine_basis(trajectory.shape[1], trajectory)
        scale = trajectory.square().mean(dim=(1, 2), keepdim=True).sqrt() + SCALE_FLOOR_PX
        path, sd = guess[..., :3], guess[..., 3:]
        size = torch.log(scale).expand(-1, trajectory.shape[1], 1)
        x = self.value(torch.cat((trajectory / scale, path / scale, torch.log(sd / scale), size), dim=-1))
        picture = self.image(torch.cat((frame_tokens, depth_features), dim=-1))
        memory = torch.cat((picture, self.camera(camera)[:, None]), dim=1)
        for block in self.blocks:
            x = block(x, memory)
        x = self.norm(x)
        coefficients = basis @ (path + scale * self.residual(x))
        rms_sd = sd.square().mean(dim=1, keepdim=True).sqrt()
        return coefficients, torch.log(rms_sd) + self.log_sd(x.mean(dim=1)).unflatten(-1, (DCT_ORDERS, 3))


class TrajectoryBlock(nn.Module):
    """Disentangled self-attention of the samples, attention to the memory, feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), DisentangledAttention(width, heads)
        self.cross = CrossBlock(width, heads)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.cross(x + self.attention(self.norm(x)), memory)


class DisentangledAttention(nn.Module):
    """Self-attention (B, n, d) → (B, n, d): content to content, content to position and position to content.

    Relative positions are shares of a frame, so the same weights serve any number of samples.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.content, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.relative = nn.Parameter(0.02 * torch.randn(1, 2 * DISTANCES + 1, width))
        self.position = nn.Linear(width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in self.content(x).chunk(3, dim=-1))
        relative_q, relative_k = (split_heads(part, self.heads) for part in self.position(self.relative).chunk(2, -1))
        index = relative_index(x.shape[1], x.device)[None, None].expand(x.shape[0], self.heads, -1, -1)
        to_position = torch.gather(q @ relative_k.transpose(2, 3), 3, index)
        from_position = torch.gather(k @ relative_q.transpose(2, 3), 3, index).transpose(2, 3)
        scores = (q @ k.transpose(2, 3) + to_position + from_position) / math.sqrt(3 * q.shape[-1])
        return self.out(join_heads(scores.softmax(dim=-1) @ v))


def relative_index(n: int, device: torch.device | None = None) -> Tensor:
    """Where in the table of relative positions the distance of samples i and j stands: (n, n), DISTANCES at i = j."""
    i = torch.arange(n, device=device)
    distance = torch.round((i[:, None] - i) * (DISTANCES / n)).long()
    return distance.clamp(-DISTANCES, DISTANCES) + DISTANCES


def cosine_basis(n: int, like: Tensor) -> Tensor:
    """Projection (4, n) of n even samples on cos(πk(i + ½)/n), k = 1 to 4; amplitudes, whatever n (DCT-II · 2/n)."""
    i = torch.arange(n, device=like.device, dtype=like.dtype)
    k = torch.arange(1, DCT_ORDERS + 1, device=like.device, dtype=like.dtype)
    return torch.cos(math.pi / n * k[:, None] * (i + 0.5)) * (2 / n)
