"""Clips for the trajectory's training: what they are made of, that seeds decide, that truth and pipeline agree."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from scipy.interpolate import Akima1DInterpolator

pytest.importorskip("torch")

from perspblur_ros import decoder as dc
from perspblur_ros.evaluation.paper_tables import DEPTH_CLIPS
from perspblur_ros.sim import render as sr
from perspblur_ros.sim.evaluation_set import TEST
from perspblur_ros.sim.scene import Scene, procedural
from perspblur_ros.training import trajectory_clips as tc
from perspblur_ros.training.examples import gathered

FRAMES = 10


class Room:
    """Material that needs no data folder: one room, and hands that turn about all axes."""

    places = ("room",)

    def __init__(self, split: str = "train") -> None:
        self.split = split

    def scene(self, place: str) -> Scene:
        return procedural(2, 640, 480, 400.0)

    def recording(self, name: str):
        t = np.arange(0, 8, 0.004)
        rates = np.stack([np.sin(11 * t), 1.3 * np.cos(8 * t + 1), 0.5 * np.sin(6 * t + 2)], axis=1)
        return t, Akima1DInterpolator(t, rates)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(tc, "WIDTH", 320)
    monkeypatch.setattr(tc, "HEIGHT", 240)
    monkeypatch.setattr(tc, "FRAMES", FRAMES)


@cache
def clip(seed: int = 2) -> tc.Clip:
    drawn = tc.draw(seed, Room())
    assert drawn is not None
    return drawn


def test_no_clip_is_made_of_the_test_split_and_validation_is_apart() -> None:
    recipes = (*TEST, *(clip.recipe for clip in DEPTH_CLIPS))
    held_out = {recipe.place.split("/")[0] for recipe in recipes} | {recipe.gyro for recipe in recipes}
    for kind in (tc.PLACES, tc.RECORDINGS):
        assert not held_out & {*kind["train"], *kind["validation"]}
        assert not set(kind["train"]) & set(kind["validation"])


def test_the_seed_and_the_split_decide() -> None:
    once, again, other = clip(), tc.draw(2, Room()), tc.draw(2, Room("validation"))
    np.testing.assert_array_equal(once.frames, again.frames)
    np.testing.assert_array_equal(once.path.R_ref_from_cam, again.path.R_ref_from_cam)
    assert other is None or other.exposure_s != once.exposure_s


def test_the_quick_renderer_sees_what_the_exact_one_sees() -> None:
    c = clip()
    scene = procedural(5, 640, 480, 400.0).grey()
    view = sr.prepare(scene, c.camera)
    shutter = (c.exposure_s, c.readout_s, c.lever_arm_m)
    exact = sr.render_frame(view, c.path, tc.LEAD_S, *shutter, n_subframes=tc.MAX_SUBFRAMES)
    quick, later = (tc._frame(view, c.path, t, *shutter) for t in (tc.LEAD_S, tc.LEAD_S + 0.02))
    assert np.abs(quick - exact).mean() < 0.1 * np.abs(later - exact).mean()


@pytest.mark.parametrize("seed", [2, 7])
def test_what_the_pipeline_saw_has_its_own_truth(seed: int) -> None:
    """On an easy clip the spline of the tracks is near to the truth of its own frame, and of no neighbour."""
    c = clip(seed)
    examples = gathered(list(tc.rows(c, number=7)), [(c.place, c.recording)])
    assert len(examples) == FRAMES - dc.BEFORE - dc.AFTER
    assert set(examples.clip.tolist()) == {7}

    def off(neighbour: int) -> np.ndarray:
        error = examples.spline - examples.truth[:, 1 + neighbour]
        return (error.norm(dim=(1, 2)) / examples.truth[:, 1].norm(dim=(1, 2))).numpy()

    assert off(0).max() < 0.15
    assert min(np.median(off(-1)), np.median(off(1))) > 0.4
    for name in ("geometry", "pictures", "pull", "start", "interpolated"):
        assert np.isfinite(getattr(examples, name).numpy()).all(), name
