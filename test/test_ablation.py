"""Ablations: one size at a time, equal seeds and steps, a run that was interrupted goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("matplotlib")
pytest.importorskip("transformers")

from perspblur_ros.errors import ConfigError  # noqa: E402
from perspblur_ros.model.network import Network  # noqa: E402
from perspblur_ros.model.presets import PRESETS  # noqa: E402
from perspblur_ros.share import share_path  # noqa: E402
from perspblur_ros.training import ablation, loop  # noqa: E402

SHIPPED = share_path("config", "training", "ablation.yaml")
PRETENDED = """
preset: tiny
seeds: [0, 1]
clip_frames: 24
depth: {iterations: 2, validate_every: 2}
decoder: {iterations: 3, validate_every: 3}
"""


def test_variants_differ_from_the_preset_by_one_size_each() -> None:
    config = loop.load_config(SHIPPED)
    made = list(ablation.variants(PRESETS["tiny"], config["seeds"], config["clip_frames"]))
    assert len({v.folder for v in made}) == len(made) == len(config["seeds"]) * 12
    usual = PRESETS["tiny"].table()
    for variant in made:
        changed = {key for key, value in variant.preset.table().items() if value != usual[key]} - {"clip_frames"}
        assert len(changed) <= 1
        if variant.kind == "depth":
            assert config["clip_frames"] % variant.preset.window_frames == 0  # every frame enters
    for section in ("depth", "decoder"):
        loop.schedule(config[section])


def test_without_cross_window_the_first_window_stands_alone() -> None:
    network = {v.name: Network(v.preset) for v in ablation.variants(PRESETS["tiny"], [0], 24) if v.kind == "depth"}
    windows = torch.randn(1, 4, PRESETS["tiny"].tokens, PRESETS["tiny"].width)
    alone = network["no Cross-Window"].depth.refine(windows)
    assert torch.equal(alone, windows[:, 0])
    assert not torch.allclose(network["S = 6"].depth.refine(windows), windows[:, 0])


class Toy:
    """Learns one number; its score says which variant it was."""

    def __init__(self, score: float) -> None:
        self.network = Network(PRESETS["tiny"])
        self.module = torch.nn.Linear(1, 1)
        self.score = score

    def loss(self, step: int) -> torch.Tensor:
        return self.module(torch.ones(1)).square().mean()

    def validate(self) -> dict[str, float]:
        return {"score": self.score}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "ablation.yaml"
    path.write_text(PRETENDED, encoding="utf-8")
    return path


def test_what_is_done_is_not_done_again(config, tmp_path, monkeypatch) -> None:
    asked: list[str] = []

    def stage(self, variant, plan):
        if len(asked) == 5:
            raise KeyboardInterrupt
        asked.append(variant.folder)
        assert plan.seed == variant.seed
        return Toy(float(len(asked)))

    monkeypatch.setattr(ablation._Data, "stage", stage)
    monkeypatch.setattr(loop, "draw_curves", lambda path, history: None)
    monkeypatch.setattr(loop, "save_checkpoint", lambda *args: None)
    runs = tmp_path / "runs"
    with pytest.raises(KeyboardInterrupt):
        ablation.run(config, tmp_path, runs, report=lambda text: None)
    first = json.loads((runs / ablation.RESULT).read_text(encoding="utf-8"))
    assert [row["score"] for row in first] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in first] == [2, 2, 2, 2, 3]
    asked.clear()
    for _ in range(4):
        try:
            rows = ablation.run(config, tmp_path, runs, report=lambda text: None)
            break
        except KeyboardInterrupt:
            asked.clear()
    assert rows[:5] == first
    assert len({(row["kind"], row["name"], row["seed"]) for row in rows}) == len(rows) == 24


def test_the_data_folder_is_needed(config, tmp_path) -> None:
    with pytest.raises(ConfigError, match="--data names it"):
        ablation.run(config, None, tmp_path / "runs")
