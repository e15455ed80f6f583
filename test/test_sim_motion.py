"""Paths: exact integration, interpolation, gyro recordings and the hand-motion model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perspblur_ros import so3
from perspblur_ros.errors import BagError, ConfigError
from perspblur_ros.sim import hand_motion as hand
from perspblur_ros.sim.motion import (
    STEP_S,
    axis_matrix,
    constant_rate,
    from_gyro_csv,
    from_rates,
    read_gyro_csv,
    time_grid,
)

rates = st.tuples(*[st.floats(-5, 5)] * 3).map(np.array)


@given(rates, st.floats(0.01, 0.5))
def test_a_steady_turn_is_the_exponential(omega, duration_s):
    path = constant_rate(omega, duration_s)
    t = np.linspace(0, path.duration_s, 7)
    np.testing.assert_allclose(path.rotation(t), so3.exp(omega * t[:, None]), atol=1e-9)
    np.testing.assert_allclose(path.rate(t), np.broadcast_to(omega, (7, 3)), atol=1e-12)


def test_coning_matches_its_closed_form():
    """A body whose axis circles: R = exp(z Ω t) exp(x a) exp(−z Ω t) has the body rate Ω (Rᵀ z − z)."""
    turn, tilt = 2 * np.pi * 3, 0.2
    t = time_grid(1.0)
    zero = np.zeros_like(t)
    about_z = so3.exp(np.stack([zero, zero, turn * t], axis=1))
    R = about_z @ so3.exp([tilt, 0, 0]) @ np.swapaxes(about_z, -1, -2)
    path = from_rates(t, turn * (R[:, 2] - [0.0, 0.0, 1.0]))
    error = so3.log(np.swapaxes(R[0].T @ R, -1, -2) @ path.R_ref_from_cam)
    assert np.abs(error).max() < 5e-5


def test_the_rate_is_the_derivative_of_the_rotation():
    path = hand.hand_motion(3, 1.0, rate_rms_rad_s=2.0)
    t, h = 0.1 + STEP_S * (np.arange(0, 800, 16) + 0.5), 1e-5
    slope = so3.log(np.swapaxes(path.rotation(t - h), -1, -2) @ path.rotation(t + h)) / (2 * h)
    np.testing.assert_allclose(slope, path.rate(t), atol=1e-6)


def test_a_path_is_held_beyond_its_ends():
    path = constant_rate((0, 1, 0), 0.1)
    np.testing.assert_allclose(path.rotation([-1.0, 5.0]), path.R_ref_from_cam[[0, -1]], atol=1e-12)


def test_centring_changes_the_reference_but_not_the_motion():
    path = hand.hand_motion(1, 1.0, 1.0, pivot_speed_rms_m_s=0.1)
    centred = path.centred(0.2, 0.8)
    np.testing.assert_array_equal(centred.omega, path.omega)
    relative = [np.swapaxes(p.rotation(0.3), -1, -2) @ p.rotation([0.1, 0.9]) for p in (path, centred)]
    np.testing.assert_allclose(relative[0], relative[1], atol=1e-9)
    step = [np.swapaxes(p.rotation(0.3), -1, -2) @ (p.pivot(0.9) - p.pivot(0.1)) for p in (path, centred)]
    np.testing.assert_allclose(step[0], step[1], atol=1e-9)
    inside = centred.rotation(np.linspace(0.2, 0.8, 601))
    assert np.abs(so3.log(so3.mean(inside))).max() < 1e-4
    assert np.abs(centred.pivot(np.linspace(0.2, 0.8, 601)).mean(axis=0)).max() < 1e-4


def test_reversing_twice_is_nothing():
    path = hand.hand_motion(1, 0.3, 1.0)
    backwards = path.reversed()
    np.testing.assert_allclose(backwards.rotation(0.1), path.rotation(path.duration_s - 0.1), atol=1e-12)
    np.testing.assert_allclose(backwards.rate(0.1), -path.rate(path.duration_s - 0.1))
    np.testing.assert_array_equal(backwards.reversed().omega, path.omega)


def write_gyro(path: Path, t_s: np.ndarray, omega: np.ndarray) -> Path:
    lines = [f"{t:.6f},{w[0]:.9g},{w[1]:.9g},{w[2]:.9g}" for t, w in zip(t_s, omega)]
    path.write_text("t_s,wx_rad_s,wy_rad_s,wz_rad_s\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def smooth_rates(t_s: np.ndarray) -> np.ndarray:
    return np.stack([np.sin(7 * t_s), 0.5 * np.cos(11 * t_s), 0.3 * np.sin(19 * t_s)], axis=1)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Two seconds at 200 Hz that begin at t = 50 s."""
    t = 50.0 + np.arange(401) / 200.0
    return write_gyro(tmp_path / "gyro.csv", t, smooth_rates(t - 50.0))


def test_a_recording_is_interpolated_smoothly(recording):
    path = from_gyro_csv(recording, start_s=0.5, duration_s=1.0)
    np.testing.assert_allclose(path.omega, smooth_rates(0.5 + path.t_s), atol=2e-3)
    assert path.duration_s == pytest.approx(1.0)


def test_the_whole_recording_is_the_default(recording):
    assert from_gyro_csv(recording).duration_s == pytest.approx(2.0)


def test_axes_amplitude_and_mean(recording):
    plain = from_gyro_csv(recording, 0.2, 1.0)
    turned = from_gyro_csv(recording, 0.2, 1.0, axes="-y+x-z", amplitude=3.0)
    np.testing.assert_allclose(turned.omega, 3.0 * plain.omega[:, [1, 0, 2]] * [-1, 1, -1])
    assert np.abs(from_gyro_csv(recording, 0.2, 1.0, remove_mean=True).omega.mean(axis=0)).max() < 1e-12


def test_axis_permutations_that_are_none():
    assert np.linalg.det(axis_matrix("-y-x-z")) == pytest.approx(1.0)
    for wrong in ("", "xyz", "+x+y+w", "+x+x+z", "*x+y+z", "+x+y+z+"):
        with pytest.raises(ConfigError, match="signed permutation"):
            axis_matrix(wrong)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("t,x,y,z\n" + "0.1,1,2\n" * 20, "four numbers per line"),
        ("t,x,y,z\n" + "".join(f"{k},a,0,0\n" for k in range(20)), "four numbers per line"),
        ("t,x,y,z\n0,0,0,0\n1,0,0,0\n", "2 samples"),
        ("t,x,y,z\n", "0 samples"),
        ("t,x,y,z\n" + "".join(f"{k},{'nan' if k == 5 else 0},0,0\n" for k in range(20)), "line 7"),
        ("t,x,y,z\n" + "".join(f"{k if k != 9 else 3},0,0,0\n" for k in range(20)), "back in time at line 11"),
    ],
)
def test_a_bad_recording_is_one_sentence(tmp_path, text, said):
    csv = tmp_path / "bad.csv"
    csv.write_text(text, encoding="utf-8")
    with pytest.raises(BagError, match=said) as caught:
        read_gyro_csv(csv)
    assert "bad.csv" in str(caught.value)


def test_a_recording_that_is_not_there(tmp_path):
    with pytest.raises(BagError, match="does not exist"):
        read_gyro_csv(tmp_path / "none.csv")


@pytest.mark.parametrize(("start_s", "duration_s"), [(1.5, 1.0), (-0.1, 1.0), (0.0, 0.0), (0.5, -1.0)])
def test_a_stretch_outside_the_recording(recording, start_s, duration_s):
    with pytest.raises(BagError, match=r"is not inside the 2\.00 s"):
        from_gyro_csv(recording, start_s, duration_s)


def test_a_gap_in_the_recording_is_refused_where_it_matters(tmp_path):
    t = np.concatenate([np.arange(200) / 200.0, 1.2 + np.arange(200) / 200.0])
    csv = write_gyro(tmp_path / "gap.csv", t, smooth_rates(t))
    with pytest.raises(BagError, match="gap of 205 ms"):
        from_gyro_csv(csv, 0.5, 1.0)
    assert from_gyro_csv(csv, 1.3, 0.5).duration_s == pytest.approx(0.5)


def test_the_same_seed_gives_the_same_hand():
    np.testing.assert_array_equal(hand.hand_motion(7, 0.2).omega, hand.hand_motion(7, 0.2).omega)
    assert not np.allclose(hand.hand_motion(7, 0.2).omega, hand.hand_motion(8, 0.2).omega)


def test_the_hand_has_the_asked_strength_and_spectrum(tmp_path):
    """A long random path, measured as the recordings are, has the model's spectrum and RMS."""
    path = hand.hand_motion(0, 120.0, rate_rms_rad_s=0.5)
    assert np.sqrt(np.mean(np.sum(path.omega**2, axis=1))) == pytest.approx(0.5, rel=0.1)
    csv = write_gyro(tmp_path / "hand.csv", path.t_s[::5], path.omega[::5])
    assert hand.residual_db(csv) < 1.0
    fitted = hand.fit_spectrum(csv)
    assert fitted.tremor_centre_hz == pytest.approx(hand.HAND.tremor_centre_hz, abs=1.0)
    assert fitted.tremor_share == pytest.approx(hand.HAND.tremor_share, abs=0.1)


def test_the_pivot_rests_unless_asked():
    assert not hand.hand_motion(0, 0.5).pivot_m.any()
    path = hand.hand_motion(0, 60.0, pivot_speed_rms_m_s=0.1)
    speed = np.linalg.norm(np.diff(path.pivot_m, axis=0), axis=1) / STEP_S
    assert np.sqrt(np.mean(speed**2)) == pytest.approx(0.1, rel=0.15)


@pytest.mark.parametrize(("duration_s", "rate", "speed"), [(0.0, 1.0, 0.0), (1.0, -1.0, 0.0), (1.0, 1.0, -0.1)])
def test_hands_that_cannot_be(duration_s, rate, speed):
    with pytest.raises(ConfigError):
        hand.hand_motion(0, duration_s, rate, speed)


def test_a_recording_at_rest_has_no_spectrum(tmp_path):
    t = np.arange(2000) / 200.0
    with pytest.raises(BagError, match="no moving piece"):
        hand.measured_density(write_gyro(tmp_path / "rest.csv", t, np.full((2000, 3), 1e-4)))


@pytest.mark.data
def test_the_shipped_hand_is_the_fit_to_the_recordings(data_dir):
    csvs = {name: data_dir / "gyro" / f"{name}.csv" for name in (*hand.FITTED_ON, *hand.CHECKED_ON)}
    fitted = hand.median_spectrum(hand.fit_spectrum(csvs[name]) for name in hand.FITTED_ON)
    for name, value in vars(fitted).items():
        assert getattr(hand.HAND, name) == pytest.approx(value, rel=0.01), name
    assert np.median([hand.residual_db(csvs[name]) for name in hand.CHECKED_ON]) < 5.5
