"""The demo: a rendered camera in one process, the real node in another, a recorder here, and the comparison.

A real photograph with real depth moves as in a hand; what the node makes of its blur goes through real middleware into
the files that ``replay`` writes, and is compared with the truth.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..config import load_yaml
from ..errors import ConfigError, PerspBlurError
from ..share import share_path
from . import middleware

FPS = 15.0
WIDTH, HEIGHT = 640, 480
RATE_RMS_RAD_S = 0.25
SEED = 7

START_S, END_S, STOP_S = 60.0, 30.0, 5.0
_PR_SET_PDEATHSIG = 1


def run_demo(out: Path, seconds: float = 6.0) -> Path:
    """Run the demo and write bag, CSVs, metrics.json and report.html into ``out``; returns the report's path."""
    from ..evaluation.evaluate import evaluate
    from ..evaluation.report import write_report
    from ..evaluation.tables import method_table

    console = Console()
    bag = _prepared(Path(out)) / "bag"
    with _progress(console) as bar:
        rendering = bar.add_task("Rendering the camera's frames", total=round(seconds * FPS))
        render_clip(bag, seconds, lambda done, total: bar.update(rendering, completed=done))
        playing = bar.add_task("Camera → ROS 2 → node", total=round(seconds * FPS))
        recording = _play(bag, Path(out), lambda done: bar.update(playing, completed=done))
        comparing = bar.add_task("Comparing with the truth", total=1)
        command = f"perspblur demo --seconds {seconds:g}"
        _write(recording, Path(out), bag, command)
        comparison = evaluate(Path(out), bag)
        report = write_report(comparison, Path(out), bag)
        bar.update(comparing, completed=1)
    console.print(method_table(comparison.metrics))
    console.print(_transport_table(recording))
    console.print(f"Report: {report}", highlight=False)
    return report


def render_clip(bag: Path, seconds: float = 6.0, on_frame: Callable[[int, int], None] | None = None) -> Path:
    """Render the demo's clip into a bag, with the timing and lever arm of config/demo.yaml."""
    from ..evaluation.clips import write_simulated
    from ..sim.clips import simulate_clip
    from ..sim.hand_motion import hand_motion
    from ..sim.scene import motorcycle, procedural, view_camera

    config = load_yaml(share_path("config", "demo.yaml"))
    try:
        scene = motorcycle()
    except ImportError:  # scikit-image belongs to the demo's extra
        scene = procedural()
    n_frames = round(seconds * FPS)
    clip = simulate_clip(
        scene,
        hand_motion(SEED, n_frames / FPS + 0.5, RATE_RMS_RAD_S),
        view_camera(scene, WIDTH, HEIGHT),
        n_frames,
        FPS,
        config.exposure_s,
        config.readout_s,
        config.lever_arm,
        seed=SEED,
        name="demo",
        on_frame=(lambda done: on_frame(done, n_frames)) if on_frame else None,
    )
    write_simulated(clip, bag)
    return bag


def _prepared(out: Path) -> Path:
    """The output folder, emptied of an earlier demo's bag."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file, not a folder to write into")
    out.mkdir(parents=True, exist_ok=True)
    if (out / "bag" / "metadata.yaml").is_file():
        shutil.rmtree(out / "bag")
    return out


def _play(bag: Path, out: Path, on_frame: Callable[[int], None]) -> Any:
    """Start node and camera, record until the last frame is through; returns the recording."""
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))  # leave other graphs on this machine alone
    middleware.prepare_process()
    try:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.signals import SignalHandlerOptions
    except ImportError:
        raise ConfigError("the demo needs rclpy: pip install 'perspblur_ros[demo]', or source a ROS 2 setup") from None
    from .graph import with_defaults
    from .recorder import Recorder

    context = rclpy.Context()
    rclpy.init(args=with_defaults(["demo"]), context=context, signal_handler_options=SignalHandlerOptions.NO)
    recorder = Recorder(context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(recorder)
    parameters = str(share_path("config", "demo.yaml"))
    camera_arguments = ["-p", f"bag:={bag}", "-p", "loop:=false"]

    def spin_until(done: Callable[[], bool], what: str, limit_s: float, children: dict[str, Any]) -> None:
        """Give up when nothing has happened for ``limit_s``: a busy machine may be slow, but must not be stuck."""
        frames, end_s = 0, time.monotonic() + limit_s
        while not done():
            executor.spin_once(timeout_sec=0.05)
            if len(recorder.recording.paths) > frames:
                frames, end_s = len(recorder.recording.paths), time.monotonic() + limit_s
                on_frame(frames)
            for name, child in children.items():
                if child.poll() not in (None, 0):
                    raise PerspBlurError(f"the {name} ended with status {child.returncode}; see {out / name}.log")
            if time.monotonic() > end_s:
                raise PerspBlurError(f"waited {limit_s:.0f} s in vain for {what}; see {out / 'node'}.log")

    try:
        with _child("node", "main", ["--params-file", parameters], out) as node:
            spin_until(recorder.matched, "the node", START_S, {"node": node})
            with _child("camera", "camera_simulator", camera_arguments, out) as camera:
                both = {"node": node, "camera": camera}
                spin_until(lambda: camera.poll() is not None, "the camera", START_S + 600, both)
            spin_until(recorder.quiet, "the last frame", END_S, {"node": node})
    finally:
        executor.shutdown(timeout_sec=1.0)
        recorder.destroy_node()
        context.try_shutdown()
    return recorder.recording


@contextmanager
def _child(name: str, module: str, arguments: list[str], out: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A node in a process of its own, its output in ``name``.log; ends with the block, and with this process."""
    command = [sys.executable, "-m", f"{__package__}.{module}", "--ros-args", *arguments]
    libc = ctypes.CDLL(None)
    with (
        (out / f"{name}.log").open("wb") as log,
        subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),
        ) as process,
    ):
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _write(recording: Any, out: Path, bag: Path, command: str) -> None:
    from ..evaluation.bags import BagReader
    from .recorder import write_recording

    with BagReader(bag) as reader:
        first_ns = next(reader.frames()).stamp_ns
        parameters = reader.parameters
    if not recording.camera_stamps_ns:
        raise PerspBlurError(f"no frame of the camera was seen; see {out / 'camera.log'}")
    write_recording(recording, out, parameters, recording.camera_stamps_ns[0] - first_ns, command)


def _transport_table(recording: Any) -> Table:
    table = Table("over ROS 2", "sent", "received", box=SIMPLE_HEAD, pad_edge=False)
    counts = recording.diagnostics.get("trajectory", {})
    received = recording.diagnostics.get("input", {})
    table.add_row("camera frames", str(len(recording.camera_stamps_ns)), received.get("received", "?"))
    table.add_row("frames with a trajectory", counts.get("published", "?"), str(len(recording.paths)))
    table.add_row("dense samples", str(recording.samples_in_paths), str(len(recording.imu)))
    return table


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)
