"""The torch renderer against the numpy one, and its sensor effects."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from perspblur_ros.camera import Camera  # noqa: E402
from perspblur_ros.sim import torch_render as tr  # noqa: E402
from perspblur_ros.sim.hand_motion import hand_motion  # noqa: E402
from perspblur_ros.sim.motion import STEP_S  # noqa: E402
from perspblur_ros.sim.render import prepare, render_depth, render_frame  # noqa: E402
from perspblur_ros.sim.scene import procedural  # noqa: E402
from perspblur_ros.sim.sensor import NOISELESS  # noqa: E402

HEIGHT, WIDTH = 48, 64
LEVER = (0.05, -0.12, 0.2)


@pytest.fixture(scope="module")
def rendered():
    """The same clip from both: two frames with rolling shutter, lever arm and a moving pivot."""
    camera = Camera(WIDTH, HEIGHT, 48.0, 50.0, 30.0, 25.0)
    view = prepare(procedural(3, 320, 240, 200.0), camera)
    path = hand_motion(5, 0.4, 0.6, pivot_speed_rms_m_s=0.1).centred(0.0, 0.4)
    starts, exposure, readout = [0.05, 0.2], 0.06, 0.03
    frames = [render_frame(view, path, t, exposure, readout, LEVER, n_subframes=9) for t in starts]
    depth = render_depth(view, path, 0.1, LEVER)

    def t(x):
        return torch.as_tensor(np.asarray(x), dtype=torch.float64)[None]

    def intrinsics(c):
        return t([c.fx, c.fy, c.cx, c.cy])

    views = tr.Views(t(view.image[None]), t(view.inv_depth[None]), intrinsics(view.source), intrinsics(camera))
    paths = tr.Paths(STEP_S, t(path.R_ref_from_cam), t(path.pivot_m))
    size = (HEIGHT, WIDTH)
    ours = tr.render_frames(views, paths, t(starts), t(exposure), t(readout), t(LEVER), size, n_subframes=9)
    our_depth = tr.render_depth(views, paths, t(0.1), t(LEVER), size)
    return frames, depth, ours[0, :, 0].numpy(), our_depth[0].numpy()


def test_frames_equal_the_numpy_renderer(rendered):
    frames, _, ours, _ = rendered
    assert np.std(frames[0] - frames[1]) > 0.01  # the clip moves
    for reference, picture in zip(frames, ours):
        difference = np.abs(reference - picture)  # OpenCV samples on a grid of 1/32 pixel
        assert np.median(difference) < 5e-4
        assert np.percentile(difference, 99) < 6e-3


def test_depth_equals_the_numpy_renderer(rendered):
    _, depth, _, ours = rendered
    assert depth.std() > 0.3
    assert np.percentile(np.abs(ours / depth - 1), 97) < 5e-3


def test_a_clip_does_not_depend_on_its_neighbours_in_the_batch():
    def random(*shape):
        return torch.rand(*shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)

    camera = torch.tensor([[40.0, 40, 16, 12], [30.0, 34, 15, 13]], dtype=torch.float64)
    R = torch.from_numpy(np.stack([hand_motion(s, 0.2, 1.0).R_ref_from_cam for s in (1, 2)]))
    batch = (tr.Views(random(2, 1, 40, 50), 0.2 + random(2, 1, 40, 50), camera * 1.2, camera),
             tr.Paths(STEP_S, R, torch.zeros_like(R[..., 0])))
    one = (tr.Views(*(getattr(batch[0], n)[1:] for n in ("image", "inv_depth", "source", "camera"))),
           tr.Paths(STEP_S, R[1:], batch[1].pivot_m[1:]))
    arguments = [torch.tensor(v, dtype=torch.float64) for v in ([[0.0, 0.1]] * 2, [0.05] * 2, [0.01] * 2, [LEVER] * 2)]
    both = tr.render_frames(*batch, *arguments, (24, 32), 3)
    alone = tr.render_frames(*one, *(a[1:] for a in arguments), (24, 32), 3)
    assert both.shape == (2, 2, 1, 24, 32)
    torch.testing.assert_close(both[1:], alone)


def test_the_noiseless_sensor_equals_the_numpy_one():
    linear = np.linspace(-0.1, 1.2, 300, dtype=np.float32).reshape(1, 300)
    picture = tr.expose(torch.from_numpy(linear), torch.tensor([1e12]), read_noise_e=0.0)
    np.testing.assert_array_equal((255 * picture).round().numpy(), NOISELESS.encode(linear))


def test_noise_has_the_stated_size():
    flat = torch.full((1, 200, 200), 0.25, dtype=torch.float64)
    seeded = torch.Generator().manual_seed(1)
    noisy = tr.expose(flat, torch.tensor([2000.0]), 5.0, gamma=torch.tensor([1.0]), generator=seeded)
    assert noisy.std().item() == pytest.approx(np.sqrt(0.25 * 2000 + 25) / 2000, rel=0.05)


def test_jpeg_keeps_flat_pictures_and_loses_more_at_low_quality():
    picture = torch.rand(1, 2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    errors = [(tr.jpeg(picture, torch.tensor([q])) - picture).abs().mean().item() for q in (100.0, 80.0, 30.0)]
    assert errors[0] < 0.004
    assert errors[0] < errors[1] < errors[2]
    flat = torch.full((1, 16, 16), 128 / 255)
    torch.testing.assert_close(tr.jpeg(flat, torch.tensor([30.0])), flat)
