"""Training of the trajectory's layers: the solve in torch is the runtime's, mirrored frames have mirrored answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from perspblur_ros import decoder as dc  # noqa: E402
from perspblur_ros.detail_basis import ORDERS  # noqa: E402
from perspblur_ros.errors import BagError  # noqa: E402
from perspblur_ros.model.network import Network  # noqa: E402
from perspblur_ros.model.presets import PRESETS  # noqa: E402
from perspblur_ros.training import trajectory as tt  # noqa: E402
from perspblur_ros.training.examples import (  # noqa: E402
    Examples,
    example,
    gathered,
    load_examples,
    save_examples,
)
from perspblur_ros.training.loop import Schedule  # noqa: E402


def covariance(rng: np.random.Generator, sd: float) -> np.ndarray:
    A = rng.standard_normal((dc.UNKNOWNS, 2 * dc.UNKNOWNS)) * sd / np.sqrt(2 * dc.UNKNOWNS)
    return A @ A.T


def reduced(rng: np.random.Generator) -> dc.Reduced:
    trusted = covariance(rng, 2.0)
    after = np.linalg.inv(np.linalg.inv(trusted) + np.linalg.inv(covariance(rng, 1.0)))
    return dc.Reduced(
        rng.standard_normal((3, ORDERS, 3)), rng.standard_normal((3, ORDERS, 3)), 3 * rng.standard_normal((6, 3)),
        after, rng.standard_normal(dc.UNKNOWNS), 0.3 * rng.standard_normal(dc.UNKNOWNS), trusted, covariance(rng, 1.5),
    )


def examples(count: int, seed: int = 0) -> tuple[Examples, list[dc.Reduced]]:
    rng = np.random.default_rng(seed)
    frames = [reduced(rng) for _ in range(count)]
    rows = [
        example(
            rng.standard_normal(3 * dc.FEATURES), r, r.start + r.mean.reshape(3, -1, 3)[:, :ORDERS], r.start[1],
            np.array([600.0, 600.0, 213.0]), np.zeros(8), 0.05, 10.0, k % 2, np.zeros((8, 8), np.uint8),
        )
        for k, r in enumerate(frames)
    ]
    return gathered(rows, [("place", "recording"), ("elsewhere", "another")]), frames


def outputs(count: int, seed: int = 1) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(count, 3 * n, generator=g) for n in (dc.COEFFICIENTS, dc.COEFFICIENTS, dc.WEIGHTS)]


def test_the_solve_is_the_runtimes() -> None:
    batch, frames = examples(4)
    said = outputs(4)
    z, _ = tt.solve(batch, *said)
    for k, r in enumerate(frames):
        mean, _ = dc.solve(r, *(o[k].double().numpy() for o in said))
        assert np.allclose(z[k].numpy(), mean.reshape(3, -1, 3)[:, :ORDERS], atol=2e-3)


def test_an_untrained_network_leaves_the_plain_step() -> None:
    batch, frames = examples(3)
    z, _ = tt.solve(batch, *Network(PRESETS["tiny"]).eval().prior(batch.geometry))
    plain = np.array([r.mean.reshape(3, -1, 3)[:, :ORDERS] for r in frames])
    assert np.abs(z.detach().numpy() - plain).max() < 0.05


def test_mirrored_frames_have_mirrored_answers() -> None:
    batch, _ = examples(4)
    mean, log_sd, log_weight = outputs(4)
    signs = torch.tensor([[1.0, -1.0, -1.0], [-1.0, 1.0, 1.0], [1.0, 1.0, -1.0], [-1.0, -1.0, -1.0]])
    turned = (mean.unflatten(1, (3, -1)) * signs[:, :, None]).flatten(1)
    z, _ = tt.solve(batch, mean, log_sd, log_weight)
    mirrored, _ = tt.solve(batch.mirrored(signs), turned, log_sd, log_weight)
    assert torch.allclose(mirrored, z * signs[:, None, None], atol=1e-3)
    assert torch.equal(batch.mirrored(signs).mirrored(signs).geometry, batch.geometry)


def test_the_loss_is_nothing_at_the_truth_and_relative() -> None:
    batch, _ = examples(3)
    assert tt.relative_error(batch.truth, batch.truth).max() < 0.02
    assert tt.detail_error(batch.truth[:, 1], batch) == 0
    still = tt.relative_error(torch.zeros_like(batch.truth), batch.truth)
    assert torch.all((still > 0.5) & (still < 1.0))
    assert tt.detail_error(0 * batch.truth[:, 1], batch) == pytest.approx(1.0)


def test_a_few_steps_learn_what_the_plain_step_leaves(tmp_path: Path) -> None:
    """The truth is half of what the step says: the network finds out."""
    train, _ = examples(64)
    half = train.start + 0.5 * (train.truth - train.start)
    train = Examples(**{**vars(train), "truth": half})
    stage = tt.PriorStage(Network(PRESETS["tiny"]), Schedule(1, batch=32), train, train)
    with torch.no_grad():
        before = stage.validate()
    optimiser = torch.optim.AdamW(stage.module.parameters(), lr=5e-3)
    for step in range(40):
        optimiser.zero_grad()
        stage.loss(step).backward()
        optimiser.step()
    with torch.no_grad():
        after = stage.validate()
    assert before["plain_step"] == after["plain_step"]
    assert after["learned"] < 0.9 * before["plain_step"]


@pytest.mark.parametrize("pure", [True, False])
def test_the_attention_decoder_starts_at_its_guess_and_learns(pure: bool) -> None:
    """Half of the guess is the truth: a few steps find out, and no frozen weight moves."""
    network = Network(replace(PRESETS["tiny"], image_px=8, self_layers=1, encoder_layers=2, fused_layers=(1, 2)))
    given, _ = examples(24)
    seen = tt.looks(network.eval(), given)
    prepared = tt.prepared(network, given, seen, pure)
    truth = torch.stack([given.truth[:, 0], 0.5 * prepared.guess, given.truth[:, 2]], dim=1)
    prepared = replace(prepared, examples=replace(given, truth=truth))
    stage = tt.AttentionStage(network, Schedule(1, batch=24), prepared, prepared, pure)
    frozen = [p.clone() for part in (network.depth, network.prior) for p in part.parameters()]
    with torch.no_grad():
        before = stage.validate()
    assert before["decoded"] == pytest.approx(before["guess"], abs=1e-4)
    assert pure == (before["guess"] == pytest.approx(before["interpolation"]))
    optimiser = torch.optim.AdamW(stage.module.parameters(), lr=3e-3)
    for step in range(30):
        optimiser.zero_grad()
        stage.loss(step).backward()
        optimiser.step()
    with torch.no_grad():
        assert stage.validate()["decoded"] < 0.7 * before["decoded"]
    for was, now in zip(frozen, [p for part in (network.depth, network.prior) for p in part.parameters()]):
        assert torch.equal(was, now)


def test_a_mirrored_look_is_the_look_at_the_mirrored_world() -> None:
    """Pictures flipped and the lever arm's x with its sign changed; mirroring that again gives the first look."""
    torch.manual_seed(0)
    network, (batch, _) = Network(PRESETS["tiny"]).eval(), examples(16)
    side = PRESETS["tiny"].image_px
    pictures = torch.randint(0, 255, (16, side, side), dtype=torch.uint8)
    batch = replace(batch, picture=pictures, camera=torch.rand(16, 8), clip=torch.arange(16) // 8)
    other = replace(batch, picture=pictures.flip(2), camera=batch.camera * torch.tensor([1, 1, 1, 1, -1, 1, 1, 1]))
    seen, turned = tt.looks(network, batch), tt.looks(network, other)
    for a, b in ((seen.frame, turned.frame), (seen.depth, turned.depth)):
        torch.testing.assert_close(a[1], b[0])
        torch.testing.assert_close(a[0], b[1])
    assert not torch.allclose(seen.frame[0], seen.frame[1])


def test_examples_survive_the_disk(tmp_path: Path) -> None:
    batch, _ = examples(3)
    save_examples(tmp_path / "a.safetensors", batch)
    again = load_examples(tmp_path / "a.safetensors")
    assert torch.equal(again.pictures, batch.pictures)
    assert again.names == batch.names
    assert len(again[torch.tensor([2, 0])]) == 2
    with pytest.raises(BagError, match="do not exist"):
        load_examples(tmp_path / "b.safetensors")
