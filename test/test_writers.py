"""Trajectory files: what is written is read back, wrong lines are named, other tools' formats are theirs."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from perspblur_ros.camera import Shutter
from perspblur_ros.errors import BagError
from perspblur_ros.evaluation.writers import (
    DENSE_COLUMNS,
    SPARSE_COLUMNS,
    CsvStream,
    DenseTrajectory,
    SparseTrajectory,
    atomic_file,
    read_dense,
    read_sparse,
    write_gcsv,
    write_tum,
)

T0 = 1_700_000_000_123_456_789


def dense(n: int = 40) -> DenseTrajectory:
    rng = np.random.default_rng(2)
    return DenseTrajectory(
        T0 + np.arange(n) * 2_083_333,
        Rotation.random(n, rng=rng).as_quat() if hasattr(Rotation, "random") else np.tile([0, 0, 0, 1.0], (n, 1)),
        rng.normal(size=(n, 3)),
        np.abs(rng.normal(size=(n, 3))) * 1e-4,
        np.abs(rng.normal(size=(n, 3))),
        np.arange(n) // 10,
        np.full(n, "crossblur"),
    )


def sparse(n: int = 5) -> SparseTrajectory:
    d = dense(n)
    return SparseTrajectory(d.stamp_ns, d.q_start_from_cam, d.sd_rotation, np.arange(n))


def write(path: Path, trajectory: DenseTrajectory | SparseTrajectory) -> Path:
    columns = DENSE_COLUMNS if isinstance(trajectory, DenseTrajectory) else SPARSE_COLUMNS
    with atomic_file(path) as file:
        CsvStream(file, columns).write(trajectory.rows())
    return path


def test_the_contract_of_the_columns() -> None:
    assert ",".join(DENSE_COLUMNS) == ("t_ns,qx,qy,qz,qw,wx,wy,wz,sd_rx,sd_ry,sd_rz,sd_wx,sd_wy,sd_wz,frame,source")
    assert ",".join(SPARSE_COLUMNS) == "t_ns,qx,qy,qz,qw,sd_x,sd_y,sd_z,frame"


@pytest.mark.parametrize(("made", "read"), [(dense(), read_dense), (sparse(), read_sparse)])
def test_trajectories_read_back(tmp_path: Path, made, read) -> None:
    back = read(write(tmp_path / "t.csv", made))
    for item in fields(made):
        a, b = getattr(made, item.name), getattr(back, item.name)
        if a.dtype.kind == "f":
            np.testing.assert_allclose(b, a, rtol=1e-7, atol=1e-9)
        else:
            assert np.array_equal(a, b)


def test_columns_may_come_in_any_order(tmp_path: Path) -> None:
    lines = write(tmp_path / "a.csv", sparse()).read_text().splitlines()
    turned = [",".join(reversed(line.split(","))) for line in lines]
    (tmp_path / "b.csv").write_text("\n".join(turned))
    assert np.array_equal(read_sparse(tmp_path / "b.csv").stamp_ns, sparse().stamp_ns)


def damaged(column: int, value: str, line: int = 3) -> list[str]:
    rows = [",".join(DENSE_COLUMNS), *dense(5).rows()]
    cells = rows[line].split(",")
    cells[column] = value
    rows[line] = ",".join(cells)
    return rows


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (damaged(5, "nan"), "line 4: nan is not a finite number"),
        (damaged(5, "x"), "line 4: could not convert"),
        (damaged(1, "2.0"), "line 4: the quaternion's length"),
        (damaged(0, str(T0)), r"line \d: t_ns .* does not come after"),
        (damaged(0, "9" * 30), "line 4: .* beyond 64 bits"),
        (damaged(14, ""), "line 4"),
        (["t_ns,qx"], "no column qy"),
        ([",".join(DENSE_COLUMNS)], "no samples"),
        ([",".join(DENSE_COLUMNS), "1,2"], "line 2"),
        ([""], "no column"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, rows: list[str], says: str) -> None:
    (tmp_path / "t.csv").write_text("\n".join(rows))
    with pytest.raises(BagError, match=says):
        read_dense(tmp_path / "t.csv")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BagError, match="does not exist"):
        read_sparse(tmp_path / "t.csv")


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=5))
def test_mutated_files_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, mutations) -> None:
    path = write(tmp_path_factory.mktemp("fuzz") / "t.csv", dense(6))
    blob = bytearray(path.read_bytes())
    for at, value in mutations:
        blob[at % len(blob)] = value
    path.write_bytes(blob)
    try:
        trajectory = read_dense(path)
    except BagError as error:
        text = str(error)
    else:
        text = ""
        assert np.all(np.diff(trajectory.stamp_ns) > 0)
    assert "\n" not in text


def test_an_unfinished_file_does_not_appear(tmp_path: Path) -> None:
    def interrupted() -> None:
        with atomic_file(tmp_path / "t.csv") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BagError, match="cannot be written"), atomic_file(tmp_path / "no" / "t.csv"):
        pass


def test_tum_lines(tmp_path: Path) -> None:
    write_tum(tmp_path / "t.tum", sparse().stamp_ns, sparse().q_start_from_cam)
    rows = np.loadtxt(tmp_path / "t.tum")
    assert rows.shape == (5, 8)
    assert np.all(rows[:, 1:4] == 0)
    np.testing.assert_allclose(rows[:, 4:], sparse().q_start_from_cam, atol=1e-9)
    assert (tmp_path / "t.tum").read_text().split()[0] == "1700000000.123456789"


def test_gyroflow_log(tmp_path: Path) -> None:
    trajectory = replace(dense(), frame=np.zeros(40, int))
    write_gcsv(tmp_path / "t.gcsv", trajectory, Shutter(10_000_000, 24_500_000))
    lines = (tmp_path / "t.gcsv").read_text().splitlines()
    header = dict(line.split(",", 1) for line in lines[1 : lines.index("t,gx,gy,gz")])
    assert lines[0] == "GYROFLOW IMU LOG"
    assert header["version"] == "1.3"
    assert float(header["frame_readout_time"]) == 24.5
    rows = np.array([line.split(",") for line in lines[lines.index("t,gx,gy,gz") + 1 :]], float)
    seconds, rates = rows[:, 0] * float(header["tscale"]), rows[:, 1:] * float(header["gscale"])
    np.testing.assert_allclose(seconds, (trajectory.stamp_ns - T0) * 1e-9, atol=1e-6)
    np.testing.assert_allclose(rates, trajectory.omega, rtol=1e-7)
    # Gyroflow takes letter i of the orientation as its component i (lower case: negated), turns by (−g₁, g₀, g₂), and
    # sees its own frame from the image with y and z reversed; what comes out must be the rate in the optical frame
    signs = [
        (-1 if letter.islower() else 1) * rates[:, "xyz".index(letter.lower())] for letter in header["orientation"]
    ]
    turned = np.stack([-signs[1], signs[0], signs[2]], axis=-1)
    np.testing.assert_allclose(turned * [1, -1, -1], trajectory.omega, rtol=1e-7)
