"""The stream: what comes out equals the network over the same frames as one clip, at a cost per frame that is fixed."""

from __future__ import annotations

import numpy as np
import pytest
from fake_engine import SIZES, FakeEngine, fake_manifest
from hypothesis import given, settings
from hypothesis import strategies as st

from perspblur_ros.engine.incremental import Incremental
from perspblur_ros.engine.interface import CAMERA_VALUES, UNMEASURED_VARIANCE
from perspblur_ros.errors import EngineError

S, T, PX, h = SIZES["window_frames"], SIZES["clip_frames"], SIZES["image_px"], SIZES["head_px"]
RNG = np.random.default_rng(0)
IMAGES = RNG.random((40, 3, PX, PX), dtype=np.float32)
CAMERA = RNG.random(CAMERA_VALUES, dtype=np.float32)
MEASURED = RNG.random((2, h, h), dtype=np.float32)


@pytest.fixture(scope="module")
def engine_of_module(tmp_path_factory):
    return FakeEngine(fake_manifest(tmp_path_factory.mktemp("net")))


@pytest.fixture
def engine(tmp_path):
    return FakeEngine(fake_manifest(tmp_path))


def batch(engine, images, measured):
    """Slow twin: the paper's Eqs. 5 to 7 over whole windows, nothing kept from before."""
    features = [engine.run("encoder", {"image": image[None]})["features"] for image in images]
    windows = [
        engine.run("window", {"features": np.stack(features[k : k + S], axis=1), "camera": CAMERA[None]})["window"]
        for k in range(0, len(images) - S + 1, S)
    ]
    refined = windows.pop()
    while windows:
        refined = engine.run("cross", {"earlier": windows.pop(), "later": refined})["refined"]
    return refined, engine.run("head", {"refined": refined, "measured": measured[None]})


def feed(stream, frames, segment=0):
    return [stream.add_frame(k, IMAGES[k], CAMERA, segment) for k in frames]


@pytest.mark.parametrize("n", [S, 2 * S + 1, T, T + S, T + 3 * S + 1])
def test_the_stream_equals_the_batch(engine, n):
    stream = Incremental(engine)
    feed(stream, range(n))
    end = n // S * S
    first = max(0, end - T)
    _, expected = batch(engine, IMAGES[first:end], MEASURED)
    depth = stream.depth(MEASURED)
    assert depth.frame == first
    assert depth.frames == end - first
    np.testing.assert_allclose(depth.log_depth, expected["log_depth"][0, 0], atol=1e-6)
    np.testing.assert_allclose(depth.log_variance, expected["log_variance"][0, 0], atol=1e-6)
    np.testing.assert_allclose(depth.own, expected["own"][0], atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, T + 2 * S), min_size=1, max_size=5))
def test_any_stream_with_gaps_ends_as_its_last_segment_alone(engine_of_module, lengths):
    stream = Incremental(engine_of_module)
    index = 0
    for segment, n in enumerate(lengths):
        frames = range(index, index + n)
        for k in frames:
            stream.add_frame(k, IMAGES[k % len(IMAGES)], CAMERA, segment)
        index += n + 1
    windows = len(frames) // S * S
    used = frames[max(0, windows - T) : windows]
    depth = stream.depth(MEASURED)
    assert (depth is None) == (not used)
    if depth is not None:
        _, expected = batch(engine_of_module, [IMAGES[k % len(IMAGES)] for k in used], MEASURED)
        np.testing.assert_allclose(depth.log_depth, expected["log_depth"][0, 0], atol=1e-6)
        assert (depth.frame, depth.frames) == (used[0], len(used))


def test_add_frame_names_the_frame_when_a_window_is_finished(engine):
    assert feed(Incremental(engine), range(T + S)) == [None, 0, None, 0, None, 0, None, 2]


@pytest.mark.parametrize("how", ["gap", "reset"])
def test_nothing_of_before_a_gap_or_reset_remains(engine, how):
    stream = Incremental(engine)
    feed(stream, range(T + 1))  # a window is half full
    if how == "reset":
        stream.reset()
    feed(stream, range(20, 20 + 2 * S), segment=int(how == "gap"))
    _, expected = batch(engine, IMAGES[20 : 20 + 2 * S], MEASURED)
    np.testing.assert_allclose(stream.depth(MEASURED).log_depth, expected["log_depth"][0, 0], atol=1e-6)
    assert stream.depth().frame == 20
    assert stream.counts["gap"] == int(how == "gap")


def test_frames_that_were_dropped_within_a_segment_are_no_gap(engine):
    stream = Incremental(engine)
    assert feed(stream, (3, 5)) == [None, 3]
    assert stream.counts["gap"] == 0


def test_an_index_that_falls_is_a_gap(engine):
    stream = Incremental(engine)
    feed(stream, (5, 4))
    assert stream.counts["gap"] == 1


def test_the_cost_does_not_depend_on_the_length(engine):
    stream = Incremental(engine)
    feed(stream, range(T))
    stream.counts.clear()
    feed(stream, range(T, 36))
    n = 36 - T
    assert stream.counts == {"encoder": n, "window": n // S, "cross": n // S * (T // S - 1)}


def test_without_a_measurement_the_head_is_told_so(engine):
    stream = Incremental(engine)
    feed(stream, range(S))
    nothing = np.zeros((2, h, h), np.float32)
    nothing[1] = UNMEASURED_VARIANCE
    np.testing.assert_array_equal(stream.depth().log_depth, stream.depth(nothing).log_depth)


def test_no_depth_before_the_first_window(engine):
    stream = Incremental(engine)
    assert stream.depth() is None
    feed(stream, range(S - 1))
    assert stream.depth() is None


@pytest.mark.parametrize("n", [1, T])
def test_decoding_uses_the_frame_and_the_newest_chain(engine, n):
    stream = Incremental(engine)
    feed(stream, range(n))
    trajectory, guess = RNG.random((5, 3), dtype=np.float32), RNG.random((5, 6), dtype=np.float32)
    refined = batch(engine, IMAGES[:n], MEASURED)[0] if n >= S else np.zeros((1, 4, 3), np.float32)
    expected = engine.run(
        "decoder",
        {
            "features": engine.run("encoder", {"image": IMAGES[:1]})["features"],
            "depth_features": refined,
            "camera": CAMERA[None],
            "trajectory": trajectory[None],
            "guess": guess[None],
        },
    )
    coefficients, log_sd = stream.decode(0, CAMERA, trajectory, guess)
    np.testing.assert_allclose(coefficients, expected["coefficients"][0], atol=1e-6)
    np.testing.assert_allclose(log_sd, expected["log_sd"][0], atol=1e-6)


def test_frames_older_than_the_clip_cannot_be_decoded(engine):
    stream = Incremental(engine)
    feed(stream, range(T + 1))
    trajectory, guess = np.zeros((5, 3), np.float32), np.ones((5, 6), np.float32)
    assert stream.decode(0, CAMERA, trajectory, guess) is None
    assert stream.decode(1, CAMERA, trajectory, guess) is not None


def test_a_result_that_is_not_finite_is_counted_and_leaves_nothing_behind(engine):
    stream = Incremental(engine)
    feed(stream, range(S + 1))
    assert stream.add_frame(S + 1, np.full((3, PX, PX), np.nan, np.float32), CAMERA) is None
    assert stream.counts["non_finite"] == 1
    assert stream.depth() is None
    assert feed(stream, range(S + 2, 2 * S + 2))[-1] == S + 2


def test_a_measurement_that_is_not_finite_spoils_only_its_own_depth(engine):
    stream = Incremental(engine)
    feed(stream, range(S))
    assert stream.depth(np.full((2, h, h), np.nan, np.float32)) is None
    assert stream.depth(MEASURED) is not None


def test_an_engine_that_fails_ends_the_stream_not_the_program(engine, monkeypatch):
    stream = Incremental(engine)
    feed(stream, range(S))

    def fail(graph, inputs):
        raise EngineError("the GPU is lost")

    monkeypatch.setattr(engine, "run", fail)
    assert feed(stream, range(S, 3 * S)) == [None] * 2 * S
    assert stream.failure == "the GPU is lost"
    assert stream.depth() is None
    assert stream.counts["encoder"] == S + 1
