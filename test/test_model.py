"""The networks in torch: shapes, what an untrained one says, and slow twins of the parts with formulas."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
transformers = pytest.importorskip("transformers")

from micro_network import MICRO, randomised  # noqa: E402

from perspblur_ros.engine.interface import UNMEASURED_VARIANCE, interface  # noqa: E402
from perspblur_ros.errors import ConfigError, EngineError  # noqa: E402
from perspblur_ros.model import counts  # noqa: E402
from perspblur_ros.model.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from perspblur_ros.model.decoder import (  # noqa: E402
    DISTANCES,
    DisentangledAttention,
    TrajectoryNetwork,
    cosine_basis,
    relative_index,
)
from perspblur_ros.model.encoder import Encoder, load_backbone  # noqa: E402
from perspblur_ros.model.head import DepthHead, fuse  # noqa: E402
from perspblur_ros.model.network import DepthNetwork, Network  # noqa: E402
from perspblur_ros.model.presets import PRESETS, from_table, preset  # noqa: E402
from perspblur_ros.model.windows import CrossWindow  # noqa: E402

P, d, h = MICRO.tokens, MICRO.width, MICRO.head_px


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def clip():
    measured = torch.stack((torch.zeros(2, h, h), torch.full((2, h, h), UNMEASURED_VARIANCE)), dim=1)
    return torch.rand(2, 7, 3, 32, 32), torch.rand(2, 8), measured


# depth


def test_a_clip_has_the_shapes_of_the_docstring(clip):
    out = DepthNetwork(MICRO)(*clip)
    assert {name: tuple(value.shape) for name, value in out.items()} == {
        "features": (2, 7, P, d),
        "windows": (2, 3, P, d),
        "refined": (2, P, d),
        "log_depth": (2, 1, h, h),
        "log_variance": (2, 1, h, h),
        "own": (2, 2, h, h),
    }


def test_clips_of_a_batch_do_not_see_each_other(clip):
    network = randomised(DepthNetwork(MICRO))
    with torch.no_grad():
        together, alone = network(*clip), network(*(x[1:] for x in clip))
    for name, value in alone.items():
        torch.testing.assert_close(together[name][1:], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("what", "changes"), [("frame", True), ("camera", True), ("late frame", False)])
def test_every_frame_of_a_window_and_the_camera_matter(clip, what, changes):
    network = randomised(DepthNetwork(MICRO))
    images, camera, measured = (x.clone() for x in clip)
    if what == "camera":
        camera[:, 5] += 1.0
    else:
        images[:, 6 if what == "late frame" else 5] = 0.0  # the seventh frame fills no window
    with torch.no_grad():
        difference = network(images, camera, measured)["log_depth"] - network(*clip)["log_depth"]
    assert (difference.abs().max() > 1e-5) == changes


def test_windows_are_refined_from_the_last_backward(clip):
    network = randomised(DepthNetwork(MICRO))
    with torch.no_grad():
        out = network(*clip)
        w1, w2, w3 = out["windows"].unbind(1)
        torch.testing.assert_close(out["refined"], network.cross_window(w1, network.cross_window(w2, w3)))


def test_the_later_window_is_key_and_value():
    cross = randomised(CrossWindow(MICRO))
    earlier, later = torch.rand(1, P, d), torch.rand(1, P, d)
    shuffled = torch.randperm(P)
    with torch.no_grad():
        expected = cross(earlier, later)
        torch.testing.assert_close(cross(earlier, later[:, shuffled]), expected)
        torch.testing.assert_close(cross(earlier[:, shuffled], later), expected[:, shuffled])


def test_fusing_two_gaussians_weighs_them_by_precision():
    own = torch.tensor([1.0, np.log(0.5)]).view(1, 2, 1, 1)
    measured = torch.tensor([2.0, 0.25]).view(1, 2, 1, 1)
    mean, log_variance = fuse(own, measured)
    assert mean.item() == pytest.approx((1 / 0.5 + 2 / 0.25) / (1 / 0.5 + 1 / 0.25))
    assert np.exp(log_variance.item()) == pytest.approx(1 / (1 / 0.5 + 1 / 0.25))


def test_an_untrained_head_is_the_fusion_and_follows_a_sure_measurement():
    head = DepthHead(MICRO).eval()
    measured = torch.stack((torch.full((1, h, h), 0.3), torch.full((1, h, h), 1e-6)), dim=1)
    with torch.no_grad():
        log_depth, log_variance, own = head(torch.randn(1, P, d), measured)
    torch.testing.assert_close((log_depth, log_variance), fuse(own, measured))
    torch.testing.assert_close(log_depth, torch.full((1, 1, h, h), 0.3), atol=1e-3, rtol=0)


def test_where_nothing_was_measured_its_value_does_not_matter():
    head = randomised(DepthHead(MICRO))
    tokens, measured = torch.randn(1, P, d), torch.full((1, 2, h, h), UNMEASURED_VARIANCE)
    with torch.no_grad():
        found = [head(tokens, measured.index_fill(1, torch.tensor(0), value))[0] for value in (0.0, 3.0)]
    assert (found[1] - found[0]).abs().max() < 0.02


# trajectory


def decoder_inputs(n, batch=2):
    trajectory = torch.randn(batch, n, 3)
    guess = torch.cat((torch.randn(batch, n, 3), torch.rand(batch, n, 3) + 0.5), dim=-1)
    return torch.randn(batch, P, d), torch.randn(batch, P, d), torch.rand(batch, 8), trajectory, guess


def path_of(coefficients, n):
    """Slow twin of the basis: samples of Σ c_k cos(πk(i + ½)/n)."""
    angle = np.pi / n * np.outer(np.arange(n) + 0.5, np.arange(1, 5))
    return np.cos(angle) @ coefficients


@pytest.mark.parametrize("n", [5, 15, 30])
def test_the_basis_recovers_coefficients_whatever_the_number_of_samples(n):
    coefficients = np.random.default_rng(0).normal(size=(4, 3))
    path = torch.from_numpy(path_of(coefficients, n))
    np.testing.assert_allclose((cosine_basis(n, path) @ path).numpy(), coefficients, atol=1e-12)


def test_an_untrained_decoder_says_what_it_was_given():
    network = TrajectoryNetwork(MICRO).eval()
    coefficients = torch.randn(1, 4, 3)
    guess = torch.from_numpy(path_of(coefficients[0].numpy(), 15)).float()[None]
    inputs = decoder_inputs(15, 1)
    with torch.no_grad():
        found, log_sd = network(*inputs[:4], torch.cat((guess, torch.full_like(guess, 0.2)), dim=-1))
    torch.testing.assert_close(found, coefficients, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(log_sd.exp(), torch.full((1, 4, 3), 0.2))


def test_the_decoder_uses_everything_and_any_number_of_samples():
    network = randomised(TrajectoryNetwork(MICRO))
    for n in (5, 30):
        inputs = decoder_inputs(n)
        with torch.no_grad():
            found, log_sd = network(*inputs)
            assert found.shape == log_sd.shape == (2, 4, 3)
            for k in range(5):
                other = [x + 0.5 if i == k else x for i, x in enumerate(inputs)]
                assert (network(*other)[0] - found).abs().max() > 1e-4


def test_the_decoder_is_equivariant_to_the_scale_of_large_paths():
    network = randomised(TrajectoryNetwork(MICRO))
    inputs = decoder_inputs(15)
    network.value[0].weight.data[:, 9] = 0.0  # the one input that tells the size
    with torch.no_grad():
        found = [network(*inputs[:3], *(scale * x for x in inputs[3:]))[0] / scale for scale in (1e3, 1e5)]
    torch.testing.assert_close(found[0], found[1], atol=1e-2, rtol=1e-2)


def test_relative_positions_are_shares_of_a_frame():
    fine, coarse = relative_index(30), relative_index(15)
    assert (fine.diagonal() == DISTANCES).all()
    assert fine[4, 0] == coarse[2, 0] == DISTANCES + 4
    assert fine.min() >= 0
    assert fine.max() <= 2 * DISTANCES


def test_disentangled_attention_equals_its_formula():
    n, heads, width = 6, 2, 8
    attention = randomised(DisentangledAttention(width, heads)).double()
    x = torch.randn(1, n, width, dtype=torch.float64)
    with torch.no_grad():
        found = attention(x)[0].numpy()
        q, k, v = (part[0].numpy().reshape(n, heads, -1) for part in attention.content(x).chunk(3, dim=-1))
        positions = attention.position(attention.relative)[0].numpy()
    qr, kr = (part.reshape(len(part), heads, -1) for part in np.split(positions, 2, axis=1))
    expected = np.zeros((n, heads, width // heads))
    for a in range(heads):
        for i in range(n):
            scores = np.zeros(n)
            for j in range(n):
                ij, ji = (DISTANCES + round(step * DISTANCES / n) for step in (i - j, j - i))
                content = q[i, a] @ k[j, a]
                scores[j] = (content + q[i, a] @ kr[ij, a] + k[j, a] @ qr[ji, a]) / np.sqrt(3 * width / heads)
            weights = np.exp(scores - scores.max())
            expected[i, a] = weights / weights.sum() @ v[:, a]
    out = attention.out
    expected = expected.reshape(n, width) @ out.weight.detach().numpy().T + out.bias.detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_no_gradient_of_the_trajectory_reaches_the_depth_network():
    network = randomised(Network(MICRO))
    coefficients, _ = network.decode(*decoder_inputs(5))
    coefficients.sum().backward()
    assert all(parameter.grad is None for parameter in network.depth.parameters())
    assert all(parameter.grad is not None for parameter in network.trajectory.blocks.parameters())


def test_the_prior_has_the_sizes_of_its_preset():
    inputs, outputs = interface(MICRO.table())["prior"]
    found = Network(MICRO).prior(torch.randn(inputs["geometry"]))
    assert [tuple(part.shape) for part in found] == list(outputs.values())


# presets, weights, counts


def test_presets_go_through_a_table_and_back():
    for each in PRESETS.values():
        assert from_table(each.table()) == each
    with pytest.raises(ConfigError, match="lack width"):
        from_table({key: value for key, value in MICRO.table().items() if key != "width"})
    with pytest.raises(ConfigError, match="unknown network size depth"):
        from_table({**MICRO.table(), "depth": 3})
    with pytest.raises(ConfigError, match="preset 'huge' is none of paper, tiny"):
        preset("huge")


def test_the_paper_preset_is_the_papers():
    paper = PRESETS["paper"]
    assert (paper.grid, paper.tokens, paper.windows, len(paper.fused_layers)) == (37, 1369, 5, 4)
    assert (paper.self_layers, paper.cross_layers, paper.decoder_layers, paper.heads, paper.width) == (6, 2, 6, 8, 384)


def test_checkpoints_bring_their_sizes(tmp_path):
    network = randomised(Network(MICRO))
    save_checkpoint(tmp_path / "a.safetensors", network, {"steps": 5})
    loaded, training = load_checkpoint(tmp_path / "a.safetensors")
    assert loaded.preset == MICRO
    assert training == {"steps": 5}
    for name, value in network.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(EngineError, match="does not exist"):
        load_checkpoint(path)
    path.write_bytes(b"no")
    with pytest.raises(EngineError, match="is not a safetensors file"):
        load_checkpoint(path)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(EngineError, match="does not state its network's sizes"):
        load_checkpoint(path)
    save_checkpoint(path, Network(MICRO))
    content = path.read_bytes().replace(b'\\"self_layers\\": 1', b'\\"self_layers\\": 2')
    path.write_bytes(content)
    with pytest.raises(EngineError, match="does not fit its own sizes"):
        load_checkpoint(path)


def test_dinov2_weights_come_from_a_local_folder(tmp_path):
    encoder = Encoder(MICRO)
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=4, image_size=32, patch_size=8
    )
    given = transformers.Dinov2Model(config)
    given.save_pretrained(tmp_path / "dino")
    load_backbone(encoder, tmp_path / "dino")
    torch.testing.assert_close(encoder.layers[1].norm2.weight, given.encoder.layer[1].norm2.weight)
    torch.testing.assert_close(encoder.embeddings.position_embeddings, given.embeddings.position_embeddings)
    with pytest.raises(EngineError, match="embeddings do not fit"):
        load_backbone(Encoder(replace(MICRO, image_px=40)), tmp_path / "dino")
    with pytest.raises(EngineError, match="holds no DINOv2 weights"):
        load_backbone(encoder, tmp_path / "nothing")


def test_the_page_states_the_counts_of_today():
    page = (Path(__file__).resolve().parents[1] / "docs" / "model.md").read_text(encoding="utf-8")
    stated = re.search(f"{counts.BEGIN}.*{counts.END}", page, re.DOTALL)
    assert stated, "docs/model.md lost its table"
    assert stated.group() == counts.section(), "python -m perspblur_ros.model.counts docs/model.md"


def test_operations_of_the_tiny_encoder_equal_their_formula():
    p = PRESETS["tiny"]
    tokens, w = p.tokens + 1, p.encoder_width
    per_layer = 2 * tokens * 12 * w**2 + 4 * tokens**2 * w
    patches = 2 * p.tokens * 3 * p.patch_px**2 * w
    fuse_layers = 2 * p.tokens * len(p.fused_layers) * w * p.width
    stage = counts.count(p)[0]
    assert stage.gflop * 1e9 == pytest.approx(p.encoder_layers * per_layer + patches + fuse_layers, rel=1e-3)
