"""Stage 2: the path inside a frame. First the weights of the Gauss–Newton layer, then the attention decoder on it.

Both learn from frames that the real pipeline has seen (``examples``), because what they correct are its errors. Loss:
mean over the samples of the path's error length, over the RMS length of the path plus 0.15 px: relative, so that small
motions count as much, without dividing by nothing; a norm and no square, so that lost frames do not rule the fit. The
two neighbours of a frame count half. Motions are mirrored per axis at random: physics knows no sign.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

from .. import decoder as dc
from ..detail_basis import ORDERS, PER_FRAME, synthesis
from ..errors import ConfigError
from ..model.network import Network
from .clips import mirrored_camera
from .examples import Examples, gathered, load_examples, save_examples
from .exported import load_start
from .loop import Schedule, Stage, load_config, schedule, train
from .trajectory_clips import Material, draw, rows, sources

SAMPLES = 15
FLOOR_PX = 0.15
NEIGHBOUR_WEIGHT = 0.5
CLIPS = {"train": 120, "validation": 24}  # of 22 frames, 16 of which the layer sees


def solve(examples: Examples, mean: Tensor, log_sd: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor]:
    """``decoder.solve`` in torch for a batch: z (B, 3, ORDERS, 3) relative to the start, px, and its information.

    The information (B, 45, 45) is in the motion's own scale.
    """
    scale = examples.scale_px.double().repeat(1, dc.UNKNOWNS // 3)
    log_weight = log_weight.double().unflatten(1, (3, dc.WEIGHTS))
    roots = torch.exp(0.5 * torch.minimum(log_weight.clamp(min=dc.FAINT), log_weight.new_tensor(dc.MOST)))
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


@dataclass(frozen=True)
class Looks:
    """What the frozen depth network sees of examples, as they are and mirrored left to right.

    frame, depth (2, N, P, d): tokens of each frame after Self-Window, and of the newest finished chain of windows
    """

    frame: Tensor
    depth: Tensor


def looks(network: Network, examples: Examples) -> Looks:
    """Runs the encoder once per picture; a clip's examples are consecutive frames."""
    S, parts = network.preset.window_frames, []
    for mirrored in (False, True):
        frame, depth = [], []
        for clip in examples.clip.unique():
            of_clip = examples[examples.clip == clip]
            pictures = of_clip.picture.flip(2) if mirrored else of_clip.picture
            camera = mirrored_camera(of_clip.camera) if mirrored else of_clip.camera
            images = (pictures[:, None].float() / 255).expand(-1, 3, -1, -1)
            with torch.no_grad():
                features = network.depth.encoder(images)
                frame.append(network.depth.frame_tokens(features, camera).half())
                depth.append(_newest_chain(network, features, camera, S).half())
        parts.append((torch.cat(frame), torch.cat(depth)))
    return Looks(*(torch.stack(both) for both in zip(*parts)))


def _newest_chain(network: Network, features: Tensor, camera: Tensor, S: int) -> Tensor:
    """Per frame k the refined tokens when frame k + AFTER has come: zeros before the first window is finished."""
    out = torch.zeros_like(features)
    most = network.preset.windows
    for done in range(1, len(features) // S + 1):
        first = max(0, done - most)
        windows = network.depth.windows(features[None, first * S : done * S], camera[:1])
        out[max(0, done * S - 1 - dc.AFTER) :] = network.depth.refine(windows)[0]
    return out


@dataclass(frozen=True)
class Prepared:
    """Examples with what the frozen networks make of them; guess and sd (N, ORDERS, 3): the middle frame's path, px."""

    examples: Examples
    looks: Looks
    guess: Tensor
    sd: Tensor


def prepared(network: Network, examples: Examples, seen: Looks, pure: bool) -> Prepared:
    """The decoder starts at the Gauss–Newton path, or (``pure``) at the interpolation."""
    if pure:
        return Prepared(examples, seen, examples.interpolated[:, 1], torch.ones_like(examples.interpolated[:, 1]))
    with torch.no_grad():
        z, A = solve(examples, *network.eval().prior(examples.geometry))
    variance = torch.linalg.inv(A).diagonal(dim1=1, dim2=2) * examples.scale_px.repeat(1, dc.UNKNOWNS // 3) ** 2
    sd = coefficients(variance)[:, 1].sqrt().float()
    return Prepared(examples, seen, examples.start[:, 1] + z[:, 1], sd)


class AttentionStage:
    """The attention decoder: a residual on the Gauss–Newton path, or (``pure``) on the interpolation, as in the paper.

    Examples are consecutive frames of each clip, sorted by clip. Pictures are mirrored left to right and time is
    reversed at random: with them turn the axes' and the odd orders' signs.
    """

    def __init__(
        self, network: Network, plan: Schedule, train: Prepared, validation: Prepared, pure: bool = False
    ) -> None:
        self.network, self.plan, self.pure = network, plan, pure
        self.module: nn.Module = network.trajectory
        self.train, self.held_out = train, validation

    def loss(self, step: int) -> Tensor:
        rng = np.random.default_rng((self.plan.seed, step))
        which = torch.as_tensor(rng.integers(len(self.train.examples), size=self.plan.batch))
        return self._loss(*self._decoded(self.train, which, bool(rng.random() < 0.5), bool(rng.random() < 0.5)))

    def validate(self) -> dict[str, float]:
        examples, guess = self.held_out.examples, self.held_out.guess
        path, _, truth = self._decoded(self.held_out, torch.arange(len(examples)), False, False)
        error = detail_error(path, examples)
        score = relative_error(path, truth).mean()
        interpolation = detail_error(examples.interpolated[:, 1], examples)
        given = {"guess": detail_error(guess, examples), "interpolation": interpolation}
        return {"score": float(score), "decoded": error, **given}

    def _loss(self, path: Tensor, log_sd: Tensor, truth: Tensor) -> Tensor:
        error = (path - truth).detach()
        likelihood = (0.5 * (error * torch.exp(-log_sd)).square().clamp(max=50) + log_sd).mean()
        return relative_error(path, truth).mean() + 0.02 * likelihood

    def _decoded(
        self, given: Prepared, which: Tensor, mirrored: bool, backward: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients, log sd and truth (B, ORDERS, 3)."""
        examples, seen = given.examples, given.looks
        signs = torch.tensor([1.0, -1.0, -1.0] if mirrored else [1.0, 1.0, 1.0])
        odd = torch.tensor([-1.0, 1.0, -1.0, 1.0] if backward else [1.0] * ORDERS)[:, None]
        truth, interpolated = examples.truth[which, 1], examples.interpolated[which, 1]
        truth, interpolated, own = (c * signs * odd for c in (truth, interpolated, given.guess[which]))
        basis = torch.as_tensor(synthesis(SAMPLES), dtype=truth.dtype)
        sd_path = (basis.square() @ given.sd[which].square()).sqrt()
        camera = mirrored_camera(examples.camera[which]) if mirrored else examples.camera[which]
        path, log_sd = self.network.trajectory(
            seen.frame[int(mirrored), which].float(), seen.depth[int(mirrored), which].float(), camera,
            basis @ interpolated, torch.cat([basis @ own, torch.ones_like(sd_path) if self.pure else sd_path], dim=-1),
        )
        return path, log_sd, truth


def run(
    stage: str, config_path: Path, data_dir: Path | None, out: Path, resume: bool = False,
    minutes: float | None = None, start: Path | None = None, examples: Path | None = None,
) -> dict[str, float]:
    """Train one part of the checkpoint ``start``, all else frozen, as a configuration says.

    stage     "trajectory", the Gauss–Newton layer; "decoder", the attention decoder on it; "pure", the same without it
    examples  folder of what the pipeline saw of the training clips; made there first if need be. Default: ``out``

    Always on the CPU: the solve is small, and in double precision.
    """
    config = load_config(config_path)
    plan = schedule(config["trajectory" if stage == "trajectory" else "decoder"])
    if data_dir is None:
        raise ConfigError("the trajectory stage needs the data folder: --data names it")
    torch.manual_seed(plan.seed)
    network, summary = load_start(start, config["preset"])
    out.mkdir(parents=True, exist_ok=True)
    train_on, validation = (seen_by_the_pipeline(examples or out, data_dir, split) for split in CLIPS)
    made: Stage
    if stage == "trajectory":
        made = PriorStage(network.train(), plan, train_on, validation)
    else:
        pure = stage == "pure"
        given = [prepared(network, e, looks(network.eval(), e), pure) for e in (train_on, validation)]
        made = AttentionStage(network, plan, given[0], given[1], pure)
    known = summary.get("data", [])
    summary["data"] = known + [entry for entry in sources(data_dir) if entry not in known]
    return train(made, plan, out, resume, minutes, stage, summary)


def seen_by_the_pipeline(folder: Path, data_dir: Path, split: str) -> Examples:
    """Examples of a split; without a file of them in ``folder``, clips are drawn, run and written there."""
    path = folder / f"{split}.safetensors"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        material, found = Material(data_dir, split), []
        names: list[tuple[str, str]] = []
        for seed in track(range(CLIPS[split]), f"clips, {split}", transient=True):
            clip = draw(seed, material)
            if clip is not None:
                found += list(rows(clip, len(names)))
                names.append((clip.place, clip.recording))
        save_examples(path, gathered(found, names))
    return load_examples(path)
