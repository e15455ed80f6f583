"""The command line: help everywhere, one sentence and status 2 for what a user can cause, status 0 only on success."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_pipeline import FakePipeline
from rich.console import Console
from test_metrics import shake
from typer.testing import CliRunner

from perspblur_ros import bench, cli, doctor
from perspblur_ros.config import SPECS
from perspblur_ros.evaluation import replay as replay_module
from perspblur_ros.evaluation.bags import BagReader
from perspblur_ros.evaluation.tables import accuracy_markdown, bench_table

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = [command.name or command.callback.__name__ for command in cli.app.registered_commands]


def perspblur(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "perspblur_ros.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)


def test_every_command_has_help() -> None:
    assert {"demo", "run", "simulate", "convert", "replay", "evaluate", "bench", "doctor"} <= set(COMMANDS)
    for name in COMMANDS:
        result = CliRunner().invoke(cli.app, [name, "--help"])
        assert result.exit_code == 0, name
        assert "Usage" in result.output


def test_help_imports_nothing_heavy() -> None:
    program = "import sys; from perspblur_ros import cli; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    assert not {"scipy", "matplotlib", "rosbags", "rclpy", "onnxruntime"} & set(loaded.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["replay", "nowhere", "--out", "{tmp}/o"], "bag nowhere does not exist"),
        (["replay", "{tmp}", "--out", "{tmp}/o"], "no metadata.yaml"),
        (["evaluate", "nowhere", "--truth", "{tmp}"], "folder nowhere does not exist"),
        (["convert", "nowhere", "--out", "{tmp}/o"], "clip folder nowhere does not exist"),
        (["simulate", "--out", "{tmp}", "--gyro", "nowhere.csv"], "nowhere.csv does not exist"),
        (["simulate", "--out", "{tmp}/o", "--rgb", "a.png"], "--rgb needs --depth"),
        (["simulate", "--out", "{tmp}/o", "--rgb", "a.png", "--depth", "b.png"], "--rgb needs --fx"),
        (["simulate", "--out", "{tmp}/o", "--rgb", "a.png", "--depth", "b.png", "--fx", "9"], "a.png cannot be read"),
        (["accuracy", "--data", "{tmp}/nowhere"], "does not exist"),
        (["accuracy", "--data", "{tmp}", "--split", "train"], "'train' is none of dev, test"),
        (["bench", "--set", "exposure=1"], "did you mean 'exposure_s'"),
        (["bench", "--network", "{tmp}", "--set", "engine=onnxruntime"], "holds no exported network"),
        (["engine", "info", "{tmp}"], "holds no exported network"),
        (["engine", "build", "{tmp}"], "holds no exported network"),
        (["export", "--out", "{tmp}"], "exists already and is not overwritten"),
        (["export", "a.safetensors", "--dinov2", "b", "--out", "{tmp}/o"], "a checkpoint brings its own encoder"),
        (["export-trajectory", "nowhere", "--out", "{tmp}/t"], "folder nowhere does not exist"),
    ],
)
def test_what_a_user_can_cause_is_one_sentence(tmp_path: Path, arguments: list[str], says: str) -> None:
    result = perspblur(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert result.returncode == 2
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr + result.stdout


def test_export_says_what_to_install_where_torch_is_missing(tmp_path: Path) -> None:
    program = "import sys; sys.modules.update(onnx=None, torch=None); from perspblur_ros.__main__ import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", program, "export", "--out", str(tmp_path / "o")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 2
    assert "pip install 'perspblur_ros[train]' installs it" in result.stderr
    assert result.stderr.count("\n") == 1


def test_usage_errors_and_unwritable_places_fail() -> None:
    assert perspblur("replay").returncode == 2
    assert perspblur("no-such-command").returncode == 2
    result = perspblur(
        "simulate", "--out", "/proc/no/bag", "--frames", "1", "--width", "64", "--height", "48", "--grey"
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_simulate_replay_evaluate_and_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bag, out = tmp_path / "bag", tmp_path / "run"
    picture = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "rgb.png"), picture)
    cv2.imwrite(str(tmp_path / "depth.png"), np.full((120, 160), 2500, np.uint16))
    t = np.arange(0, 2, 0.005)
    gyro = np.column_stack([t, 0.2 * np.sin(20 * t), 0.3 * np.cos(17 * t), 0.1 * np.sin(9 * t)])
    np.savetxt(tmp_path / "gyro.csv", gyro, delimiter=",", header="t_s,wx,wy,wz")
    made = [
        *("simulate", "--rgb", tmp_path / "rgb.png", "--depth", tmp_path / "depth.png", "--fx", "150"),
        *("--gyro", tmp_path / "gyro.csv", "--axes", "-y-x-z", "--lever-arm", "0", "-0.1", "0.2", "--frames", "6"),
        *("--width", "96", "--height", "64", "--grey", "--out", bag),
    ]
    run = CliRunner()
    assert run.invoke(cli.app, list(map(str, made))).exit_code == 0
    with BagReader(bag) as reader:
        assert reader.parameters == {
            "exposure_s": 0.06,
            "readout_s": 0.002,
            "stamp_reference": "exposure_start",
            "lever_arm": [0.0, -0.1, 0.2],
        }
        log = reader.truth()
    monkeypatch.setattr(replay_module, "make_pipeline", lambda config: FakePipeline(config, log))
    result = run.invoke(cli.app, ["replay", str(bag), "--out", str(out), "--set", "samples_per_frame=15"])
    assert result.exit_code == 0, result.output
    assert "6 of 6 frames" in result.output
    result = run.invoke(cli.app, ["evaluate", str(out), "--truth", str(bag)])
    assert result.exit_code == 0, result.output
    assert "interpolation of true means" in result.output
    assert (out / "report.html").is_file()
    assert json.loads((out / "metrics.json").read_text())["sparse"]["frames"] == 6
    for kind, lines in (("tum", 90), ("tum-sparse", 6), ("gcsv", 100)):
        file = tmp_path / f"t.{kind}"
        result = run.invoke(cli.app, ["export-trajectory", str(out), "--format", kind, "--out", str(file)])
        assert result.exit_code == 0
        assert len(file.read_text().splitlines()) == lines
    assert CliRunner().invoke(cli.app, ["export-trajectory", str(out), "--format", "x", "--out", "y"]).exit_code != 0


def test_an_existing_bag_is_refused_before_it_is_rendered(tmp_path: Path) -> None:
    result = perspblur("simulate", "--out", tmp_path)
    assert result.returncode == 2
    assert "exists already" in result.stderr


def test_bench_counts_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    log = shake(1)
    result = bench.run_bench(1.0, 96, 64, 30.0, profile=True, make_sink=lambda config: FakePipeline(config, log))
    assert result["stream"]["frames"] == 30
    assert result["counts"]["frames"] == 30 + bench.WARM_UP
    assert set(result["stages_ms"]) == {"tracker", "spline", "total"}
    assert result["memory_mb"]["first"] > 10
    assert result["speed"]["fps"] > 0
    assert "tottime" in result["profile"]
    json.dumps(result)
    Console(file=open("/dev/null", "w")).print(bench_table(result))  # noqa: SIM115


def test_the_bench_stream_goes_to_and_fro_without_a_jump() -> None:
    clip = bench.render_clip(64, 48, 30.0)
    stream = list(bench._stream(clip, 30.0, 100))
    assert [stamp for stamp, _ in stream] == sorted({stamp for stamp, _ in stream})
    change = [np.abs(a[1].astype(int) - b[1]).mean() for a, b in itertools.pairwise(stream)]
    n = len(clip.frames)
    assert max(change[n - 2 : n]) <= max(change[: n - 2])
    assert np.array_equal(stream[n - 2][1], stream[n][1])


def test_doctor_tells_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    result = perspblur("doctor")
    assert result.returncode == 0, result.stdout
    assert "numpy" in result.stdout
    bad = doctor.library("no_such_library", "x", True, "pip install it")()
    assert (bad.state, bad.remedy) == (doctor.MISSING, "pip install it")
    monkeypatch.setattr(doctor, "CHECKS", (lambda: bad,))
    assert CliRunner().invoke(cli.app, ["doctor"]).exit_code == 1


def test_doctor_notes_a_profile_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(doctor.PROFILE_VARIABLES[0], str(tmp_path / "nowhere.xml"))
    assert doctor.image_transport().state == doctor.NOTE
    (tmp_path / "nowhere.xml").write_text("<profiles/>")
    assert doctor.image_transport().state == doctor.OK


def test_the_parameter_table_is_complete_and_the_documented_one() -> None:
    page = cli.parameter_page()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(SPECS)
    assert {row.count(" | ") for row in rows} == {4}
    documented = (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8")
    assert page == documented, "run: python -m perspblur_ros.cli parameters > docs/parameters.md"


def test_accuracy_means_are_per_group_and_over_all() -> None:
    from perspblur_ros.evaluation.accuracy import means

    keys = ("blur_px", "detail", "detail_spline")
    rows = [
        {"name": "60ms_a", **dict(zip(keys, (10.0, 0.1, 0.2)))},
        {"name": "60ms_b", **dict(zip(keys, (20.0, 0.3, None)))},
        {"name": "30fps_a", **dict(zip(keys, (30.0, 0.5, 0.6)))},
    ]
    found = {row["name"]: row for row in means(rows)}
    assert found["mean 60ms"]["detail"] == pytest.approx(0.2)
    assert found["mean 60ms"]["detail_spline"] is None
    assert found["mean 30fps"]["blur_px"] == 30.0
    assert found["mean of all"]["detail"] == pytest.approx(0.3)


def test_accuracy_markdown_is_a_table() -> None:
    from perspblur_ros.evaluation.tables import ACCURACY_COLUMNS

    row = dict.fromkeys(ACCURACY_COLUMNS.values(), 0.5) | {"name": "60ms_a", "detail_spline": None}
    lines = accuracy_markdown([row], "heading").splitlines()
    assert lines[0] == "heading"
    assert len({line.count("|") for line in lines[2:]}) == 1
    assert "–" in lines[-1]


def test_run_hands_everything_to_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    from perspblur_ros.ros import main as node

    seen: list[list[str]] = []

    def started(arguments: list[str]) -> int:
        seen.append(list(arguments))
        return 3

    monkeypatch.setattr(node, "main", started)
    arguments = ["--ros-args", "-p", "exposure_s:=0.02", "-r", "__ns:=/left", "--params-file", "camera.yaml"]
    assert CliRunner().invoke(cli.app, ["run", *arguments]).exit_code == 3
    assert seen == [arguments]


def test_a_missing_optional_package_is_named() -> None:
    program = "import sys; sys.modules['rosbags'] = None; from perspblur_ros import cli; cli.main()"
    command = [sys.executable, "-c", program, "replay", "bag", "--out", "run"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 2
    assert "the Python package 'rosbags" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_interrupt_ends_without_a_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(replay_module, "replay", interrupted)
    result = CliRunner().invoke(cli.app, ["replay", str(tmp_path), "--out", str(tmp_path / "run")])
    assert result.exit_code not in (0, None)
    assert "Traceback" not in result.output
