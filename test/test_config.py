"""One home for every parameter: what is legal passes unchanged, what is not is one sentence that names it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perspblur_ros.config import DEFAULTS, SPECS, Config, check, from_mapping, load_yaml, parse_assignment
from perspblur_ros.errors import ConfigError


def test_every_parameter_is_described_and_its_default_is_legal() -> None:
    assert set(DEFAULTS) == set(SPECS) == {f.name for f in dataclasses.fields(Config)}
    for name, spec in SPECS.items():
        assert spec.doc, name
        assert check(name, DEFAULTS[name]) == DEFAULTS[name]


@pytest.mark.parametrize(
    "name", [n for n, d in DEFAULTS.items() if isinstance(d, (int, float)) and not isinstance(d, bool)]
)
def test_every_number_has_a_range_that_keeps_nan_out(name: str) -> None:
    spec = SPECS[name]
    assert spec.low is not None
    assert spec.high is not None
    for value in (math.nan, math.inf, -math.inf, spec.low - 2.5, spec.high + 2, "1", None, True, [1], 10**400):
        with pytest.raises(ConfigError, match=name):
            check(name, value)
    assert check(name, spec.low) == spec.low
    assert type(check(name, spec.high)) is type(DEFAULTS[name])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"exposure": 0.1}, "did you mean 'exposure_s'"),
        ({"zzz": 1}, "unknown parameter 'zzz'"),
        ({"stamp_reference": "start"}, "none of exposure_start"),
        ({"stamp_reference": 3}, "not a text"),
        ({"samples_per_frame": 2.5}, "not a whole number"),
        ({"autostart": 1}, "not true or false"),
        ({"lever_arm": [1, 2]}, "2 numbers"),
        ({"lever_arm": "0 0 1"}, "list of three"),
        ({"lever_arm": [0, 0, math.nan]}, "finite"),
        ({"lever_arm": [0, 0, 0.1], "pivot_frame": "wrist"}, "both given"),
        ({"exposure_s": -0.5}, "outside 0.0 to 1.0 s"),
    ],
)
def test_what_is_not_legal_is_named(values: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        from_mapping(values)


def test_unknown_timing_is_none_and_known_timing_is_whole_nanoseconds() -> None:
    assert Config().exposure_ns is None
    assert Config().readout_ns is None
    config = from_mapping({"exposure_s": 0.0333, "readout_s": 0, "stamp_offset_s": -0.045})
    assert (config.exposure_ns, config.readout_ns, config.stamp_offset_ns) == (33_300_000, 0, -45_000_000)


def test_later_values_win_and_the_base_is_kept() -> None:
    base = from_mapping({"exposure_s": 0.02, "lever_arm": [0, 0, 1]})
    config = from_mapping({"exposure_s": 0.03}, base)
    assert (config.exposure_s, config.lever_arm) == (0.03, (0.0, 0.0, 1.0))


@pytest.mark.parametrize(
    "text",
    [
        "exposure_s: 0.02\nlever_arm: [0, 0, 0.2]\n",
        "/**:\n  ros__parameters:\n    exposure_s: 0.02\n    use_sim_time: true\n"
        "perspblur:\n  ros__parameters:\n    lever_arm: [0, 0, 0.2]\n"
        "another_node:\n  ros__parameters:\n    gain: 3\n",
    ],
)
def test_plain_and_ros_parameter_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.yaml").write_text(text, encoding="utf-8")
    config = load_yaml(tmp_path / "p.yaml")
    assert (config.exposure_s, config.lever_arm) == (0.02, (0.0, 0.0, 0.2))


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("# nothing\n", encoding="utf-8")
    assert load_yaml(tmp_path / "p.yaml") == Config()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "not valid YAML"),
        ("- 1", "name: value"),
        ("3", "name: value"),
        ("/**:\n  exposure_s: 1", "ros__parameters"),
        ("/**:\n  ros__parameters:\n    7: 1", "unknown parameter 7"),
        ("x: 2001-99-99", "not valid YAML"),
        ("#" * 1_000_001, "larger than 1 MB"),
        ("? " + "x" * 900_000 + "\n: 1", "unknown parameter"),
    ],
)
def test_bad_files_are_one_short_sentence(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "p.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=says) as caught:
        load_yaml(tmp_path / "p.yaml")
    assert len(str(caught.value)) < 400 + len(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml does not exist"):
        load_yaml(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("exposure_s=0.06", ("exposure_s", 0.06)),
        ("lever_arm=[0, 0, 0.2]", ("lever_arm", [0, 0, 0.2])),
        (" stamp_reference =mid", ("stamp_reference", "mid")),
        ("depth_topic=''", ("depth_topic", "")),
        ("a=b=c", ("a", "b=c")),
    ],
)
def test_assignments(text: str, expected: tuple) -> None:
    assert parse_assignment(text) == expected


@pytest.mark.parametrize("text", ["exposure_s", "a=[", "a=2001-99-99", "a=" + "[" * 3000])
def test_bad_assignments(text: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        parse_assignment(text)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(SPECS)), values)
def test_a_checked_value_stays_legal_and_anything_else_is_a_config_error(name: str, value) -> None:
    try:
        checked = check(name, value)
    except ConfigError:
        return
    assert check(name, checked) == checked
