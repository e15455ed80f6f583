"""Bags: what is written is read back, and a damaged bag is one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from shutil import copytree

import cv2
import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer

from perspblur_ros.camera import Camera
from perspblur_ros.errors import BagError, ConfigError, PerspBlurError
from perspblur_ros.evaluation import bags
from perspblur_ros.evaluation.bags import BagReader, BagWriter

CAMERA = Camera(32, 24, 40.0, 41.0, 15.5, 11.5, (0.1, -0.02, 0.0, 0.001, 0.0))
T0 = 1_000_000_000


def pictures(n: int) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 255, (24, 32), dtype=np.uint8) for _ in range(n)]


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bags") / "walk"
    with BagWriter(path, CAMERA, {"exposure_s": 0.03, "lever_arm": (0.0, 0.1, 0.2)}) as writer:
        for k, image in enumerate(pictures(4)):
            writer.write_image(T0 + k * 33_000_000, image)
        writer.write_motion(T0 + np.arange(10) * 2_000_000, np.full((10, 3), 0.5), np.tile([0, 0, 0, 1.0], (10, 1)))
        writer.write_motion(T0 + np.arange(5) * 5_000_000, np.full((5, 3), 0.25))
        writer.write_depth(T0, np.where(pictures(1)[0] > 9, 2.5, np.nan).astype(np.float32))
    return path


def test_a_bag_reads_back(bag: Path) -> None:
    with BagReader(bag) as reader:
        frames = list(reader.frames())
        truth = reader.truth()
        depth = list(reader.depth_frames(bags.TRUTH_DEPTH_TOPIC))
        assert reader.parameters == {"exposure_s": 0.03, "lever_arm": [0.0, 0.1, 0.2]}
        assert reader.count(bags.IMAGE_TOPIC) == 4
        assert not reader.refused
    assert [f.stamp_ns for f in frames] == [T0 + k * 33_000_000 for k in range(4)]
    assert all(np.array_equal(f.image, image) for f, image in zip(frames, pictures(4)))
    assert frames[2].camera == CAMERA
    assert truth.topic == bags.TRUTH_TOPIC
    assert truth.q_ref_from_cam is not None
    assert np.all(truth.omega == 0.5)
    assert np.nanmax(depth[0].depth_m) == 2.5
    assert np.isnan(depth[0].depth_m).any()


def test_a_gyro_alone_has_no_orientation(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "gyro", CAMERA) as writer:
        writer.write_motion([3, 1, 2, 2], [[3, 0, 0], [1, 0, 0], [2, 0, 0], [9, 0, 0]])
    with BagReader(tmp_path / "gyro") as reader:
        log = reader.truth()
    assert log.topic == bags.GYRO_TOPIC
    assert log.q_ref_from_cam is None
    assert log.stamp_ns.tolist() == [1, 2, 3]
    assert log.omega[:, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(("suffix", "kind"), [(".png", "png"), (".jpg", "jpeg")])
def test_compressed_and_colour_pictures(tmp_path: Path, suffix: str, kind: str) -> None:
    image = cv2.GaussianBlur(pictures(1)[0], (0, 0), 3)
    blob = cv2.imencode(suffix, image)[1].tobytes()
    with BagWriter(tmp_path / "bag", CAMERA) as writer:
        writer.write_compressed(T0, blob, kind)
    with BagReader(tmp_path / "bag") as reader:
        assert reader.image_topic == "/camera/image_raw/compressed"
        (frame,) = reader.frames()
        (colour,) = reader.frames(rgb=True)
    assert np.abs(frame.image.astype(int) - image).max() <= (0 if kind == "png" else 6)
    assert colour.image.shape == (24, 32, 3)


def other_topics_bag(path: Path, plugin: StoragePlugin, topics: dict[str, str]) -> Path:
    """A bag as another tool would write it: other names, another storage."""
    types = bags._types()
    with Writer(path, version=8, storage_plugin=plugin) as writer:
        for topic, kind in topics.items():
            connection = writer.add_connection(topic, kind, typestore=types)
            if kind == bags._IMAGE:
                message = bags._message(
                    kind,
                    header=bags._header(T0),
                    height=24,
                    width=32,
                    encoding="mono8",
                    is_bigendian=0,
                    step=32,
                    data=pictures(1)[0].ravel(),
                )
            else:
                roi = bags._message(
                    "sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
                )
                message = bags._message(
                    kind,
                    header=bags._header(T0),
                    height=24,
                    width=32,
                    distortion_model="plumb_bob",
                    d=np.zeros(5),
                    k=CAMERA.K.ravel(),
                    r=np.zeros(9),
                    p=np.zeros(12),
                    binning_x=0,
                    binning_y=0,
                    roi=roi,
                )
            writer.write(connection, T0, types.serialize_cdr(message, kind))
    return path


def test_sqlite_and_other_topic_names(tmp_path: Path) -> None:
    topics = {"/front/image": bags._IMAGE, "/front/camera_info": bags._INFO}
    with BagReader(other_topics_bag(tmp_path / "b", StoragePlugin.SQLITE3, topics)) as reader:
        (frame,) = reader.frames()
    assert np.array_equal(frame.image, pictures(1)[0])
    assert frame.camera.fx == CAMERA.fx


@pytest.mark.parametrize(
    ("topics", "says"),
    [
        ({"/camera/image_raw": bags._IMAGE}, "no /camera/camera_info"),
        ({"/a/image": bags._IMAGE, "/b/image": bags._IMAGE, "/a/camera_info": bags._INFO}, "2 image topics"),
        ({"/camera/camera_info": bags._INFO}, "0 image topics"),
    ],
)
def test_a_bag_without_what_is_needed_says_so(tmp_path: Path, topics: dict[str, str], says: str) -> None:
    path = other_topics_bag(tmp_path / "b", StoragePlugin.MCAP, topics)
    with BagReader(path) as reader, pytest.raises(BagError, match=says):
        list(reader.frames())
    with BagReader(path) as reader, pytest.raises(BagError, match="neither /ground_truth/imu nor /imu/data_raw"):
        reader.truth()


def test_an_unusable_image_is_counted_and_the_stream_goes_on(tmp_path: Path) -> None:
    types = bags._types()
    with BagWriter(tmp_path / "b", CAMERA) as writer:
        writer.write_image(T0, pictures(1)[0])
        short = bags._message(
            bags._IMAGE,
            header=bags._header(T0 + 1),
            height=24,
            width=32,
            encoding="mono8",
            is_bigendian=0,
            step=32,
            data=np.zeros(5, np.uint8),
        )
        writer._writer.write(writer._connections[bags.IMAGE_TOPIC], T0 + 1, types.serialize_cdr(short, bags._IMAGE))
        writer.write_image(T0 + 2, pictures(1)[0])
    with BagReader(tmp_path / "b") as reader:
        assert [f.stamp_ns - T0 for f in reader.frames()] == [0, 2]
        assert sum(reader.refused.values()) == 1


def test_a_bag_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    def interrupted() -> None:
        with BagWriter(tmp_path / "b", CAMERA) as writer:
            writer.write_image(T0, pictures(1)[0])
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(BagError, match="exists already"):
        BagWriter(tmp_path / "there", CAMERA)
    with pytest.raises(ConfigError, match="exposure"):
        BagWriter(tmp_path / "b", CAMERA, {"exposure_s": -3.0})
    with pytest.raises(BagError, match="negative"), BagWriter(tmp_path / "b", CAMERA) as writer:
        writer.write_image(-5, pictures(1)[0])


def test_missing_bags_are_named(tmp_path: Path) -> None:
    with pytest.raises(BagError, match="does not exist"):
        BagReader(tmp_path / "nowhere")
    with pytest.raises(BagError, match=r"metadata\.yaml"):
        BagReader(tmp_path)
    (tmp_path / "metadata.yaml").write_bytes(b"a" * 1_000_001)
    with pytest.raises(BagError, match="larger than"):
        BagReader(tmp_path)
    (tmp_path / "x.mcap").write_bytes(b"")
    with pytest.raises(BagError, match="cannot be read"):
        BagReader(tmp_path / "x.mcap")


@pytest.mark.parametrize("name", ["params.yaml", "metadata.yaml"])
@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000,
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{c}: &{c} [{','.join(['*' + p] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi")),
        "exposure_s: 2001-99-99",
        "exposure_s: !!python/object/apply:os.system [echo]",
        "\xff\xfe\x00",
        "- 1\n- 2",
        "7",
    ],
)
def test_hostile_yaml_is_one_sentence(bag: Path, tmp_path: Path, name: str, text: str) -> None:
    path = copytree(bag, tmp_path / "walk")
    (path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(PerspBlurError) as caught, BagReader(path) as reader:
        bags.config_values(reader.parameters)
    assert len(str(caught.value)) < 500 + len(str(path))


FUZZ = """
import resource, sys, numpy as np
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
from perspblur_ros.errors import PerspBlurError
from perspblur_ros.evaluation.bags import BagReader
path, count = Path(sys.argv[1]), int(sys.argv[2])
files = {f: f.read_bytes() for f in path.iterdir()}
rng = np.random.default_rng(11)
refused = 0
for trial in range(count):
    for file, good in files.items():
        file.write_bytes(good)
    file = list(files)[trial % len(files)]
    bad = bytearray(files[file])
    if trial % 5 == 0:
        bad = bad[: rng.integers(len(bad))]
    else:
        for at in rng.integers(0, len(bad), rng.integers(1, 9)):
            bad[at] = rng.integers(256)
    file.write_bytes(bad)
    try:
        with BagReader(path) as reader:
            list(reader.frames())
            reader.truth()
            list(reader.depth_frames("/ground_truth/depth"))
    except PerspBlurError as error:
        assert "\\n" not in str(error), error
        refused += 1
print("refused", refused)
"""


@pytest.mark.parametrize("count", [90, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_bags_never_crash_or_hang(bag: Path, tmp_path: Path, count: int) -> None:
    path = copytree(bag, tmp_path / "walk")
    command = [sys.executable, "-c", FUZZ, str(path), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 + count, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > count // 4
