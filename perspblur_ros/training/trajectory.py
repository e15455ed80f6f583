"""Stage 2: the path inside a frame. First the weights of the Gauss–Newton layer, then the attention decoder on it.

Both learn from frames that the real pipeline has seen (``examples``), because what they correct are its errors. Loss:
mean over the samples of the path's error length, over the RMS length of the path plus 0.15 px: relative, so that small
motions count as much, without dividing by nothing; a norm and no square, so that lost frames do not rule the fit. The
two neighbours of a frame count half. Motions are mirrored per axis at random: physics knows no sign.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from .. import decoder as dc
from ..detail_basis import ORDERS, PER_FRAME, synthesis
from ..model.network import Network
from .examples import Examples
from .loop import Schedule

SAMPLES = 15
FLOOR_PX = 0.15
NEIGHBOUR_WEIGHT = 0.5


def solve(examples: Examples, mean: Tensor, log_sd: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor]:
    """``decoder.solve`` in torch for a batch: z (B, 3, ORDERS, 3) relative to the start, px, and its information.

    The information (B, 45, 45) is in the motion's own scale.
    """
    scale = examples.scale_px.double().repeat(1, dc.UNKNOWNS // 3)
    roots = torch.exp(0.5 * log_weight.double().unflatten(1, (3, dc.WEIGHTS)).clamp(*dc.LOG_WEIGHT_RANGE))
    by = roots.transpose(1, 2).repeat(1, 1, dc.UNKNOWNS // 3)  # B × WEIGHTS × 45
    own = _unknowns(torch.exp(-2 * log_sd.double().clamp(*dc.LOG_SD_RANGE)))
    pictures, trusted, known = (
        matrix * root[:, :, None] * root[:, None]
        for matrix, root in zip((examples.pictures, examples.trusted, examples.known), by.unbind(1))
    )
    tracks = trusted + known
    right = by[:, 0] ** 2 * examples.pull + own * _unknowns(mean.double())
    right = right + (tracks @ examples.by_tracks.double()[..., None])[..., 0]
    A = pictures + tracks + torch.diag_embed(own)
    z = torch.cholesky_solve(right[..., None], torch.linalg.cholesky(A))[..., 0] * scale
    return coefficients(z).float(), A


def _unknowns(per_axis: Tensor) -> Tensor:
    values = per_axis.unflatten(1, (3, dc.FRAMES, ORDERS)).permute(0, 2, 3, 1)
    return torch.cat([values, torch.zeros_like(values[:, :, :1])], dim=2).flatten(1)


def coefficients(unknowns: Tensor) -> Tensor:
    """Unknowns (B, 45) without the means: (B, 3, ORDERS, 3)."""
    return unknowns.unflatten(1, (dc.FRAMES, PER_FRAME // 3, 3))[:, :, :ORDERS]


def relative_error(estimate: Tensor, truth: Tensor) -> Tensor:
    """Coefficients (..., ORDERS, 3) px → (...,): mean error length over RMS path length plus the floor."""
    basis = torch.as_tensor(synthesis(SAMPLES), dtype=truth.dtype, device=truth.device)
    error = (basis @ (estimate - truth)).square().sum(-1).add(1e-6).sqrt().mean(-1)
    return error / ((basis @ truth).square().sum(-1).mean(-1) + FLOOR_PX**2).sqrt()


def detail_error(estimate: Tensor, examples: Examples) -> float:
    """DESIGN section 5 over the exposures of the middle frames: pooled error over pooled motion, radians."""
    basis = torch.as_tensor(synthesis(SAMPLES), dtype=estimate.dtype)
    unit = examples.px[:, None]
    error = (basis @ ((estimate - examples.truth[:, 1]) / unit)).norm(dim=-1).sum()
    return float(error / (basis @ (examples.truth[:, 1] / unit)).norm(dim=-1).sum())


class PriorStage:
    """The network of the Gauss–Newton layer."""

    def __init__(self, network: Network, plan: Schedule, train: Examples, validation: Examples) -> None:
        self.network, self.plan, self.examples, self.held_out = network, plan, train, validation
        self.module: nn.Module = network.prior
        network.prior.normalise(train.geometry, dc.SIGNED)

    def loss(self, step: int) -> Tensor:
        rng = np.random.default_rng((self.plan.seed, step))
        which = torch.as_tensor(rng.integers(len(self.examples), size=self.plan.batch))
        signs = torch.as_tensor(rng.choice((-1.0, 1.0), (self.plan.batch, 3)), dtype=torch.float32)
        batch = self.examples[which].mirrored(signs)
        z, _ = solve(batch, *self.network.prior(batch.geometry))
        weight = torch.tensor([NEIGHBOUR_WEIGHT, 1.0, NEIGHBOUR_WEIGHT], dtype=z.dtype)
        return (relative_error(batch.start + z, batch.truth) * weight).mean()

    def validate(self) -> dict[str, float]:
        z, _ = solve(self.held_out, *self.network.prior(self.held_out.geometry))
        learned = self.held_out.start[:, 1] + z[:, 1]
        score = relative_error(learned, self.held_out.truth[:, 1]).mean()
        return {"score": float(score), "learned": detail_error(learned, self.held_out), **self.baselines}

    @cached_property
    def baselines(self) -> dict[str, float]:
        """Detail errors of the same frames: interpolation, track spline, and the plain Gauss–Newton step."""
        held_out = self.held_out
        untrained = (torch.as_tensor(v).repeat(len(held_out), 1) for v in dc.untrained(np.zeros(0, np.float32)))
        plain = held_out.start[:, 1] + solve(held_out, *untrained)[0][:, 1]
        ways = {"interpolation": held_out.interpolated[:, 1], "spline": held_out.spline, "plain_step": plain}
        return {name: detail_error(estimate, held_out) for name, estimate in ways.items()}
