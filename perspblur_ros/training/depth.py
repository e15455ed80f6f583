"""Stage 1: the depth network on clips rendered as they are used.

The loss, where the paper names none:
- L1 on log depth: relative errors, and depth edges that tracks cannot resolve do not rule the fit as squares would.
- Gaussian negative log likelihood for the variance alone (the error detached), so that no error can be bought off.
- Both also on the network's own Gaussian before fusion, half as heavy, so that pixels learn where geometry is good.
- Each clip counts twice, with its measurement and without any.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..engine.interface import UNMEASURED_VARIANCE
from ..model.head import fuse
from ..model.network import Network
from ..model.presets import preset
from .clips import Clips, ClipSizes, draw, render
from .loop import Schedule, device_of, load_config, schedule, train
from .scenes import Material, load_material

OWN_WEIGHT = 0.5
GRADIENT_FRAMES = 4  # of the clip's: the encoder learns from a random few, which saves a third of a step
POOL, FRESH = 192, 2  # clips kept; new ones per step, so that rendering does not outweigh training
VALIDATION_CLIPS, VALIDATION_SEED = 96, 777
CENTRE_LOG_DEPTH = float(np.log(2.2))  # of the drawn scenes: the constant to beat


class DepthStage:
    """Clips, loss and validation of stage 1."""

    def __init__(self, network: Network, plan: Schedule, material: dict[str, Material], sizes: ClipSizes) -> None:
        self.network, self.plan, self.sizes = network, plan, sizes
        self.module: nn.Module = network.depth
        self.device = next(network.parameters()).device
        self.pool = Pool(material["train"], sizes, plan.seed, self.device)
        self.validation = list(_validation(material["validation"], sizes, self.device))

    def loss(self, step: int) -> Tensor:
        clips = self.pool.batch(step, self.plan.batch)
        learning = np.random.default_rng((self.plan.seed, 2, step)).permutation(self.sizes.frames)[:GRADIENT_FRAMES]
        refined = self._refined(clips, set(learning.tolist()))
        nothing = torch.zeros_like(clips.measured)
        nothing[:, 1] = UNMEASURED_VARIANCE
        log_depth, log_variance, own = self.network.depth.head(
            refined.repeat(2, 1, 1), torch.cat([clips.measured, nothing])
        )
        truth = clips.log_depth[:, None]
        fused = _likelihood_loss(log_depth, log_variance, truth.repeat(2, 1, 1, 1))
        return fused + OWN_WEIGHT * _likelihood_loss(own[: len(truth), :1], own[: len(truth), 1:], truth)

    def validate(self) -> dict[str, float]:
        """Mean over the clips; AbsRel of every way to a depth, calibration, and what the control claims."""
        rows = [row for clips in self.validation for row in self._judged(clips)]
        measured = [row for row in rows if row["is_measured"]]
        control = [row for row in rows if not row["is_measured"]]
        means = {name: float(np.mean([row[name] for row in rows])) for name in ("score", "constant", "median", "own")}
        for name in ("closed_form", "base", "fused", "nees"):
            means[name] = float(np.mean([row[name] for row in measured])) if measured else float("nan")
        means["sd"] = float(np.mean([row["sd"] for row in measured])) if measured else float("nan")
        means["control_sd"] = float(np.mean([row["sd"] for row in control])) if control else float("nan")
        return means

    def _judged(self, clips: Clips) -> Iterator[dict[str, float]]:
        log_depth, log_variance, own = self.network.depth.head(self._refined(clips), clips.measured)
        base, _ = fuse(own, clips.measured)
        truth = clips.log_depth[:, None]
        middle = truth.flatten(1).median(dim=1)[0][:, None, None, None]
        ways = {
            "constant": torch.full_like(truth, CENTRE_LOG_DEPTH),
            "median": middle.expand_as(truth),
            "own": own[:, :1],
            "closed_form": clips.measured[:, :1],
            "base": base,
            "fused": log_depth,
        }
        errors = {name: torch.expm1(way - truth).abs().clamp(max=10).mean(dim=(1, 2, 3)) for name, way in ways.items()}
        score = (log_depth - truth).abs().mean(dim=(1, 2, 3))
        nees = ((log_depth - truth) ** 2 * torch.exp(-log_variance)).mean(dim=(1, 2, 3))
        sd = torch.exp(0.5 * log_variance).mean(dim=(1, 2, 3))
        for i in range(len(truth)):
            row = {name: float(error[i]) for name, error in errors.items()}
            row |= {"score": float(score[i]), "nees": float(nees[i]), "sd": float(sd[i])}
            yield {**row, "is_measured": bool(clips.measured[i, 1].min() < UNMEASURED_VARIANCE)}

    def _refined(self, clips: Clips, learning: set[int] | None = None) -> Tensor:
        """Tokens of the first window, refined by the later ones; gradients reach the encoder by the frames named."""
        network, encoder = self.network.depth, self.network.depth.encoder
        if not self.sizes.blurred:  # all frames are the same picture
            features = encoder(clips.image[:, 0].expand(-1, 3, -1, -1))
            repeated = features[:, None].expand(-1, self.sizes.frames, -1, -1)
            return network.refine(network.windows(repeated, clips.camera))
        parts = []
        for k, picture in enumerate(clips.image.expand(-1, -1, 3, -1, -1).unbind(1)):
            with torch.set_grad_enabled(torch.is_grad_enabled() and (learning is None or k in learning)):
                parts.append(encoder(picture))
        return network.refine(network.windows(torch.stack(parts, dim=1), clips.camera))


def _likelihood_loss(log_depth: Tensor, log_variance: Tensor, truth: Tensor) -> Tensor:
    error = log_depth - truth
    squared = error.detach().square().clamp(max=9.0)
    return error.abs().mean() + 0.25 * (squared * torch.exp(-log_variance) + log_variance).mean()


class Pool:
    """The newest clips: each step replaces a few and draws its batch from all. Mirrored at random."""

    def __init__(self, material: Material, sizes: ClipSizes, seed: int, device: torch.device) -> None:
        self.material, self.sizes, self.seed, self.device = material, sizes, seed, device
        self._clips: dict[int, Clips] = {}

    def batch(self, step: int, size: int) -> Clips:
        """The batch of a step; the same seed and step give the same batch, whatever was asked for before."""
        first = FRESH * step
        for index in [i for i in self._clips if i < first]:
            del self._clips[index]
        missing = [i for i in range(first, first + POOL) if i not in self._clips]
        for start in range(0, len(missing), 2):
            self._render(missing[start : start + 2])
        rng = np.random.default_rng((self.seed, 1, step))
        chosen = [self._clips[int(i)] for i in rng.choice(np.arange(first, first + POOL), size, replace=False)]
        return _stacked([_mirrored(c) if rng.random() < 0.5 else c for c in chosen])

    def _render(self, indices: list[int]) -> None:
        for index in indices:  # one by one: the noise of a clip must not depend on its neighbours
            recipe = draw(np.random.default_rng((self.seed, 0, index)), self.material, self.sizes)
            self._clips[index] = render([recipe], self.sizes, self.seed * 1_000_003 + index, self.device)


def _stacked(clips: list[Clips]) -> Clips:
    return Clips(*(torch.cat([getattr(c, name) for c in clips]) for name in Clips.__dataclass_fields__))


def _mirrored(clips: Clips) -> Clips:
    """Left and right exchanged: the same clip of a mirrored world, in which x of the lever arm changes sign."""
    camera = clips.camera.clone()
    camera[:, 4] *= -1
    return Clips(clips.image.flip(-1), camera, clips.log_depth.flip(-1), clips.measured.flip(-1))


def _validation(material: Material, sizes: ClipSizes, device: torch.device, size: int = 8) -> Iterator[Clips]:
    """A fixed set; every eighth clip turns about its optical centre (the control)."""
    for start in range(0, VALIDATION_CLIPS, size):
        recipes = []
        for i in range(start, start + size):
            recipe = draw(np.random.default_rng((VALIDATION_SEED, i)), material, sizes)
            lever = np.zeros(3) if i % 8 == 7 else recipe.lever_arm_m
            recipes.append(replace(recipe, lever_arm_m=lever, lever_known=True))
        yield render(recipes, sizes, VALIDATION_SEED + start, device)


def run(
    config_path: Path, data_dir: Path | None, out: Path, resume: bool = False, minutes: float | None = None,
    blurred: bool = True, device: str = "auto",
) -> dict[str, float]:
    """Train stage 1 as a configuration says. ``blurred`` False: the comparison on sharp, still pictures."""
    config: dict[str, Any] = load_config(config_path)
    plan = schedule(config["depth"])
    sizes_of = preset(config["preset"])
    torch.manual_seed(plan.seed)
    network = Network(sizes_of).to(device_of(device)).train()
    sizes = ClipSizes(sizes_of.clip_frames, sizes_of.image_px, sizes_of.head_px, blurred=blurred)
    material = {split: load_material(data_dir, split) for split in ("train", "validation")}
    stage = DepthStage(network, plan, material, sizes)
    return train(stage, plan, out, resume, minutes, {"stage": "depth", "blurred": blurred, "preset": config["preset"]})
