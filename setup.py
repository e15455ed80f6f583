"""Installs the package for pip and for colcon (ament_python) alike."""

import re
from pathlib import Path

from setuptools import find_packages, setup

NAME = "perspblur_ros"
HERE = Path(__file__).parent

ROS = [
    "ros-rclpy[fastrtps]",
    "ros-diagnostic-msgs",
    "ros-geometry-msgs",
    "ros-lifecycle-msgs",
    "ros-nav-msgs",
    "ros-sensor-msgs",
    "ros-std-srvs",
]
DEMO = [*ROS, "scikit-image"]
DEV = [*DEMO, "hypothesis", "mypy", "psutil", "pytest", "ruff", "types-PyYAML"]


def version() -> str:
    """The one in the package, which this file must not import: its dependencies are not there yet."""
    text = (HERE / NAME / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"', text, re.MULTILINE).group(1)


def shared(folder: str) -> list:
    """``folder`` with its subfolders, installed under share/ (``perspblur_ros.share`` finds it again)."""
    files = sorted(p for p in Path(folder).rglob("*") if p.is_file() and p.suffix not in (".pyc", ".plan"))
    return [(f"share/{NAME}/{file.parent}", [str(file)]) for file in files]


setup(
    name=NAME,
    version=version(),
    description="Reads camera rotation out of motion blur, as a ROS 2 package and a command-line tool",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    package_data={NAME: ["py.typed", "evaluation/templates/*"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        *shared("config"),
        *shared("engines"),
        *shared("launch"),
    ],
    python_requires=">=3.10",
    install_requires=[
        "jinja2",
        "matplotlib",
        "numpy>=1.21",
        "onnxruntime",
        "opencv-python-headless",
        "pyyaml",
        "rich",
        "rosbags",
        "scipy>=1.8",
        "typer",
    ],
    extras_require={
        "ros": ROS,
        "demo": DEMO,
        "train": ["onnx", "onnxscript", "safetensors", "torch", "transformers"],
        "gpu": ["cuda-python", "tensorrt"],
        "dev": DEV,
    },
    entry_points={
        "console_scripts": [
            "perspblur = perspblur_ros.__main__:main",
            # for `ros2 run perspblur_ros …` and the launch file
            "pipeline = perspblur_ros.ros.main:main",
            "camera_simulator = perspblur_ros.ros.camera_simulator:main",
            "evaluator = perspblur_ros.ros.evaluator:main",
        ]
    },
    zip_safe=False,
)
