"""The trajectory table's own arithmetic; the streams behind it have their own tests."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from perspblur_ros import so3
from perspblur_ros.evaluation import trajectory_table as tt
from perspblur_ros.types import DenseSamples

T_NS = 1_000_000_000 + 2_000_000 * np.arange(60)
PHI = 0.02 * np.sin(np.arange(60) / 9.0)[:, None] * [1.0, -0.5, 0.2]
CLIP = SimpleNamespace(truth_ns=T_NS, q_start_from_cam=so3.to_quat_xyzw(so3.exp(PHI)))


def result(share: float, source: str, turn: float = 0.0, **alternatives: DenseSamples) -> SimpleNamespace:
    """One frame whose path is ``share`` of the true one, turned as a whole."""
    at = slice(10, 40)
    R = so3.exp([0.0, turn, 0.0]) @ so3.exp(share * PHI[at])
    nothing = np.zeros((30, 3, 3))
    dense = DenseSamples(0, T_NS[at], so3.to_quat_xyzw(R), np.zeros((30, 3)), nothing, nothing, source)
    return SimpleNamespace(dense=dense, alternatives=alternatives)


def test_the_detail_error_is_the_missing_share_whatever_the_heading() -> None:
    assert tt.detail_error(CLIP, [result(1.0, "spline", turn=0.0)], "") == pytest.approx(0, abs=1e-9)
    assert tt.detail_error(CLIP, [result(0.7, "spline")], "") == pytest.approx(0.3, rel=1e-3)
    assert tt.detail_error(CLIP, [result(0.7, "spline", turn=0.3)], "spline") == pytest.approx(0.3, rel=1e-2)


def test_alternatives_count_where_they_are_and_else_what_was_published() -> None:
    good = result(1.0, "decoder").dense
    frames = [result(0.5, "spline", decoder=good), result(0.5, "spline")]
    assert tt.detail_error(CLIP, frames, "decoder") == pytest.approx(0.25, rel=1e-3)
    assert tt.detail_error(CLIP, frames, "") == pytest.approx(0.5, rel=1e-3)


def test_the_table_has_means_and_ratios() -> None:
    errors = dict.fromkeys(tt.WAYS, 0.2) | {"interpolation": 0.4}
    text = tt.formatted([tt.Row("a", errors, Counter(decoder=3)), tt.Row("b", errors, Counter(spline=1))])
    assert "| a | 0.400 | 0.200 |" in text
    assert "| **mean ratio** | **1.000** | **0.500** |" in text
    assert "decoder 3" in text
