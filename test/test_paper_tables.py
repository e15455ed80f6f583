"""The paper's tables: what they are made of, and their numbers on maps that are known."""

from __future__ import annotations

import numpy as np
import pytest

from perspblur_ros.errors import BagError
from perspblur_ros.evaluation import paper_tables as pt
from perspblur_ros.sim.evaluation_set import TEST


def test_depth_clips_are_held_out():
    places = {recipe.place.split("/")[0] for recipe in TEST}
    recordings = {recipe.gyro for recipe in TEST}
    for clip in pt.DEPTH_CLIPS:
        assert clip.group in pt.GROUPS
        assert clip.recipe.place.split("/")[0] in places
        assert clip.recipe.gyro in recordings
        length = float(np.linalg.norm(clip.recipe.lever_arm_m))
        assert length == 0 if clip.group == "control" else 0.1 <= length <= 0.3


def test_scores_of_known_maps():
    true = np.where(np.arange(48)[:, None] < 24, 1.0, 4.0) * np.ones((48, 64), np.float32)
    truth = np.log(true).astype(np.float32)
    maps = {"own": truth + np.float32(np.log(1.3)), "fused": truth, "sd": np.full(true.shape, 0.1, np.float32)}
    found = pt.scores(maps, true)
    assert found["own abs_rel"] == pytest.approx(0.3, rel=1e-5)
    assert found["own delta1"] == 0
    assert found["own delta2"] == 1
    assert found["fused abs_rel"] == pytest.approx(0, abs=1e-6)
    assert found["fused within"] == 1
    assert found["fused sd"] == pytest.approx(0.1)
    assert found["constant abs_rel"] == pytest.approx(np.mean([pt.TRAIN_MEDIAN_M - 1, 1 - pt.TRAIN_MEDIAN_M / 4]))


def test_the_table_has_a_line_per_way_and_columns_per_group():
    common = {"group": "wide", "own delta1": 0.1, "own delta2": 0.2, "fused within": 0.7}
    rows = [{**common, "own abs_rel": 0.5, "fused sd": 0.1}, {**common, "own abs_rel": 0.3, "fused sd": 0.3}]
    text = pt.depth_markdown(rows)
    assert "| network alone, pixels only (the paper's form) | 0.400 | 0.100 | 0.200 |" in text
    assert "trained on sharp" not in text
    assert "| wide | 2 | 0.200 | 0.700 |" in text


def test_only_what_was_measured_has_a_table():
    row = {"kind": "residual", "name": "L = 6", "seed": 0, "parameters": 1000, "decoded": 0.1, "guess": 0.2}
    text = pt.markdown({"depth": [], "trajectory": [], "ablation": [row]})
    assert text.startswith("## Table 3: ablations")
    assert "Table 1" not in text


def test_a_name_that_no_clip_has_is_refused(tmp_path):
    with pytest.raises(BagError, match="'nowhere' in its name"):
        pt.write_tables(tmp_path, tmp_path, only="nowhere")
    with pytest.raises(BagError, match="does not exist"):
        pt.write_tables(tmp_path, tmp_path / "no data")
