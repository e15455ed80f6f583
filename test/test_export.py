"""From torch to ONNX Runtime: the folder computes what the network does, frame by frame as in one clip."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("transformers")

from micro_network import MICRO, randomised  # noqa: E402

from perspblur_ros.engine.incremental import Incremental  # noqa: E402
from perspblur_ros.engine.manifest import file_sha256, load_manifest  # noqa: E402
from perspblur_ros.engine.ort import OrtEngine  # noqa: E402
from perspblur_ros.engine.probe import check_engine  # noqa: E402
from perspblur_ros.engine.select import select_engine  # noqa: E402
from perspblur_ros.errors import ConfigError, EngineError  # noqa: E402
from perspblur_ros.export import export_network, load_network  # noqa: E402
from perspblur_ros.model.checkpoint import save_checkpoint  # noqa: E402
from perspblur_ros.model.network import Network  # noqa: E402
from perspblur_ros.model.presets import PRESETS  # noqa: E402
from perspblur_ros.training import exported  # noqa: E402
from perspblur_ros.training.exported import load_exported, load_start  # noqa: E402


def network_of(preset):
    torch.manual_seed(0)
    return randomised(Network(preset))


@pytest.fixture(scope="module")
def network():
    return network_of(MICRO)


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    return export_network(network, tmp_path_factory.mktemp("export") / "micro", {"steps": 3}, [{"licence": "MIT"}])


def clip_of(preset, n):
    rng = np.random.default_rng(1)
    images = rng.random((n, 3, preset.image_px, preset.image_px), dtype=np.float32)
    measured = rng.random((2, preset.head_px, preset.head_px), dtype=np.float32) + 0.1
    return images, rng.random(8, dtype=np.float32), measured


def batch(network, images, camera, measured):
    with torch.no_grad():
        return network.depth(*(torch.from_numpy(x)[None] for x in (images, camera, measured)))


def largest_difference(depth, expected):
    pairs = (("log_depth", depth.log_depth), ("log_variance", depth.log_variance), ("own", depth.own))
    return max(float(np.abs(expected[name][0].numpy() - found).max()) for name, found in pairs)


def test_the_stream_equals_the_batch(network, folder):
    images, camera, measured = clip_of(MICRO, 13)
    stream = Incremental(OrtEngine(load_manifest(folder)))
    for k in range(9):
        stream.add_frame(k, images[k], camera)
    assert largest_difference(stream.depth(measured), batch(network, images[2:8], camera, measured)) < 1e-5
    for k in range(9, 13):  # after a gap: a new stream
        stream.add_frame(k, images[k], camera, segment=1)
    assert largest_difference(stream.depth(measured), batch(network, images[9:13], camera, measured)) < 1e-5
    assert stream.counts["encoder"] == 13


def test_the_decoder_equals_torch(network, folder):
    images, camera, measured = clip_of(MICRO, 6)
    stream = Incremental(OrtEngine(load_manifest(folder)))
    for k in range(6):
        stream.add_frame(k, images[k], camera)
    rng = np.random.default_rng(2)
    trajectory, guess = rng.random((5, 3), dtype=np.float32), rng.random((5, 6), dtype=np.float32) + 0.1
    found = stream.decode(4, camera, trajectory, guess)
    clip = batch(network, images, camera, measured)
    given = (torch.from_numpy(x)[None] for x in (camera, trajectory, guess))
    with torch.no_grad():
        expected = network.decode(clip["features"][:, 4], clip["refined"], *given)
    for ours, theirs in zip(found, expected):
        np.testing.assert_allclose(ours, theirs[0].numpy(), atol=1e-5)


def test_weights_come_back_out_of_the_graphs(network, folder):
    again, summary = load_exported(folder)
    assert again.preset == network.preset
    assert summary == {"steps": 3, "data": [{"licence": "MIT"}]}
    inputs = clip_of(MICRO, MICRO.clip_frames)
    for name, value in batch(network, *inputs).items():
        np.testing.assert_allclose(batch(again, *inputs)[name].numpy(), value.numpy(), atol=1e-4)
    for part in ("prior", "trajectory"):
        for a, b in zip(getattr(network, part).parameters(), getattr(again, part).parameters()):
            np.testing.assert_array_equal(a.detach().numpy(), b.detach().numpy())


def test_training_starts_from_graphs_a_checkpoint_or_nothing(network, folder, tmp_path):
    save_checkpoint(tmp_path / "a.safetensors", network, {"steps": 4})
    for start, steps in ((folder, 3), (tmp_path / "a.safetensors", 4)):
        again, summary = load_start(start, "tiny")
        assert again.preset == MICRO
        assert summary["steps"] == steps
    assert load_start(None, "tiny")[0].preset == PRESETS["tiny"]
    with pytest.raises(EngineError, match="does not exist"):
        load_start(tmp_path / "b.safetensors", "tiny")


def test_weights_that_are_not_those_of_the_graph_are_refused(folder, monkeypatch):
    monkeypatch.setattr(exported, "_weights", lambda graph: {})
    with pytest.raises(EngineError, match="onnxruntime differs from torch"):
        load_exported(folder)


def test_the_manifest_states_parity_training_and_data(folder):
    raw = json.loads((folder / "manifest.json").read_text())
    assert all(max(graph["parity"].values()) < 1e-5 for graph in raw["graphs"].values())
    manifest = load_manifest(folder)
    assert manifest.training == {"steps": 3}
    assert manifest.data == ({"licence": "MIT"},)
    check_engine(OrtEngine(manifest))


def test_a_graph_of_other_shapes_is_refused_even_with_its_hash_right(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    raw = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "cross.onnx").write_bytes((folder / "head.onnx").read_bytes())
    raw["graphs"]["cross"]["sha256"] = file_sha256(tmp_path / "cross.onnx")
    (tmp_path / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(EngineError, match=r"cross\.onnx: its inputs are .*, the manifest says"):
        select_engine("onnxruntime", tmp_path)


def test_other_weights_are_refused_by_what_they_compute(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    model = onnx.load(tmp_path / "head.onnx")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("own.weight"))
    weight.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(weight), weight.name))
    onnx.save(model, tmp_path / "head.onnx")
    raw = json.loads((tmp_path / "manifest.json").read_text())
    raw["graphs"]["head"]["sha256"] = file_sha256(tmp_path / "head.onnx")
    (tmp_path / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(EngineError, match=r"computes .*head\.onnx wrongly"):
        select_engine("onnxruntime", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_products_in_16_bits_stand_in_the_graph(network, tmp_path, precision):
    folder = export_network(network, tmp_path / "net", precision=precision)
    manifest = load_manifest(folder)
    model = onnx.load(folder / "encoder.onnx")
    kind = {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16}[precision]
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    assert products
    assert all(name.endswith(":16") for node in products for name in node.input if name)
    assert {tensor.data_type for tensor in model.graph.initializer if tensor.name.endswith(":16")} == {kind}
    assert manifest.precision == precision
    if precision == "float16":
        check_engine(OrtEngine(manifest))


def test_nothing_is_overwritten_and_unknown_words_are_named(network, folder, tmp_path):
    with pytest.raises(EngineError, match="exists already"):
        export_network(network, folder)
    with pytest.raises(EngineError, match="precision 'int8' is none of"):
        export_network(network, tmp_path / "net", precision="int8")
    with pytest.raises(ConfigError, match="preset 'big' is none of paper, tiny"):
        load_network(None, "big")


@pytest.mark.slow
def test_the_paper_preset_streams_as_it_batches(tmp_path):
    """Two windows of real size; 25 GFLOP-heavy seconds per frame on one core."""
    paper = PRESETS["paper"]
    network = network_of(paper)
    folder = export_network(network, tmp_path / "paper")
    images, camera, measured = clip_of(paper, 2 * paper.window_frames)
    stream = Incremental(OrtEngine(load_manifest(folder)))
    for k, image in enumerate(images):
        stream.add_frame(k, image, camera)
    difference = largest_difference(stream.depth(measured), batch(network, images, camera, measured))
    print(f"paper preset, largest difference {difference:.2g}, calls {dict(stream.counts)}")
    assert difference < 1e-4
