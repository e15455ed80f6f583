"""Stage 1: the depth network on clips rendered as they are used; then its head alone, on far more measurements.

The loss, where the paper names none:
- L1 on log depth: relative errors, and depth edges that tracks cannot resolve do not rule the fit as squares would.
- For the variance alone (the error detached, so that no error can be bought off): the quantile loss of log |error| that
  puts a Gaussian's share of the errors within one deviation. A likelihood lets the few at depth edges rule all others.
- Both also on the network's own Gaussian before fusion, half as heavy, so that pixels learn where geometry is good.
- Each clip counts twice, with its measurement and without any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..engine.interface import UNMEASURED_VARIANCE
from ..errors import ConfigError
from ..model.head import DepthHead, fuse
from ..model.network import Network
from .clips import TYPICAL_DEPTH_M, Clips, ClipSizes, draw, measure, mirrored_camera, render
from .exported import load_start
from .loop import Schedule, Stage, device_of, load_config, schedule, train
from .measurement import draw_noise_px96
from .scenes import Material, load_material, sources

OWN_WEIGHT = 0.5
GRADIENT_FRAMES = 4  # of the clip's: the encoder learns from a random few, which saves a third of a step
SCALE_SD = 0.4  # of the log size of the world, drawn anew whenever a clip is used
POOL, FRESH = 96, 2  # clips kept; new ones per step, so that rendering does not outweigh training
HEAD_CLIPS = 240
WITHIN, MIN_ERROR = 0.683, 1e-3  # share of a Gaussian within one deviation; log depth
DELTA = 1.25
RESIDUAL_SHARES = (0.0, 0.5, 1.0)
VALIDATION_CLIPS, VALIDATION_SEED = 96, 777


class DepthStage:
    """Encoder, windows and head together, on the clips of ``pool``; judged on ``validation``."""

    def __init__(
        self, network: Network, plan: Schedule, sizes: ClipSizes, pool: Pool, validation: Sequence[Clips]
    ) -> None:
        self.network, self.plan, self.sizes, self.pool, self.validation = network, plan, sizes, pool, validation
        self.module: nn.Module = network.depth

    def loss(self, step: int) -> Tensor:
        rng = np.random.default_rng((self.plan.seed, 2, step))
        clips = stacked([varied(rng, c) for c in self.pool.choice(step, self.plan.batch)])
        learning = set(rng.permutation(self.sizes.frames)[:GRADIENT_FRAMES].tolist())
        return head_loss(self.network.depth.head, refined(self.network, clips, self.sizes, learning), clips)

    def validate(self) -> dict[str, float]:
        head = self.network.depth.head
        return summarised(
            [row for c in self.validation for row in judged(head, refined(self.network, c, self.sizes), c)]
        )


class HeadStage:
    """The head alone, everything before it frozen: tokens of a fixed set of clips are computed once.

    Validation also decides how much of the correction of the mean stays: all, half or none of it. Its score is what is
    minimised: measurements as certain as ours leave the mean little to gain, the deviation much.
    """

    def __init__(self, network: Network, plan: Schedule, material: dict[str, Material], sizes: ClipSizes) -> None:
        self.network, self.plan, self.sizes, self.material = network, plan, sizes, material["train"]
        self.module: nn.Module = network.depth.head
        self.device = next(network.parameters()).device
        self.pool = Pool(plan.seed, self._clip, HEAD_CLIPS, fresh=0)
        self.validation = [self._kept(c) for c in validation_clips(material["validation"], sizes, self.device)]

    def loss(self, step: int) -> Tensor:
        """Of a batch of half as many clips, each with two measurements."""
        clips = stacked(self.pool.choice(step, self.plan.batch // 2))
        return head_loss(self.network.depth.head, clips.image, clips)

    def validate(self) -> dict[str, float]:
        head = self.network.depth.head
        whole = [parameter.clone() for parameter in head.residual.parameters()]
        tried = {share: self._judged_with(share, whole) for share in RESIDUAL_SHARES}
        best = min(tried, key=lambda share: tried[share]["score"])
        return {**self._judged_with(best, whole), "residual_share": best}

    def _judged_with(self, share: float, whole: list[Tensor]) -> dict[str, float]:
        head = self.network.depth.head
        for parameter, values in zip(head.residual.parameters(), whole):
            parameter[0] = share * values[0]
        numbers = summarised([row for kept in self.validation for row in judged(head, kept.image, kept)])
        return {**numbers, "score": numbers["score"] + numbers["deviation"], "error": numbers["score"]}

    def _clip(self, index: int) -> Clips:
        """A clip's tokens with two measurements of different noise."""
        rng = np.random.default_rng((self.plan.seed, 3, index))
        recipe, scale = draw(rng, self.material, self.sizes), float(np.exp(rng.normal(0, SCALE_SD)))
        inv_depth, arm_m = recipe.inv_depth / np.float32(scale), recipe.lever_arm_m * scale
        recipe = replace(recipe, inv_depth=inv_depth, lever_arm_m=arm_m, noise_px96=draw_noise_px96(rng))
        kept = self._kept(render([recipe], self.sizes, self.plan.seed * 1_000_003 + index, self.device))
        again = measure(rng, replace(recipe, noise_px96=draw_noise_px96(rng)), kept.log_depth[0].cpu().numpy())
        return stacked([kept, replace(kept, measured=torch.as_tensor(again, device=self.device)[None])])

    @torch.no_grad()
    def _kept(self, clips: Clips) -> Clips:
        """The clips with their refined tokens (B, P, d) in the place of their pictures."""
        return replace(clips, image=refined(self.network, clips, self.sizes))


def refined(network: Network, clips: Clips, sizes: ClipSizes, learning: set[int] | None = None) -> Tensor:
    """Tokens of the first window, refined by the later ones; gradients reach the encoder by the frames named."""
    depth = network.depth
    if not sizes.blurred:  # all frames are the same picture
        features = depth.encoder(clips.image[:, 0].expand(-1, 3, -1, -1))
        return depth.refine(depth.windows(features[:, None].expand(-1, sizes.frames, -1, -1), clips.camera))
    parts = []
    for k, picture in enumerate(clips.image.expand(-1, -1, 3, -1, -1).unbind(1)):
        with torch.set_grad_enabled(torch.is_grad_enabled() and (learning is None or k in learning)):
            parts.append(depth.encoder(picture))
    return depth.refine(depth.windows(torch.stack(parts, dim=1), clips.camera))


def head_loss(head: DepthHead, tokens: Tensor, clips: Clips) -> Tensor:
    """Each clip with its measurement and with none; the network's own Gaussian is the same in both."""
    truth = clips.log_depth[:, None]
    nothing = torch.zeros_like(clips.measured)
    nothing[:, 1] = UNMEASURED_VARIANCE
    log_depth, log_variance, own = head(tokens.repeat(2, 1, 1), torch.cat([clips.measured, nothing]))
    own = own[: len(truth)]
    fused = gaussian_loss(log_depth, log_variance, truth.repeat(2, 1, 1, 1))
    return fused + OWN_WEIGHT * gaussian_loss(own[:, :1], own[:, 1:], truth)


def gaussian_loss(log_depth: Tensor, log_variance: Tensor, truth: Tensor) -> Tensor:
    """L1 for the log depth; its deviation as the quantile ``WITHIN`` of the errors (Koenker & Bassett 1978)."""
    error = log_depth - truth
    return error.abs().mean() + quantile_loss(error.detach(), log_variance).mean()


def quantile_loss(error: Tensor, log_variance: Tensor) -> Tensor:
    excess = 0.5 * (torch.log(error.square() + MIN_ERROR**2) - log_variance)
    return torch.maximum(WITHIN * excess, (WITHIN - 1) * excess)


def judged(head: DepthHead, tokens: Tensor, clips: Clips) -> Iterator[dict[str, float]]:
    """AbsRel and δ1 of ways to a depth, a row per clip; ``base`` is the product of own and measured, uncorrected."""
    log_depth, log_variance, own = head(tokens, clips.measured)
    base, _ = fuse(own, clips.measured)
    truth = clips.log_depth[:, None]
    middle = truth.flatten(1).median(dim=1)[0][:, None, None, None]
    ways = {
        "constant": torch.full_like(truth, np.log(TYPICAL_DEPTH_M)),
        "median": middle.expand_as(truth),
        "own": own[:, :1],
        "closed_form": clips.measured[:, :1],
        "base": base,
        "fused": log_depth,
    }
    errors = {name: torch.expm1(way - truth).abs().clamp(max=10).mean(dim=(1, 2, 3)) for name, way in ways.items()}
    near = {
        name: (ways[name] - truth).abs().lt(np.log(DELTA)).float().mean(dim=(1, 2, 3)) for name in ("own", "fused")
    }
    score = (log_depth - truth).abs().mean(dim=(1, 2, 3))
    base_score = (base - truth).abs().mean(dim=(1, 2, 3))
    deviation = quantile_loss(log_depth - truth, log_variance).mean(dim=(1, 2, 3))
    within = (log_depth - truth).square().lt(torch.exp(log_variance)).float().mean(dim=(1, 2, 3))
    nees = ((log_depth - truth) ** 2 * torch.exp(-log_variance)).mean(dim=(1, 2, 3))
    sd = torch.exp(0.5 * log_variance).mean(dim=(1, 2, 3))
    for i in range(len(truth)):
        row = {name: float(error[i]) for name, error in errors.items()}
        row |= {f"{name}_delta1": float(share[i]) for name, share in near.items()}
        row |= {"score": float(score[i]), "base_score": float(base_score[i])}
        row |= {"nees": float(nees[i]), "sd": float(sd[i])}
        row |= {"within": float(within[i]), "deviation": float(deviation[i])}
        yield {**row, "is_measured": bool(clips.measured[i, 1].min() < UNMEASURED_VARIANCE)}


def summarised(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means over the clips; those with a measurement and the control apart."""
    measured = [row for row in rows if row["is_measured"]]
    control = [row for row in rows if not row["is_measured"]]

    def mean(name: str, of: list[dict[str, float]]) -> float:
        return float(np.mean([row[name] for row in of])) if of else float("nan")

    of_all = ("score", "base_score", "deviation", "constant", "median", "own", "own_delta1")
    of_measured = ("closed_form", "base", "fused", "fused_delta1", "nees", "sd", "within")
    numbers = {name: mean(name, rows) for name in of_all} | {name: mean(name, measured) for name in of_measured}
    return numbers | {f"control_{name}": mean(name, control) for name in ("fused", "sd", "within")}


class Pool:
    """The newest clips: each step replaces a few and draws its batch from all, whatever was asked for before."""

    def __init__(self, seed: int, make: Callable[[int], Clips], size: int, fresh: int) -> None:
        self.seed, self.make, self.size, self.fresh = seed, make, size, fresh
        self._clips: dict[int, Clips] = {}

    def choice(self, step: int, count: int) -> list[Clips]:
        """``count`` different clips of this step."""
        first = self.fresh * step
        for index in [i for i in self._clips if i < first]:
            del self._clips[index]
        for index in range(first, first + self.size):
            if index not in self._clips:
                self._clips[index] = self.make(index)
        rng = np.random.default_rng((self.seed, 1, step))
        return [self._clips[int(i)] for i in rng.choice(np.arange(first, first + self.size), count, replace=False)]


def training_pool(
    seed: int, material: Material, sizes: ClipSizes, device: torch.device, size: int = POOL, fresh: int = FRESH
) -> Pool:
    return Pool(seed, lambda index: training_clip(index, seed, material, sizes, device), size, fresh)


def training_clip(index: int, seed: int, material: Material, sizes: ClipSizes, device: torch.device) -> Clips:
    """One by one: the noise of a clip must not depend on its neighbours."""
    recipe = draw(np.random.default_rng((seed, 0, index)), material, sizes)
    return render([recipe], sizes, seed * 1_000_003 + index, device)


def validation_clips(material: Material, sizes: ClipSizes, device: torch.device, size: int = 8) -> Iterator[Clips]:
    """A fixed set in batches; every eighth clip turns about its optical centre (the control)."""
    for start in range(0, VALIDATION_CLIPS, size):
        recipes = []
        for i in range(start, start + size):
            recipe = draw(np.random.default_rng((VALIDATION_SEED, i)), material, sizes)
            lever = np.zeros(3) if i % 8 == 7 else recipe.lever_arm_m
            recipes.append(replace(recipe, lever_arm_m=lever, lever_known=True))
        yield render(recipes, sizes, VALIDATION_SEED + start, device)


def stacked(clips: list[Clips]) -> Clips:
    return Clips(*(torch.cat([getattr(c, field.name) for c in clips]) for field in fields(Clips)))


def varied(rng: np.random.Generator, clips: Clips) -> Clips:
    """Another clip with the same pictures: mirrored, and of a larger or smaller world.

    Without the second the network learns the sizes of the clips in the pool by heart: they cannot be seen.
    """
    clips = mirrored(clips) if rng.random() < 0.5 else clips
    return rescaled(clips, float(rng.normal(0, SCALE_SD)))


def rescaled(clips: Clips, log_scale: float) -> Clips:
    """World and lever arm larger by exp(log_scale): no pixel and no rotation changes."""
    camera, measured = clips.camera.clone(), clips.measured.clone()
    camera[:, 4:7] *= float(np.exp(log_scale))
    measured[:, 0] += log_scale
    return Clips(clips.image, camera, clips.log_depth + log_scale, measured)


def mirrored(clips: Clips) -> Clips:
    """Left and right exchanged: the same clip of a mirrored world."""
    return Clips(clips.image.flip(-1), mirrored_camera(clips.camera), clips.log_depth.flip(-1), clips.measured.flip(-1))


def run(
    stage: str, config_path: Path, data_dir: Path | None, out: Path, resume: bool = False,
    minutes: float | None = None, blurred: bool = True, device: str = "auto", start: Path | None = None,
) -> dict[str, float]:
    """Train "depth", or the "head" of the checkpoint ``start``, as a configuration says.

    ``blurred`` False: the comparison on sharp, still pictures.
    """
    config = load_config(config_path)
    plan = schedule(config[stage])
    torch.manual_seed(plan.seed)
    if stage == "head" and start is None:
        raise ConfigError("the head is trained on a checkpoint of the depth stage: --start names it")
    network, summary = load_start(start, config["preset"])
    network = network.to(device_of(device)).train()
    sizes = ClipSizes(
        network.preset.clip_frames, network.preset.image_px, network.preset.head_px, blurred=blurred
    )
    material = {split: load_material(data_dir, split) for split in ("train", "validation")}
    made: Stage = HeadStage(network, plan, material, sizes) if stage == "head" else DepthStage(
        network, plan, sizes,
        training_pool(plan.seed, material["train"], sizes, device_of(device)),
        list(validation_clips(material["validation"], sizes, device_of(device))),
    )
    summary["data"] = sources(data_dir)
    return train(made, plan, out, resume, minutes, stage if blurred else f"{stage}_sharp", summary)
