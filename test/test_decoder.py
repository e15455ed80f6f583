"""The learned Gauss–Newton layer: what it reduces to, and what its weights do."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.linalg import cho_factor, cho_solve

from perspblur_ros import decoder as dc
from perspblur_ros import detail_basis as db
from perspblur_ros import so3
from perspblur_ros.bspline import KnotGrid
from perspblur_ros.camera import Camera
from perspblur_ros.decoder_stage import DecoderStage
from perspblur_ros.errors import EngineError
from perspblur_ros.motion_prior import knot_precision
from perspblur_ros.spline_state import SplineState

CAMERA = Camera(640, 480, 600, 600, 319.5, 239.5)
EXPOSURE_S, PERIOD_S = 0.055, 0.06
PLAIN = tuple(output[0] for output in dc.untrained(np.zeros(0, np.float32)))


def window(lever_arm_m: np.ndarray | None = None) -> dc.Window:
    """Eight frames of a gentle motion; tracks that know the frames' means and little else."""
    mid_s = PERIOD_S * np.arange(8)
    grid = KnotGrid.covering(mid_s[0] - 0.05, mid_s[-1] + 0.05, 0.015)
    t = grid.centres_s
    c = 0.02 * np.stack([np.sin(9 * t), np.cos(7 * t), np.sin(5 * t + 1)], axis=1)
    t_grid = KnotGrid.covering(t[0], t[-1], 0.15)
    none = np.zeros(0)
    state = SplineState(grid, c, t_grid, np.zeros((t_grid.count, 3)), none.astype(int), none.reshape(0, 2), none, 0.2,
                        lever_arm_m)
    means = grid.mean_rows(mid_s, EXPOSURE_S)
    Q = knot_precision(grid.count, grid.spacing_s) / 0.2**2
    n = c.size + (0 if lever_arm_m is not None else state.d.size)

    def information(sd_rad: float) -> np.ndarray:
        out = 100.0 * np.eye(n)
        out[: c.size, : c.size] += np.kron(Q + means.T @ means / sd_rad**2, np.eye(3))
        return out

    return dc.Window(
        state, state, information(1e-4), information(1e-3), mid_s, so3.exp(means @ c), CAMERA, EXPOSURE_S, PERIOD_S,
        readout_s=0.01, blur_px=12.0, scale=2, sigma_px=0.3, energy=0.5, tracks=200,
    )


def photometry(w: dc.Window, moved: np.ndarray, strength: float = 1e6) -> dc.Photometry:
    """Pictures that see the knots ``moved`` from where the spline is, through as many random looks as knots."""
    n = len(w.information)
    J = np.random.default_rng(0).standard_normal((2 * n, n)) * np.sqrt(strength / n)
    x = np.zeros(n)
    x[: moved.size] = moved.ravel()
    return dc.Photometry(J.T @ J, -J.T @ (J @ x), 1.0, 8.0, 0.12, 150)


def network(*outputs: np.ndarray) -> dc.Network:
    def run(geometry: np.ndarray) -> tuple[np.ndarray, ...]:
        assert geometry.shape == (1, 3 * dc.FEATURES)
        assert np.isfinite(geometry).all()
        return tuple(np.asarray(o, np.float32)[None] for o in outputs)

    return run  # type: ignore[return-value]


def smooth_move(w: dc.Window) -> np.ndarray:
    t = w.state.grid.centres_s[:, None]
    return 2e-3 * np.sin(60 * t + [0.0, 1.0, 2.0])


@pytest.mark.parametrize("lever_arm_m", [None, np.array([0.0, -0.1, 0.1])])
def test_untrained_it_is_the_plain_gauss_newton_step(lever_arm_m: np.ndarray | None) -> None:
    w = window(lever_arm_m)
    seen = photometry(w, smooth_move(w), strength=1e5)
    decoded = dc.decode(w, seen, network(*PLAIN))
    step = -cho_solve(cho_factor(seen.H + w.trusted), seen.g)
    n_rot = w.state.c.size
    assert np.allclose(decoded.state.c.ravel(), w.state.c.ravel() + step[:n_rot], atol=2e-5)
    if lever_arm_m is None:
        assert np.allclose(decoded.state.d.ravel(), step[n_rot:], atol=2e-5)


def test_from_elsewhere_it_leads_to_the_same_place() -> None:
    """The spline's own pull is kept when the step starts away from it; the pictures here are linear."""
    w = window()
    move = smooth_move(w)
    at_spline = photometry(w, move, strength=1e5)
    away = replace(w, start=replace(w.state, c=w.state.c + 0.3 * move))
    x = np.zeros(len(w.information))
    x[: move.size] = 0.3 * move.ravel()
    seen = at_spline._replace(g=at_spline.g + at_spline.H @ x)
    a, b = dc.decode(w, at_spline, network(*PLAIN)), dc.decode(away, seen, network(*PLAIN))
    assert np.allclose(a.state.c, b.state.c, atol=2e-5)
    assert np.abs(a.state.c - w.state.c).max() > 5e-4


def test_coefficients_are_those_of_the_moved_spline() -> None:
    w = window()
    decoded = dc.decode(w, photometry(w, smooth_move(w)), network(*PLAIN))
    k = len(w.mid_s) - 3
    R = decoded.state.rotation(w.mid_s[k] + db.sample_offsets_s(EXPOSURE_S))
    assert np.allclose(decoded.coefficients, db.coefficients(R, db.pixel_units(CAMERA)), atol=0.03)
    assert np.all(decoded.sd > 0)
    assert decoded.sd.shape == (db.ORDERS, 3)


def test_good_pictures_tell_the_path() -> None:
    w = window()
    move = smooth_move(w)
    decoded = dc.decode(w, photometry(w, move, strength=1e9), network(*PLAIN))
    inside = slice(8, -8)
    assert np.allclose(decoded.state.c[inside] - w.state.c[inside], move[inside], atol=1e-4)


def test_without_weight_pictures_say_nothing() -> None:
    w = window()
    deaf = (PLAIN[0], PLAIN[1], np.tile([-8.0, 0.0, -8.0], 3))
    weak = photometry(w, smooth_move(w), strength=1e3)
    decoded, plain = (dc.decode(w, weak, network(*outputs)) for outputs in (deaf, PLAIN))
    spline = db.coefficients(w.state.rotation(w.mid_s[-3] + db.sample_offsets_s(EXPOSURE_S)), db.pixel_units(CAMERA))
    assert np.abs(decoded.coefficients - spline).max() < 0.02 * np.abs(plain.coefficients - spline).max()


def test_a_confident_network_is_obeyed() -> None:
    w = window()
    mean = np.zeros((3, dc.FRAMES, db.ORDERS))
    mean[1, 1, 0] = 2.0
    decoded = dc.decode(w, photometry(w, 0 * smooth_move(w), strength=1.0),
                        network(mean.ravel(), np.full(3 * dc.COEFFICIENTS, -5.0), PLAIN[2]))
    reduced = dc.reduce(w, photometry(w, 0 * smooth_move(w), strength=1.0))[0]
    moved = (decoded.coefficients - reduced.start[1]) / reduced.scale_px
    assert moved[0, 1] == pytest.approx(2.0, rel=0.02)
    assert np.abs(np.delete(moved.ravel(), 1)).max() < 0.02


def test_an_engine_that_fails_ends_the_learned_step_not_the_stream() -> None:
    def fail(graph, inputs):
        raise EngineError("the GPU is lost")

    prior = SimpleNamespace(inputs={"geometry": (1, 3 * dc.FEATURES)})
    engine = SimpleNamespace(manifest=SimpleNamespace(graphs={"prior": prior}), run=fail)
    stage = DecoderStage(engine, dc.AFTER, Counter())
    assert stage.network is not None
    w = window()
    assert stage._decoded(0, w, photometry(w, smooth_move(w))) is None
    assert (stage.network, stage.failure) == (None, "the GPU is lost")


def test_features_mirror_with_the_motion() -> None:
    """Signed features change their sign with their own axis, all others stay."""
    w = window()
    w = replace(w, start=replace(w.state, c=w.state.c + 0.1 * smooth_move(w)))
    seen = photometry(w, smooth_move(w))
    reduced = dc.reduce(w, seen)[0]
    turned = replace(
        reduced, start=-reduced.start, interpolated=-reduced.interpolated, steps=-reduced.steps, mean=-reduced.mean,
        spline=-reduced.spline,
    )
    a, b = (dc.geometry(w, seen, r).reshape(3, dc.FEATURES) for r in (reduced, turned))
    assert np.allclose(a[:, : dc.SIGNED], -b[:, : dc.SIGNED])
    assert np.allclose(a[:, dc.SIGNED :], b[:, dc.SIGNED :])
    assert np.abs(a[:, : dc.SIGNED]).max() > 0.1
