"""The parameters of ``config.py`` as ROS parameters: described, ranged, validated.

A wrong override does not keep the node from starting: it stays unconfigured and says what is wrong, as a lifecycle
node should, and the parameter can be set right before the next attempt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter

from ..config import DEFAULTS, SPECS, Config, Spec, check, from_mapping
from ..errors import ConfigError, PerspBlurError

Type = Parameter.Type

_FOREIGN = ("use_sim_time", "start_type_description_service", "qos_overrides")  # rclpy's own

_TYPES = {bool: Type.BOOL, int: Type.INTEGER, float: Type.DOUBLE, str: Type.STRING, tuple: Type.DOUBLE_ARRAY}


def declare(node: Node) -> dict[str, str]:
    """Declare every parameter with its override, or with its default where the override is refused.

    Returns the refusals: parameter name → one sentence. Unknown overrides are among them.
    """
    overrides: dict[str, Any] = {name: p.value for name, p in node._parameter_overrides.items() if p.value is not None}
    refused: dict[str, str] = {}
    for name, spec in SPECS.items():
        value = DEFAULTS[name]
        if name in overrides:
            try:
                value = check(name, _plain(overrides[name]))
            except ConfigError as error:
                refused[name] = str(error)
        type_ = _TYPES[type(DEFAULTS[name])]
        node.declare_parameter(name, type_, descriptor(name, spec), ignore_override=True)
        node.set_parameters([Parameter(name, type_, _plain(value))])
    return {**refused, **unknown_overrides(node)}


def unknown_overrides(node: Node) -> dict[str, str]:
    """Overrides that no declared parameter takes, which rclpy ignores without a word: name → one sentence."""
    unknown = {}
    for name in node._parameter_overrides:
        if not node.has_parameter(name) and name.split(".")[0] not in _FOREIGN:
            near = get_close_matches(name, list(node._parameters), n=1)
            unknown[name] = f"unknown parameter '{name}'" + (f"; did you mean '{near[0]}'?" if near else "")
    return unknown


def descriptor(name: str, spec: Spec) -> ParameterDescriptor:
    """What ``ros2 param describe`` shows. Every double has a range, which is what stops NaN and infinity."""
    unit = f" [{spec.unit}]" if spec.unit else ""
    message = ParameterDescriptor(name=name, description=f"{spec.doc}{unit}")
    limits = [v for v in (spec.low, spec.high, spec.also) if v is not None]
    default = DEFAULTS[name]
    if spec.choices:
        message.additional_constraints = f"one of {', '.join(spec.choices)}"
    elif spec.also is not None:
        message.additional_constraints = f"{spec.low} to {spec.high}, or {spec.also}"
    elif isinstance(default, tuple):
        message.additional_constraints = f"empty, or three numbers from {spec.low} to {spec.high}"
    if isinstance(default, float):
        low, high = (min(limits), max(limits)) if limits else (-math.inf, math.inf)
        message.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
    elif isinstance(default, int) and not isinstance(default, bool) and limits:
        message.integer_range = [IntegerRange(from_value=int(min(limits)), to_value=int(max(limits)), step=1)]
    return message


def read(node: Node) -> Config:
    """The configuration that the declared parameters make; ConfigError when they contradict each other."""
    return from_mapping({name: _plain(node.get_parameter(name).value) for name in SPECS})


def validate_changes(
    node: Node, accept: Callable[[Config, set[str]], None], applied: Callable[[set[str]], None]
) -> None:
    """Have changes at run time judged by ``accept(new configuration, changed names)``, which raises to refuse them.

    ``applied(names)`` runs after a change has been stored. Whole numbers are taken for floating-point parameters.
    """

    def convert(parameters: list[Parameter]) -> list[Parameter]:
        return [_as_declared(p) for p in parameters]

    def judge(parameters: list[Parameter]) -> SetParametersResult:
        ours = {p.name: _plain(p.value) for p in parameters if p.name in SPECS}
        if not ours:
            return SetParametersResult(successful=True)
        try:
            for name, value in ours.items():
                check(name, value)
            config = from_mapping(ours, read(node))
            accept(config, set(changed(read(node), config)))
        except PerspBlurError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def stored(parameters: list[Parameter]) -> None:
        names = {p.name for p in parameters} & set(SPECS)
        if names:
            applied(names)

    node.add_pre_set_parameters_callback(convert)
    node.add_on_set_parameters_callback(judge)
    node.add_post_set_parameters_callback(stored)


def changed(old: Config, new: Config) -> list[str]:
    return [f.name for f in fields(Config) if getattr(old, f.name) != getattr(new, f.name)]


def _as_declared(parameter: Parameter) -> Parameter:
    """Whole numbers as floating-point ones where those are declared: 0 is a fine exposure_s, [0, 0, 0] a lever_arm."""
    default = DEFAULTS.get(parameter.name)
    if isinstance(default, float) and parameter.type_ == Type.INTEGER:
        return Parameter(parameter.name, Type.DOUBLE, float(parameter.value))
    if isinstance(default, tuple) and parameter.type_ == Type.INTEGER_ARRAY:
        return Parameter(parameter.name, Type.DOUBLE_ARRAY, [float(v) for v in parameter.value])
    return parameter


def _plain(value: Any) -> Any:
    """Arrays as lists; everything else as it is."""
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        return list(value)
    return value
