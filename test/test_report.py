"""The report: complete, self-contained, honest when there is no gain, and safe against what names contain."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_pipeline import FakePipeline
from test_replay import CAMERA, LOG, make_bag

from perspblur_ros.camera import Camera
from perspblur_ros.evaluation.bags import BagWriter
from perspblur_ros.evaluation.evaluate import Comparison, evaluate, verdict
from perspblur_ros.evaluation.replay import replay
from perspblur_ros.evaluation.report import write_report
from perspblur_ros.evaluation.tables import method_table, number

VOID = {"meta", "img", "br", "link", "input"}


class Nesting(HTMLParser):
    """Notes links and fails on tags that do not close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path, Path]:
    folder = tmp_path_factory.mktemp("report")
    bag = make_bag(folder / "bag")
    command = "perspblur replay '<b>'"
    replay(bag, folder / "run", make_sink=lambda c: FakePipeline(c, LOG), command=command)
    return evaluate(folder / "run", bag), bag, folder


def test_the_report_is_one_complete_file(comparison: tuple[Comparison, Path, Path]) -> None:
    c, bag, folder = comparison
    page = write_report(c, folder, bag, "perspblur evaluate").read_text()
    parser = Nesting()
    parser.feed(page)
    assert parser.open == []
    assert all(source.startswith(("data:", "#")) for source in parser.sources)
    assert not re.search(r"https?://(?!www\.w3\.org|purl\.org|creativecommons\.org|matplotlib\.org)", page)
    assert parser.seen.count("svg") == 5
    for text in ("interpolation of true means", "held_out", "exposure_s", "p99", "perspblur evaluate", "spline"):
        assert text in page
    assert "&lt;b&gt;" in page
    assert "<b>'" not in page
    words = re.sub(r"<svg.*?</svg>|data:[^\"]*", "", page, flags=re.DOTALL)
    assert not re.search(r"\bnan\b", words)


def test_colours_come_from_the_page(comparison: tuple[Comparison, Path, Path]) -> None:
    c, bag, folder = comparison
    page = write_report(c, folder, bag).read_text()
    used = set(re.findall(r"var\((--[a-z]+)\)", page))
    light, dark = (set(re.findall(r"(--[a-z]+):", block)) for block in re.findall(r":root \{(.*?)\}", page, re.DOTALL))
    assert used - {"--left"} <= light == dark
    assert "#0102" not in page


def test_frames_show_their_blur_path(tmp_path: Path) -> None:
    camera = Camera(320, 240, 300.0, 300.0, 159.5, 119.5)
    noise = np.random.default_rng(0).integers(0, 255, (24, 32), dtype=np.uint8)
    picture = cv2.resize(noise, (320, 240), interpolation=cv2.INTER_CUBIC)
    with BagWriter(
        tmp_path / "bag", camera, {"exposure_s": 0.05, "readout_s": 0.01, "lever_arm": [0, 0, 0.2]}
    ) as writer:
        writer.write_motion(LOG.stamp_ns, LOG.omega, LOG.q_ref_from_cam)
        writer.write_depth(1_000_000_000, np.full((240, 320), 2.0, np.float32))
        for k in range(6):
            writer.write_image(1_000_000_000 + k * 62_500_000, picture)
    options = ["depth_topic=/ground_truth/depth"]
    replay(tmp_path / "bag", tmp_path / "run", assignments=options, make_sink=lambda c: FakePipeline(c, LOG))
    c = evaluate(tmp_path / "run", tmp_path / "bag")
    page = write_report(c, tmp_path / "run", tmp_path / "bag").read_text()
    assert page.count('class="shot"') == 3
    assert page.count("data:image/jpeg") == 12
    assert "the true depth map was given" in page


def test_a_bag_with_truth_only_makes_a_report_without_pictures(
    comparison: tuple[Comparison, Path, Path], tmp_path: Path
) -> None:
    c, _, _ = comparison
    with BagWriter(tmp_path / "truth", CAMERA) as writer:
        writer.write_motion(LOG.stamp_ns, LOG.omega)
    gyro = evaluate(c.run.folder, tmp_path / "truth", tmp_path)
    page = write_report(gyro, tmp_path, tmp_path / "truth").read_text()
    assert "one constant offset per method" in page
    assert 'class="shot"' not in page


def numbers(own: float, line: float, detail: float = 0.3) -> dict:
    method = {"dense_30": {"detail_error": detail}}
    return {"methods": {"estimate": {"rate_error": own, **method}, "interpolation": {"rate_error": line, **method}}}


def test_the_verdict_says_what_happened() -> None:
    assert verdict(numbers(0.1, 0.4))[0].startswith("4.0 times closer")
    assert verdict(numbers(0.4, 0.4))[0] == "No gain over interpolation here"
    assert verdict(numbers(0.1, float("nan")))[0] == "The camera did not move"
    assert "0 % of the motion" in verdict(numbers(0.3, 0.4, 1.2))[1]


def test_tables_print_what_is_missing_as_a_dash(comparison: tuple[Comparison, Path, Path]) -> None:
    c, _, _ = comparison
    assert number(None) == number(float("nan")) == "–"
    table = method_table(c.metrics)
    assert table.row_count == 4
    own = replace(
        c, metrics={**c.metrics, "methods": {"estimate": c.metrics["methods"]["estimate"], **c.metrics["methods"]}}
    )
    assert method_table(own.metrics).row_count == 4
