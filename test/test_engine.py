"""Engines without torch or ONNX: what a manifest refuses, which engine is chosen, and when a plan is trusted."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from fake_engine import SIZES, FakeEngine, fake_manifest, write_folder, write_manifest
from rich.console import Console

from perspblur_ros import bench
from perspblur_ros.engine import select
from perspblur_ros.engine.interface import camera_values, interface, picture
from perspblur_ros.engine.manifest import load_manifest
from perspblur_ros.engine.plan_cache import PlanCache, PlanKey, default_folder
from perspblur_ros.engine.probe import check_engine, moments, probe_inputs
from perspblur_ros.errors import EngineError
from perspblur_ros.evaluation.tables import network_table

# the interface


def test_a_picture_is_squeezed_into_the_square_and_grey_is_repeated():
    grey = np.zeros((48, 64), np.uint8)
    grey[:, 32:] = 255
    planes = picture(grey, 16)
    assert planes.shape == (3, 16, 16)
    assert planes.dtype == np.float32
    np.testing.assert_allclose(planes[2, :, 8:], 1.0)
    np.testing.assert_allclose(planes[0, :, :8], 0.0)


def test_a_colour_picture_keeps_the_order_of_its_channels():
    rgb = np.zeros((48, 64, 3), np.uint8)
    rgb[..., 0] = 255
    np.testing.assert_allclose(picture(rgb, 16).mean(axis=(1, 2)), (1, 0, 0))


def test_camera_values_say_whether_the_lever_arm_is_known():
    known = camera_values(0.8, 0.06, 0.0625, 0.002, (0.0, 0.0, 0.2))
    np.testing.assert_allclose(known, (0.8, 0.6, 0.625, 0.02, 0, 0, 1, 1), rtol=1e-6)
    np.testing.assert_array_equal(camera_values(0.8, 0.06, 0.0625, 0.002)[4:], 0)


# the manifest


def test_a_folder_is_read(tmp_path):
    manifest = fake_manifest(tmp_path / "net")
    assert manifest.graphs["encoder"].inputs == {"image": (1, 3, 16, 16)}
    assert manifest.graphs["window"].inputs["features"] == (1, 2, 4, 3)
    assert manifest.precision == "float32"


def test_decoder_and_prior_may_be_missing(tmp_path):
    raw = write_folder(tmp_path)
    del raw["graphs"]["decoder"], raw["graphs"]["prior"]
    write_manifest(tmp_path, raw)
    assert sorted(load_manifest(tmp_path).graphs) == ["cross", "encoder", "head", "window"]


def change(path, value):
    def apply(raw):
        *parents, last = path
        for key in parents:
            raw = raw[key]
        raw[last] = value

    return apply


def remove(*path):
    def apply(raw):
        *parents, last = path
        for key in parents:
            raw = raw[key]
        del raw[last]

    return apply


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (change(["format"], 2), "has format 2, this version reads 1"),
        (remove("graphs", "cross"), "lacks the graph cross"),
        (remove("sizes", "width"), "incomplete or malformed: KeyError 'width'"),
        (change(["sizes", "width"], 4), "its sizes ask for"),
        (change(["sizes", "patch_px"], 0), "incomplete or malformed"),
        (change(["graphs", "encoder", "outputs"], {"features": [1, 4, 4]}), "the outputs of encoder are"),
        (change(["graphs", "encoder", "inputs", "image"], [1, 3, "H", 16]), "incomplete or malformed"),
        (change(["graphs", "encoder", "file"], "../encoder.onnx"), "is not a plain name"),
        (change(["graphs", "encoder", "file"], "gone.onnx"), "gone.onnx is missing"),
        (change(["graphs", "encoder", "sha256"], "0" * 64), "is not the file that was exported"),
        (change(["graphs", "extra"], {}), "names unknown graphs: extra"),
        (change(["graphs"], []), "lacks the graph"),
        (change(["graphs", "head"], None), "incomplete or malformed"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(tmp_path, broken, says):
    raw = json.loads(json.dumps(write_folder(tmp_path)))
    broken(raw)
    write_manifest(tmp_path, raw)
    with pytest.raises(EngineError) as caught:
        load_manifest(tmp_path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"format": 1}', '"\ud800"'])
def test_a_manifest_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(EngineError, match=r"manifest\.json"):
        load_manifest(tmp_path)


def test_a_changed_graph_is_refused(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "head.onnx").write_bytes(b"other")
    with pytest.raises(EngineError, match=r"head\.onnx is not the file that was exported"):
        load_manifest(tmp_path)


def test_a_folder_without_network_is_refused(tmp_path):
    with pytest.raises(EngineError, match="holds no exported network"):
        load_manifest(tmp_path / "nothing")


# does the engine compute what was exported?


def probed(tmp_path, shift=0.0):
    raw = write_folder(tmp_path)
    engine = FakeEngine(load_manifest(tmp_path))
    for name, (inputs, _) in interface(SIZES).items():
        found = moments(engine.run(name, probe_inputs(inputs)))
        raw["graphs"][name]["probe"] = {key: (mean + shift, rms) for key, (mean, rms) in found.items()}
    write_manifest(tmp_path, raw)
    return FakeEngine(load_manifest(tmp_path))


def test_an_engine_that_computes_the_same_is_accepted(tmp_path):
    check_engine(probed(tmp_path))


def test_an_engine_that_computes_something_else_is_refused(tmp_path):
    with pytest.raises(EngineError, match=r"numpy computes .*encoder\.onnx wrongly"):
        check_engine(probed(tmp_path, shift=0.01))


# which engine


@pytest.fixture
def engines(monkeypatch, tmp_path):
    """What can be had here: set ``engines.tensorrt`` or ``engines.onnxruntime`` to False to take one away."""
    manifest = fake_manifest(tmp_path)
    available = SimpleNamespace(tensorrt=True, onnxruntime=True)

    def have(name):
        def make(*_):
            if not getattr(available, name):
                raise EngineError(f"no {name} here")
            engine = FakeEngine(manifest)
            engine.name = name
            return engine

        return make

    monkeypatch.setattr(select, "_tensorrt", have("tensorrt"))
    monkeypatch.setattr(select, "_onnxruntime", have("onnxruntime"))
    return available


def test_none_is_none(engines, tmp_path):
    assert select.select_engine("none", tmp_path) == (None, "")


@pytest.mark.parametrize("choice", ["tensorrt", "onnxruntime"])
def test_an_explicit_choice_is_had_or_refused(engines, tmp_path, choice):
    assert select.select_engine(choice, tmp_path).engine.name == choice
    setattr(engines, choice, False)
    with pytest.raises(EngineError, match=f"no {choice} here"):
        select.select_engine(choice, tmp_path)


def test_auto_falls_back_with_one_warning(engines, tmp_path):
    assert select.select_engine("auto", tmp_path).engine.name == "tensorrt"
    assert select.select_engine("auto", tmp_path).warning == ""
    engines.tensorrt = False
    engine, warning = select.select_engine("auto", tmp_path)
    assert engine.name == "onnxruntime"
    assert "no tensorrt here" in warning
    engines.onnxruntime = False
    engine, warning = select.select_engine("auto", tmp_path)
    assert engine is None
    assert "no onnxruntime here" in warning


def test_auto_goes_on_without_the_gpu_when_it_fails(engines, tmp_path, monkeypatch, caplog):
    engine, _ = select.select_engine("auto", tmp_path)
    inputs = probe_inputs(engine.manifest.graphs["cross"].inputs)
    expected = engine.run("cross", inputs)["refined"]
    gpu = engine._engine
    monkeypatch.setattr(gpu, "run", lost)
    for _ in range(2):
        np.testing.assert_array_equal(engine.run("cross", inputs)["refined"], expected)
    assert engine.name == "onnxruntime"
    assert gpu.closed
    assert [record.getMessage() for record in caplog.records] == [
        "engine auto: onnxruntime from now on, as tensorrt failed: the GPU is lost"
    ]
    monkeypatch.setattr(engine._engine, "run", lost)
    with pytest.raises(EngineError, match="the GPU is lost"):
        engine.run("cross", inputs)


def lost(graph, inputs):
    raise EngineError("the GPU is lost")


def test_an_unknown_choice_is_named(tmp_path):
    with pytest.raises(EngineError, match="engine 'cuda' is none of"):
        select.select_engine("cuda", tmp_path)


def test_files_that_are_no_onnx_are_refused(tmp_path):
    write_folder(tmp_path)
    with pytest.raises(EngineError, match=r"onnxruntime does not load .*encoder\.onnx"):
        select.select_engine("onnxruntime", tmp_path)


# plans

KEY = PlanKey("aa", "11.4", "H200, 9.0", "13000", "float32", "image 1x3x16x16")


class Compiler:
    """Counts builds; its plans load unless they begin with 'bad'."""

    def __init__(self, plan=b"good plan"):
        self.plan, self.builds = plan, 0

    def build(self):
        self.builds += 1
        return self.plan

    def load(self, plan):
        return None if plan.startswith(b"bad") else plan.decode()


def had(cache, compiler, key=KEY):
    return cache.load_or_build(key, compiler.load, compiler.build)


def test_a_plan_is_built_once(tmp_path):
    cache, compiler = PlanCache(tmp_path / "deep" / "cache"), Compiler()
    assert had(cache, compiler) == ("good plan", True)
    assert had(PlanCache(cache.folder), compiler) == ("good plan", False)
    assert compiler.builds == 1
    assert sorted(path.suffix for path in cache.folder.iterdir()) == [".json", ".plan"]


@pytest.mark.parametrize("field", ["onnx_sha256", "tensorrt", "gpu", "driver", "precision", "shapes"])
def test_a_plan_for_anything_else_is_built_again(tmp_path, field):
    cache, compiler = PlanCache(tmp_path), Compiler()
    had(cache, compiler)
    assert had(cache, compiler, PlanKey(**{**vars(KEY), field: "other"}))[1]


def corrupt(path):
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def other_key(path):
    note = json.loads(path.with_suffix(".json").read_text())
    note["key"]["driver"] = "1"
    path.with_suffix(".json").write_text(json.dumps(note))


@pytest.mark.parametrize(
    "damage",
    [
        corrupt,
        other_key,
        lambda path: path.unlink(),
        lambda path: path.with_suffix(".json").unlink(),
        lambda path: path.with_suffix(".json").write_text("[]"),
        lambda path: path.with_suffix(".json").write_text("{"),
    ],
)
def test_a_plan_that_is_not_as_it_was_written_is_never_loaded(tmp_path, damage):
    cache, compiler = PlanCache(tmp_path), Compiler()
    had(cache, compiler)
    damage(next(tmp_path.glob("*.plan")))
    assert had(cache, compiler) == ("good plan", True)
    assert had(cache, compiler) == ("good plan", False)


def test_a_plan_that_does_not_load_is_built_again(tmp_path):
    cache = PlanCache(tmp_path)
    cache._write(KEY, b"bad plan")
    assert had(cache, Compiler()) == ("good plan", True)


def test_a_fresh_plan_that_does_not_load_is_an_error_and_is_not_kept(tmp_path):
    with pytest.raises(EngineError, match="does not load the plan"):
        had(PlanCache(tmp_path), Compiler(b"bad"))
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named_before_compiling(tmp_path):
    (tmp_path / "file").touch()
    compiler = Compiler()
    with pytest.raises(EngineError, match="cannot be written"):
        had(PlanCache(tmp_path / "file" / "cache"), compiler)
    assert compiler.builds == 0


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "perspblur" / "engines"


# measuring


def test_bench_counts_each_graph_of_the_stream(monkeypatch, tmp_path):
    engine = FakeEngine(fake_manifest(tmp_path))
    monkeypatch.setattr(bench, "select_engine", lambda *_: select.Selection(engine))
    result = bench.bench_network(tmp_path, frames=8)
    assert {"encoder", "window", "cross", "head", "decoder"} == set(result["graphs_ms"])
    assert result["rerun_ms_per_frame"] > result["stream_ms_per_frame"]
    assert engine.closed
    Console(file=io.StringIO()).print(network_table(result))
    monkeypatch.setattr(bench, "select_engine", lambda *_: select.Selection(None, "nothing"))
    with pytest.raises(EngineError, match="no engine runs"):
        bench.bench_network(tmp_path)
