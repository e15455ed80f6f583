"""Clips: stamps, truth, determinism, the bag that comes of it, and the evaluation set's table."""

from __future__ import annotations

import numpy as np
import pytest

from perspblur_ros import so3
from perspblur_ros.errors import BagError, ConfigError
from perspblur_ros.evaluation.bags import BagReader
from perspblur_ros.evaluation.clips import write_simulated
from perspblur_ros.sim import evaluation_set
from perspblur_ros.sim.clips import SimulatedClip, centre_blur_px, simulate_clip
from perspblur_ros.sim.hand_motion import hand_motion
from perspblur_ros.sim.motion import constant_rate
from perspblur_ros.sim.scene import procedural, view_camera

SCENE = procedural(0, 240, 180, 160.0)
CAMERA = view_camera(SCENE, 80, 60)
PATH = hand_motion(1, 0.6, rate_rms_rad_s=1.0)


def small_clip(seed: int = 0, n_frames: int = 4, **changes: float) -> SimulatedClip:
    timing = {"fps": 20.0, "exposure_s": 0.03, "readout_s": 0.01, "start_s": 0.1, **changes}
    return simulate_clip(SCENE, PATH, CAMERA, n_frames, lever_arm_m=(0.0, -0.1, 0.2), seed=seed, **timing)


@pytest.fixture(scope="module")
def clip() -> SimulatedClip:
    return small_clip()


def test_frames_and_stamps(clip):
    assert [f.shape for f in clip.frames] == [(60, 80)] * 4
    assert all(f.dtype == np.uint8 for f in clip.frames)
    assert np.diff(clip.stamps_ns).tolist() == [50_000_000] * 3
    assert clip.depth_m.shape == (60, 80)
    assert clip.depth_m.dtype == np.float32


def test_truth_covers_every_exposure_at_500_hz(clip):
    assert np.diff(clip.truth_ns).tolist() == [2_000_000] * (len(clip.truth_ns) - 1)
    assert clip.truth_ns[0] <= clip.stamps_ns[0]
    assert clip.truth_ns[-1] >= clip.stamps_ns[-1] + 40_000_000


def test_truth_is_the_path(clip):
    t_s = 0.1 + (clip.truth_ns - clip.stamps_ns[0]) * 1e-9
    R = PATH.rotation(t_s)
    np.testing.assert_allclose(so3.from_quat_xyzw(clip.q_start_from_cam), R[0].T @ R, atol=1e-9)
    np.testing.assert_allclose(clip.omega, PATH.rate(t_s), atol=1e-9)
    np.testing.assert_allclose(clip.q_start_from_cam[0], [0, 0, 0, 1], atol=1e-12)


def test_the_same_seed_gives_the_same_clip(clip):
    again, other = small_clip(), small_clip(seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(clip.frames, again.frames))
    assert not np.array_equal(clip.frames[0], other.frames[0])


def test_blur_of_a_steady_turn():
    assert centre_blur_px(constant_rate((0.3, 0.4, 5.0), 1.0), CAMERA, 0.1, 0.03, 0.01) == pytest.approx(
        CAMERA.focal_px * 0.5 * 0.03
    )


def test_colour_scenes_give_colour_frames():
    colour = np.repeat(SCENE.image[..., None], 3, axis=2) * np.array([1.0, 0.5, 0.2], np.float32)
    scene = type(SCENE)(colour, SCENE.depth_m, SCENE.camera)
    frame = simulate_clip(scene, PATH, CAMERA, 1, 20.0, 0.03, 0.0).frames[0]
    assert frame.shape == (60, 80, 3)
    assert frame[..., 0].mean() > frame[..., 1].mean() > frame[..., 2].mean()


def test_progress_is_told():
    told: list[int] = []
    simulate_clip(SCENE, PATH, CAMERA, 3, 20.0, 0.03, 0.0, on_frame=told.append)
    assert told == [1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_frames": 0}, "0 frames"),
        ({"fps": 0.0}, "frame rate 0"),
        ({"fps": float("nan")}, "frame rate nan"),
        ({"exposure_s": 0.06}, "exposure 0.06 s"),
        ({"exposure_s": 0.0}, r"exposure 0\.0 s"),
        ({"readout_s": -0.01}, "readout -0.01 s"),
        ({"start_s": 0.5}, "of a path of 0.6"),
        ({"start_s": -0.1}, "needs -0.1"),
    ],
)
def test_clips_that_cannot_be(changes, said):
    with pytest.raises(ConfigError, match=said):
        small_clip(**changes)


def test_a_clip_goes_into_a_bag_and_comes_out(clip, tmp_path):
    write_simulated(clip, tmp_path / "bag")
    with BagReader(tmp_path / "bag") as reader:
        frames = list(reader.frames())
        truth = reader.truth()
        assert [f.stamp_ns for f in frames] == clip.stamps_ns.tolist()
        np.testing.assert_array_equal(frames[2].image, clip.frames[2])
        np.testing.assert_array_equal(truth.stamp_ns, clip.truth_ns)
        np.testing.assert_allclose(truth.omega, clip.omega)
    text = (tmp_path / "bag" / "params.yaml").read_text(encoding="utf-8")
    assert "exposure_s: 0.03" in text
    assert "lever_arm" in text


def test_splits_share_no_recording_and_no_place():
    def used(split: str) -> tuple[set[str], set[str]]:
        recipes = evaluation_set.recipes(split)
        return {r.gyro.replace("phone1", "phone0") for r in recipes}, {r.place.split("/")[0] for r in recipes}

    (dev_gyro, dev_places), (test_gyro, test_places) = used("dev"), used("test")
    assert not dev_gyro & test_gyro
    assert not dev_places & test_places


def test_the_test_split_is_as_broad_as_the_tables_say():
    recipes = evaluation_set.recipes("test")
    long_exposures = [r for r in recipes if r.group == "60ms"]
    assert len(long_exposures) >= 8
    assert len({r.gyro for r in long_exposures}) >= 4
    assert len({r.place.split("/")[0] for r in long_exposures}) >= 6
    assert all(r.blur_px >= 5 for r in long_exposures)
    assert all(0.1 <= np.linalg.norm(r.lever_arm_m) <= 0.3 for r in recipes)
    assert len({r.name for r in recipes}) == len(recipes)


def test_a_split_that_is_none():
    with pytest.raises(ConfigError, match="split 'train'"):
        evaluation_set.recipes("train")


def test_data_that_is_not_there(tmp_path):
    with pytest.raises(BagError, match="does not exist"):
        next(evaluation_set.iter_clips("test", tmp_path / "none"))
    with pytest.raises(BagError, match="no picture"):
        evaluation_set.load_place("tum_desk_open3d/0", tmp_path)


@pytest.mark.data
@pytest.mark.parametrize("recipe", [*evaluation_set.DEV, *evaluation_set.TEST], ids=lambda r: r.name)
def test_every_recipe_has_its_data(recipe, data_dir):
    """The stretch exists, has the stated blur, and the depth is where the folder's index says."""
    scene = evaluation_set.load_place(recipe.place, data_dir)
    camera = view_camera(scene, evaluation_set.WIDTH, evaluation_set.HEIGHT, recipe.margin)
    path = evaluation_set.scaled_path(recipe, camera, data_dir)
    timing = evaluation_set.GROUPS[recipe.group]
    assert evaluation_set.blur_lengths_px(path, camera, timing).mean() == pytest.approx(recipe.blur_px, rel=1e-3)
    assert path.duration_s >= timing.duration_s
    assert 0.1 < np.median(scene.depth_m) < 100.0
