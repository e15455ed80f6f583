"""Training: what clips are made of, simulated measurements, reproducible batches, resume."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import least_squares

pytest.importorskip("matplotlib")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402

from perspblur_ros.camera import Camera  # noqa: E402
from perspblur_ros.displacement import J_rotation, J_translation, displacement_first_order  # noqa: E402
from perspblur_ros.errors import ConfigError  # noqa: E402
from perspblur_ros.model.checkpoint import load_checkpoint  # noqa: E402
from perspblur_ros.model.network import Network  # noqa: E402
from perspblur_ros.model.presets import preset  # noqa: E402
from perspblur_ros.sim.evaluation_set import TEST  # noqa: E402
from perspblur_ros.training import clips as clips_module  # noqa: E402
from perspblur_ros.training import depth, loop, measurement, scenes  # noqa: E402

UNIT = Camera(3, 3, 1.0, 1.0, 0.0, 0.0)
SIZES = clips_module.ClipSizes(frames=4, size=32, depth_size=16, subframes=2)
LEVER = np.array([0.05, -0.15, 0.2])


@pytest.fixture(scope="module")
def material():
    return scenes.load_material(None, "train")


def geometry(seed: int, n: int = 80, frames: int = 6):
    rng = np.random.default_rng(seed)
    rays = rng.uniform(-0.6, 0.6, (n, 2))
    rho = 0.6 + 0.25 * np.sin(3 * rays[:, 0]) + 0.1 * rng.standard_normal(n)
    return rng, rays, rho, np.cumsum(rng.normal(0, 0.04, (frames, 3)), axis=0)


def test_nothing_trains_on_a_place_or_recording_of_the_test_split():
    places = {recipe.place.split("/")[0] for recipe in TEST}
    recordings = {recipe.gyro for recipe in TEST}
    for split in scenes.SPLITS:
        assert not places & {*scenes.RGBD_PLACES[split], *scenes.PHOTOGRAPHS[split], *scenes.SCIKIT_IMAGE[split]}
        assert not recordings & set(scenes.RECORDINGS[split])
    for kind in (scenes.RGBD_PLACES, scenes.PHOTOGRAPHS, scenes.SCIKIT_IMAGE, scenes.RECORDINGS):
        assert not set(kind["train"]) & set(kind["validation"])


def test_every_training_source_states_a_licence():
    for entry in scenes.sources(None):
        assert entry["name"]
        assert entry["licence"]


def test_rays_have_the_displacement_of_the_mathematics():
    _, rays, rho, phi = geometry(1, n=7)
    np.testing.assert_allclose(measurement.J_phi(rays), J_rotation(UNIT, rays))
    np.testing.assert_allclose(measurement.J_centre(rays), J_translation(UNIT, rays))
    seen = measurement.simulate_sightings(
        np.random.default_rng(0), rays, rho, phi, LEVER, np.zeros_like(phi), 0.0, wrong=0.0, missing=0.0
    )
    expected = displacement_first_order(UNIT, rays[:, None], phi, rho[:, None], LEVER)
    np.testing.assert_allclose(seen.displacement, expected, atol=1e-12)


def test_the_joint_solution_is_the_minimum_of_its_cost(monkeypatch):
    """The Schur complement against a general solver on the same cost, without robust weights."""
    monkeypatch.setattr(measurement, "HUBER", 1e9)
    rng, rays, rho, phi = geometry(2, n=20, frames=3)
    noise = 1e-3
    seen = measurement.simulate_sightings(rng, rays, rho, phi, LEVER, np.zeros_like(phi), noise, 0.0, 0.0)
    found = measurement.solve(seen, LEVER, floor=noise * 10)  # a floor above the residuals: a fixed noise

    def residuals(x):
        turn, mean, r = x[:9].reshape(3, 3), x[9], x[10:]
        e = seen.displacement - displacement_first_order(UNIT, rays[:, None], turn, r[:, None], LEVER)
        prior = (mean - measurement.MEAN_RHO) / measurement.SCENE_SD_RHO
        return np.concatenate([e.ravel() / (10 * noise), (r - mean) / measurement.POINT_SD_RHO, [prior]])

    x = least_squares(residuals, np.concatenate([np.zeros(9), np.full(21, measurement.MEAN_RHO)]), xtol=1e-14)
    np.testing.assert_allclose(found.rho, x.x[10:], atol=2e-4)
    np.testing.assert_allclose(found.phi, x.x[:9].reshape(3, 3), atol=2e-5)
    covariance = np.linalg.inv(x.jac.T @ x.jac)[10:, 10:]
    np.testing.assert_allclose(found.covariance, covariance, rtol=0.02, atol=1e-5)


@pytest.mark.parametrize("seed", [3, 4])
def test_depth_is_found_with_its_scale_despite_wrong_and_missing_points(seed):
    rng, rays, rho, phi = geometry(seed, n=150, frames=11)
    seen = measurement.simulate_sightings(rng, rays, rho, phi, LEVER, np.zeros_like(phi), 4e-4, 0.05, 0.1)
    found = measurement.solve(seen, LEVER, floor=1e-5)
    ok = np.isfinite(found.rho)
    assert 0.7 < ok.mean() < 1.0
    error = found.rho[ok] / rho[ok] - 1
    assert np.median(np.abs(error)) < 0.05
    assert found.noise == pytest.approx(4e-4, rel=0.25)


def test_too_few_points_measure_nothing():
    rng, rays, rho, phi = geometry(5, n=10)
    seen = measurement.simulate_sightings(rng, rays, rho, phi, LEVER, np.zeros_like(phi), 1e-3)
    assert measurement.solve(seen, LEVER, 1e-4) is None


def test_a_layered_scene_has_depth_and_texture(material):
    image, inv_depth = scenes.layered_scene(np.random.default_rng(7), material.pictures, 96)
    assert image.shape == inv_depth.shape == (96, 96)
    assert inv_depth.min() > 0
    assert inv_depth.std() > 0.05
    assert 0.02 < image.std() < 0.5


def test_the_same_seed_gives_the_same_clip(material):
    def make():
        recipe = clips_module.draw(np.random.default_rng(11), material, SIZES)
        return clips_module.render([recipe], SIZES, seed=5)

    a, b = make(), make()
    assert a.image.shape == (1, 4, 1, 32, 32)
    assert a.log_depth.shape == (1, 16, 16)
    for name in ("image", "camera", "log_depth", "measured"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def test_without_a_known_lever_arm_nothing_is_measured(material):
    recipe = clips_module.draw(np.random.default_rng(11), material, SIZES)
    for lever, known in ((np.zeros(3), True), (LEVER, False)):
        clip = clips_module.render([replace(recipe, lever_arm_m=lever, lever_known=known)], SIZES, 0)
        assert clip.measured[:, 1].min() == 1e4
        assert clip.camera[0, 7] == known


def test_a_mirrored_clip_is_the_clip_of_the_mirrored_world(material):
    """Picture, path and lever arm mirrored by hand give the frames that mirroring the frames gives."""
    recipe = replace(
        clips_module.draw(np.random.default_rng(13), material, SIZES),
        full_well_e=1e12, gain=np.ones((3, 3), np.float32), jpeg_quality=0.0, lever_arm_m=LEVER, lever_known=True,
    )
    M = np.diag([-1.0, 1.0, 1.0])
    path = replace(recipe.path, R_ref_from_cam=M @ recipe.path.R_ref_from_cam @ M, pivot_m=recipe.path.pivot_m @ M)
    other = replace(
        recipe, image=recipe.image[:, ::-1].copy(), inv_depth=recipe.inv_depth[:, ::-1].copy(), path=path,
        lever_arm_m=M @ LEVER,
    )
    clip, mirrored = (clips_module.render([r], SIZES, 0) for r in (recipe, other))
    ours = depth.mirrored(clip)
    torch.testing.assert_close(ours.image, mirrored.image, atol=0.012, rtol=0)  # noise of rounding: 3 grey levels
    torch.testing.assert_close(ours.camera, mirrored.camera)
    assert (ours.log_depth - mirrored.log_depth).abs().mean() < 0.01


def test_a_larger_world_looks_the_same(material):
    recipe = clips_module.draw(np.random.default_rng(17), material, SIZES)
    recipe = replace(recipe, lever_arm_m=LEVER, lever_known=True)
    larger = replace(
        recipe, inv_depth=recipe.inv_depth / 2, lever_arm_m=2 * LEVER, pivot_m=2 * recipe.pivot_m,
        path=replace(recipe.path, pivot_m=2 * recipe.path.pivot_m),
    )
    clip, expected = (clips_module.render([r], SIZES, 0) for r in (recipe, larger))
    ours = depth.rescaled(clip, float(np.log(2)))
    torch.testing.assert_close(ours.image, expected.image, atol=0.005, rtol=0)
    torch.testing.assert_close(ours.camera, expected.camera)
    torch.testing.assert_close(ours.log_depth, expected.log_depth, atol=1e-4, rtol=0)


def test_a_batch_depends_on_its_step_alone(material):
    def pool():
        return depth.Pool(1, lambda index: depth.training_clip(index, 1, material, SIZES, torch.device("cpu")), 4, 2)

    first = pool()
    first.choice(0, 2)
    again = pool()
    for a, b in zip(first.choice(1, 2), again.choice(1, 2)):
        assert torch.equal(a.image, b.image)


class Toy:
    """The loop's stage in small: the depth head learns a constant."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        tiny = replace(preset("tiny"), image_px=16, encoder_width=8, encoder_layers=2, fused_layers=(1, 2), width=8)
        self.network = Network(replace(tiny, encoder_heads=2, heads=2, head_px=4, prior_width=8))
        self.module: torch.nn.Module = self.network.depth.head

    def own_error(self, tokens: torch.Tensor) -> torch.Tensor:
        measured = torch.ones(len(tokens), 2, 4, 4)
        return (self.network.depth.head(tokens, measured)[2] - 2).square().mean()

    def loss(self, step: int) -> torch.Tensor:
        return self.own_error(torch.randn(4, 4, 8, generator=torch.Generator().manual_seed(step)))

    def validate(self) -> dict[str, float]:
        return {"score": self.own_error(torch.zeros(1, 4, 8)).item()}


def small_network() -> Network:
    tiny = replace(
        preset("tiny"), image_px=32, encoder_width=16, encoder_layers=2, fused_layers=(1, 2), encoder_heads=2,
        width=16, heads=2, window_frames=2, clip_frames=4, self_layers=1, head_px=16,
    )
    torch.manual_seed(0)
    return Network(tiny)


@pytest.mark.parametrize("stage", [depth.DepthStage, depth.HeadStage])
def test_a_stage_learns_and_judges(material, monkeypatch, stage):
    monkeypatch.setattr(depth, "HEAD_CLIPS", 2)
    monkeypatch.setattr(depth, "VALIDATION_CLIPS", 8)
    plan = loop.Schedule(iterations=1, batch=2)
    if stage is depth.DepthStage:
        cpu = torch.device("cpu")
        pool = depth.training_pool(0, material, SIZES, cpu, size=2)
        made = depth.DepthStage(small_network(), plan, SIZES, pool, list(depth.validation_clips(material, SIZES, cpu)))
    else:
        made = depth.HeadStage(small_network(), plan, {"train": material, "validation": material}, SIZES)
    encoder = next(made.network.depth.encoder.layers.parameters())
    made.loss(0).backward()
    assert (encoder.grad is not None) == (stage is depth.DepthStage)
    assert made.network.depth.head.own.weight.grad.abs().sum() > 0
    with torch.inference_mode():
        numbers = made.validate()
    error = numbers["error" if stage is depth.HeadStage else "score"]
    assert numbers["base_score"] == pytest.approx(error, abs=1e-6)  # the correction starts at zero
    if stage is depth.HeadStage:
        assert numbers["score"] == pytest.approx(error + numbers["deviation"])
    assert 0 <= numbers["within"] <= 1
    assert 0 < numbers["closed_form"] < 10
    assert 0 <= numbers["own_delta1"] <= 1
    assert numbers["fused_delta1"] > 0.2  # a clip is 16 × 16 depths and a hundred tracks


@pytest.mark.parametrize("tails", [2.0, 30.0])
def test_the_learned_deviation_has_a_gaussians_share_of_the_errors(tails):
    """The loss is least where 0.683 of the errors are within one deviation, whatever the tails."""
    errors = torch.from_numpy(np.random.default_rng(3).standard_t(tails, 20_000))
    sds = torch.linspace(0.5, 2.0, 151, dtype=torch.float64)
    losses = torch.stack([depth.quantile_loss(errors, 2 * sd.log()).mean() for sd in sds])
    assert (errors.abs() < sds[losses.argmin()]).double().mean() == pytest.approx(0.683, abs=0.01)


PLAN = loop.Schedule(iterations=12, learning_rate=3e-2, warm_up=2, ema=0.5, validate_every=4)


def quiet(_: str) -> None:
    pass


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "draw_curves", lambda path, history: None)
    whole = Toy()
    best = loop.train(whole, PLAN, tmp_path / "whole", report=quiet)
    interrupted = loop.train(Toy(), PLAN, tmp_path / "parts", minutes=0.0, report=quiet)
    assert interrupted["step"] == 0
    half = Toy()
    run = loop._Run(half, PLAN, tmp_path / "parts", "toy", {})
    run.restore()
    for _ in range(8):
        run.advance()
    run.validate()
    resumed = Toy()
    assert loop.train(resumed, PLAN, tmp_path / "parts", resume=True, report=quiet)["score"] == best["score"]
    for a, b in zip(whole.module.parameters(), resumed.module.parameters()):
        assert torch.equal(a, b)
    kept = Toy()
    kept.network, summary = load_checkpoint(tmp_path / "parts" / "best.safetensors")
    assert summary["training"]["step"] == best["step"]
    assert kept.validate()["score"] == pytest.approx(best["score"])


class Forgetful(Toy):
    """With dropout; ``dies_at`` a step in the middle."""

    def __init__(self, dies_at: int = -1) -> None:
        super().__init__()
        self.dies_at = dies_at

    def loss(self, step: int) -> torch.Tensor:
        if step == self.dies_at:
            raise KeyboardInterrupt
        return super().loss(step) * torch.nn.functional.dropout(torch.ones(50), 0.5).mean()


def test_a_run_that_was_killed_between_validations_loses_nothing_that_was_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "draw_curves", lambda path, history: None)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    loop.train(Forgetful(), PLAN, whole, report=quiet)
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        loop.train(Forgetful(dies_at=7), PLAN, parts, report=quiet)
    resumed = Forgetful()
    steps = []
    monkeypatch.setattr(resumed, "loss", lambda step: (steps.append(step), Forgetful.loss(resumed, step))[1])
    torch.manual_seed(99)  # another process
    loop.train(resumed, PLAN, parts, resume=True, report=quiet)
    assert steps == [7, 8, 9, 10, 11]
    states = [load_file(folder / "state.safetensors") for folder in (whole, parts)]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_curves_are_drawn(tmp_path):
    loop.write_history(tmp_path, [{"step": k, "seconds": k, "loss": 1 / (k + 1), "score": 2.0} for k in range(3)])
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert (tmp_path / "history.csv").read_text(encoding="utf-8").splitlines()[0] == "step,seconds,loss,score"


def test_a_worse_validation_does_not_replace_the_best(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "draw_curves", lambda path, history: None)
    stage = Toy()
    scores = iter([0.5, 0.2, 0.9, 0.8])
    stage.validate = lambda: {"score": next(scores)}  # type: ignore[method-assign]
    assert loop.train(stage, PLAN, tmp_path, report=quiet)["score"] == 0.2


@pytest.mark.parametrize(
    ("text", "says"),
    [("a: 1", "names no preset"), ("preset: [", "not valid YAML")],
)
def test_a_bad_configuration_is_refused(tmp_path, text, says):
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=says):
        loop.load_config(path)


def test_an_unknown_setting_is_refused():
    with pytest.raises(ConfigError, match="unknown training setting speed"):
        loop.schedule({"iterations": 1, "speed": 2})
    with pytest.raises(ConfigError, match="how many iterations"):
        loop.schedule({})
