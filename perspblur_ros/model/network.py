"""The networks tied together, and a whole clip at once (paper Fig. 3); the stream does the same piece by piece."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .decoder import TrajectoryNetwork
from .encoder import Encoder
from .head import DepthHead
from .presets import Preset
from .prior import Prior
from .windows import CrossWindow, SelfWindow, WindowEmbedding


class DepthNetwork(nn.Module):
    """Stage 1: a clip → the metric depth of its first frame, with variance."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.preset = preset
        self.encoder = Encoder(preset)
        self.embedding = WindowEmbedding(preset)
        self.self_window = SelfWindow(preset)
        self.cross_window = CrossWindow(preset)
        self.head = DepthHead(preset)

    def forward(self, images: Tensor, camera: Tensor, measured: Tensor) -> dict[str, Tensor]:
        """images (B, T, 3, H, H) RGB 0 to 1, any T ≥ S; camera (B, C); measured (B, 2, h, h), see ``DepthHead``.

        Returns features (B, T, P, d), windows (B, T // S, P, d), refined (B, P, d), log_depth (B, 1, h, h) [log m],
        log_variance (B, 1, h, h) and own (B, 2, h, h). Frames after the last full window do not enter the depth.
        """
        features = self.encoder(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        windows = self.windows(features, camera)
        refined = self.refine(windows)
        log_depth, log_variance, own = self.head(refined, measured)
        return {
            "features": features,
            "windows": windows,
            "refined": refined,
            "log_depth": log_depth,
            "log_variance": log_variance,
            "own": own,
        }

    def windows(self, features: Tensor, camera: Tensor) -> Tensor:
        """Features (B, T, P, d) → the T // S windows after Self-Window, (B, T // S, P, d)."""
        S = self.preset.window_frames
        n = features.shape[1] // S
        frames = features[:, : n * S].unflatten(1, (n, S)).flatten(0, 1)
        return self.window(frames, camera.repeat_interleave(n, dim=0)).unflatten(0, (-1, n))

    def window(self, features: Tensor, camera: Tensor) -> Tensor:
        """Features of the S frames of one window (B, S, P, d) → its tokens (B, P, d)."""
        return self.self_window(self.embedding(features), camera)

    def refine(self, windows: Tensor) -> Tensor:
        """Windows (B, N, P, d) → the first one refined by all later ones, from the last backward (B, P, d)."""
        refined = windows[:, -1]
        for earlier in reversed(windows[:, :-1].unbind(dim=1)):
            refined = self.cross_window(earlier, refined)
        return refined

    def frame_tokens(self, features: Tensor, camera: Tensor) -> Tensor:
        """A single frame's features (B, P, d) through Self-Window, for the trajectory: (B, P, d)."""
        return self.self_window(features, camera)


class Network(nn.Module):
    """Everything of one preset; what a checkpoint holds."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.preset = preset
        self.depth = DepthNetwork(preset)
        self.trajectory = TrajectoryNetwork(preset)
        self.prior = Prior(preset)

    def decode(
        self, features: Tensor, depth_features: Tensor, camera: Tensor, trajectory: Tensor, guess: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Stage 2: a frame's features (B, P, d) and ``TrajectoryNetwork``'s other inputs → coefficients, log sd.

        No gradient reaches the depth network, which is frozen in this stage.
        """
        with torch.no_grad():
            tokens = self.depth.frame_tokens(features, camera)
        return self.trajectory(tokens, depth_features, camera, trajectory, guess)
