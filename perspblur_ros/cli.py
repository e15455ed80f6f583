"""The command line ``perspblur``. Every command imports what it needs when it runs, so ``--help`` is instant."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from .config import DEFAULTS, SPECS, Spec, parse_assignment
from .errors import ConfigError, PerspBlurError

if TYPE_CHECKING:
    from .camera import Camera
    from .sim.motion import MotionPath
    from .sim.scene import Scene

app = typer.Typer(
    name="perspblur",
    help="Reads camera rotation out of motion blur: images in, a dense, IMU-like rotation trajectory out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
engine_app = typer.Typer(help="Exported networks: compile for this machine, or look inside.", no_args_is_help=True)
app.add_typer(engine_app, name="engine")
out_console = Console()
err_console = Console(stderr=True)

Out = Annotated[Path, typer.Option("--out", help="Folder or bag to write.")]
BagPath = Annotated[Path, typer.Argument(help="A rosbag2 folder (MCAP or sqlite3).", show_default=False)]
Params = Annotated[
    Path | None, typer.Option("--params", help="Parameter file over the bag's own params.yaml.", show_default=False)
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One parameter over everything else.", show_default=False),
]
EngineFolder = Annotated[
    Path | None, typer.Argument(help="Exported network; default: the shipped tiny preset.", show_default=False)
]


@app.command()
def demo(
    out: Out = Path("perspblur_demo"),
    seconds: Annotated[float, typer.Option(min=1.0, max=60.0, help="Length of the rendered motion.")] = 6.0,
) -> None:
    """Show the main job: a rendered camera on real ROS 2, the real node, and a report against the truth.

    Needs no camera and no ROS installation.
    """
    from .ros.demo import run_demo

    run_demo(out, seconds)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run(context: typer.Context) -> None:
    """Start the node, as the launch file does; everything after it goes to ROS (--ros-args …)."""
    from .ros.main import main as run_node

    status = run_node(context.args)
    raise typer.Exit(status or 0)


@app.command()
def simulate(
    out: Out,
    rgb: Annotated[Path | None, typer.Option(help="Picture; without it scikit-image's motorcycle is used.")] = None,
    depth: Annotated[Path | None, typer.Option(help="16-bit depth PNG of the picture.")] = None,
    depth_scale: Annotated[float, typer.Option(help="Depth in metres = value / this.")] = 1000.0,
    fx: Annotated[float | None, typer.Option(help="Focal length of the picture, pixels.")] = None,
    fy: Annotated[float | None, typer.Option(help="Default: fx.")] = None,
    cx: Annotated[float | None, typer.Option(help="Principal point; default: the centre.")] = None,
    cy: Annotated[float | None, typer.Option(help="Principal point; default: the centre.")] = None,
    gyro: Annotated[Path | None, typer.Option(help="Gyro CSV t_s,wx,wy,wz; default: the hand-motion model.")] = None,
    gyro_start: Annotated[float, typer.Option(help="Where in the recording to begin, s.")] = 0.0,
    axes: Annotated[str, typer.Option(help="Recorded axis behind each optical axis, e.g. -y-x-z.")] = "+x+y+z",
    amplitude: Annotated[float, typer.Option(help="Factor on the recorded rates.")] = 1.0,
    remove_mean: Annotated[bool, typer.Option(help="Take off the mean rate, so that the view stays.")] = True,
    rate_rms: Annotated[float, typer.Option(help="RMS rate of the hand-motion model, rad/s.")] = 0.4,
    frames: Annotated[int, typer.Option(min=1, max=100_000)] = 60,
    fps: Annotated[float, typer.Option(min=1.0, max=240.0)] = 16.0,
    exposure: Annotated[float, typer.Option(help="Seconds.")] = 0.06,
    readout: Annotated[float, typer.Option(help="First to last row, seconds.")] = 0.002,
    lever_arm: Annotated[
        tuple[float, float, float], typer.Option(help="Pivot to optical centre, optical frame, metres.")
    ] = (0.0, 0.0, 0.0),
    width: Annotated[int, typer.Option(min=16, max=8192)] = 640,
    height: Annotated[int, typer.Option(min=16, max=8192)] = 480,
    margin: Annotated[float, typer.Option(help="Share of the picture kept outside the view for the motion.")] = 0.15,
    grey: Annotated[bool, typer.Option(help="Grey pictures: a third of the size and time.")] = False,
    seed: int = 0,
) -> None:
    """Render a blurred bag with truth from a picture with depth and a rotation path."""
    from .evaluation.clips import write_simulated
    from .sim.clips import simulate_clip
    from .sim.scene import motorcycle, view_camera

    scene = motorcycle() if rgb is None else _scene(rgb, depth, depth_scale, (fx, fy, cx, cy))
    scene = scene.grey() if grey else scene
    duration_s = frames / fps + exposure + readout + 0.05
    path = _path(gyro, gyro_start, duration_s, axes, amplitude, remove_mean, seed, rate_rms)
    _refuse_existing(out)
    with _progress("Rendering", frames) as advance:
        clip = simulate_clip(
            scene,
            path,
            view_camera(scene, width, height, margin),
            frames,
            fps,
            exposure,
            readout,
            lever_arm,
            seed=seed,
            on_frame=advance,
        )
    write_simulated(clip, out)
    if clip.margin_px < 0:
        _say(f"The view left the picture by {-clip.margin_px:.0f} px; its mirror image was seen there.", err_console)
    _say(f"{out}: {frames} frames, blur {clip.blur_px.mean():.1f} px on average.")


@app.command()
def convert(
    clip: Annotated[Path, typer.Argument(help="Folder with frames.csv, meta.json and the pictures.")],
    out: Out,
    compressed: Annotated[bool, typer.Option(help="Keep the pictures as files, a tenth of the size.")] = False,
) -> None:
    """Turn a clip folder (frames.csv, frames/, gyro_cam.csv, meta.json) into a bag."""
    from .evaluation.clips import convert as convert_clip

    with _progress("Converting") as advance:
        result = convert_clip(clip, out, compressed, advance)
    stated = ", ".join(f"{name} {value}" for name, value in result.parameters.items()) or "nothing of the shutter"
    _say(f"{out}: {len(result.files)} frames, {len(result.gyro_ns)} gyro samples; stated: {stated}.")


@app.command()
def replay(
    bag: BagPath,
    out: Out,
    params: Params = None,
    assignments: Assignments = None,
    image_topic: Annotated[str, typer.Option(help="Default: /camera/image_raw, or the only one.")] = "",
) -> None:
    """Run the pipeline over a bag, no frame dropped, without ROS: the same bag always gives the same files."""
    from .evaluation.replay import replay as replay_bag

    with _progress("Replaying") as advance:
        run = replay_bag(bag, out, params, assignments or (), image_topic, on_frame=advance, command=_command_line())
    _say(f"{out}: {run.frames_out} of {run.frames_in} frames, {run.wall_s:.1f} s for {run.video_s:.1f} s of video.")


@app.command()
def calibrate(
    bag: BagPath,
    out: Annotated[Path | None, typer.Option("--out", help="Parameter file to write.", show_default=False)] = None,
    params: Params = None,
    assignments: Assignments = None,
    image_topic: Annotated[str, typer.Option(help="Default: /camera/image_raw, or the only one.")] = "",
    seconds: Annotated[float, typer.Option(min=1.0, help="How much of the bag is looked at.")] = 30.0,
) -> None:
    """Estimate exposure, readout and, with a gyro in the bag, the stamp offset from the video itself."""
    from .evaluation.calibrate import calibrate_bag, timing_table
    from .evaluation.writers import write_text

    if out:
        _refuse_existing(out)
    with _progress("Tracking") as advance:
        timing = calibrate_bag(bag, params, assignments or (), image_topic, seconds, advance)
    out_console.print(timing_table(timing))
    if out:
        write_text(out, timing.yaml())
    _say(str(out) if out else timing.yaml().rstrip())


@app.command()
def evaluate(
    folder: Annotated[Path | None, typer.Argument(help="What replay wrote.", show_default=False)] = None,
    truth: Annotated[
        Path | None, typer.Option(help="Bag with /ground_truth/imu or /imu/data_raw.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Default: the folder itself.", show_default=False)] = None,
    table: Annotated[bool, typer.Option("--table", help="Instead: the paper's tables, on rendered clips.")] = False,
    data: Annotated[Path | None, typer.Option(help="Of --table; default: ../shared/data beside the checkout.")] = None,
    engine_dir: Annotated[Path | None, typer.Option(help="Of --table: exported network; default: the shipped.")] = None,
    sharp: Annotated[Path | None, typer.Option(help="Of --table: a network trained on sharp, still frames.")] = None,
    pure: Annotated[Path | None, typer.Option(help="Of --table: a network with the paper's pure decoder.")] = None,
    ablations: Annotated[Path | None, typer.Option(help="Of --table: what `train ablation` wrote.")] = None,
    only: Annotated[str, typer.Option(help="Of --table: only clips whose name contains this.")] = "",
) -> None:
    """Compare a run with the truth: metrics.json, report.html, and a table."""
    if table:
        chosen = {"data_dir": data, "folder": engine_dir, "sharp": sharp, "pure": pure, "ablations": ablations}
        _paper_tables(out or Path("tables"), **chosen, only=only)
        return
    if folder is None or truth is None:
        raise ConfigError("evaluate needs a run's folder and --truth, or --table")
    from .evaluation.evaluate import evaluate as compare
    from .evaluation.report import write_report
    from .evaluation.tables import method_table

    comparison = compare(folder, truth, out)
    report = write_report(comparison, out or folder, truth, _command_line())
    out_console.print(method_table(comparison.metrics))
    _say(f"Report: {report}")


@app.command()
def accuracy(
    out: Out = Path("accuracy"),
    split: Annotated[str, typer.Option(help="test for reporting, dev for tuning.")] = "test",
    data: Annotated[Path | None, typer.Option(help="Data folder; default: ../shared/data beside the checkout.")] = None,
    assignments: Assignments = None,
    only: Annotated[str, typer.Option(help="Only clips whose name contains this.")] = "",
    bags: Annotated[Path | None, typer.Option(help="Keep the rendered bags here and use them again.")] = None,
    depth: Annotated[bool, typer.Option("--depth", help="The table of measured depth, no depth map given.")] = False,
) -> None:
    """Render the evaluation clips, replay and compare each: one table with its baselines in the same run."""
    from .evaluation.accuracy import run_split
    from .evaluation.tables import accuracy_table

    if depth:
        from .evaluation.depth_accuracy import run_depth

        with _progress("Clips") as advance:
            run_depth(split, data, out, assignments or (), only, advance)
        _say((out / "depth.md").read_text(encoding="utf-8"))
        return
    with _progress("Clips") as advance:
        results = run_split(split, data, out, assignments or (), only, bags, advance)
    out_console.print(accuracy_table(results))
    _say(f"Table: {out / 'accuracy.md'}")


@app.command()
def bench(
    seconds: Annotated[float, typer.Option(min=1.0, help="Length of the stream.")] = 10.0,
    out: Annotated[Path | None, typer.Option("--out", help="Write the numbers as JSON.", show_default=False)] = None,
    width: Annotated[int, typer.Option(min=64, max=8192)] = 640,
    height: Annotated[int, typer.Option(min=64, max=8192)] = 480,
    fps: Annotated[float, typer.Option(min=1.0, max=240.0, help="Rate of the rendered camera.")] = 30.0,
    profile: Annotated[bool, typer.Option(help="Say which functions take the time.")] = False,
    assignments: Assignments = None,
    network: Annotated[Path | None, typer.Option(help="Measure only this exported network, stage by stage.")] = None,
) -> None:
    """Measure the pipeline's speed on a rendered clip: per stage, against real time, over the stream's length."""
    from .bench import bench_network, run_bench
    from .evaluation.tables import bench_table, network_table

    if network:
        chosen = dict(map(parse_assignment, assignments or ()))
        result = bench_network(network, str(chosen.get("engine", DEFAULTS["engine"])))
        out_console.print(network_table(result))
    else:
        with _progress("Frames") as advance:
            result = run_bench(seconds, width, height, fps, profile, assignments or (), advance)
        out_console.print(bench_table(result))
    if "profile" in result:
        _say(result["profile"])
    if out:
        import json

        from .evaluation.writers import write_text

        write_text(out, json.dumps(result, indent=1) + "\n")


@app.command()
def train(
    stage: Annotated[
        str,
        typer.Argument(help="depth; head (of --start); trajectory; decoder; pure; ablation.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the run: state, best checkpoint, curves.")],
    config: Annotated[
        Path | None, typer.Option(help="Training configuration; default: tiny.yaml, of ablations ablation.yaml.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Data folder; without it scikit-image's pictures and simulated hands.")
    ] = None,
    start: Annotated[Path | None, typer.Option(help="Checkpoint or exported folder to begin with.")] = None,
    examples: Annotated[
        Path | None, typer.Option(help="Where the trajectory's examples are, or will be; default: --out.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in --out stopped.")] = False,
    minutes: Annotated[float | None, typer.Option(help="Stop after this long.")] = None,
    sharp: Annotated[bool, typer.Option("--sharp", help="Depth: on sharp, still pictures, for comparison.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Train a network on rendered clips. Needs the extra [train].

    trajectory: the Gauss-Newton layer; decoder: the attention decoder on it; pure: the same on the interpolation.
    """
    from .share import share_path

    if stage not in ("depth", "head", "trajectory", "decoder", "pure", "ablation"):
        raise ConfigError(f"stage '{stage}' is none of depth, head, trajectory, decoder, pure, ablation")
    if sharp and stage not in ("depth", "head"):
        raise ConfigError("--sharp is a comparison of the depth stage")
    path = config or share_path("config", "training", "ablation.yaml" if stage == "ablation" else "tiny.yaml")
    with _train_extra():
        if stage == "ablation":
            from .training import ablation

            ablation.run(path, data, out, start, examples)
            _say(f"{out / ablation.RESULT}; `perspblur evaluate --table --ablations {out}` makes a table of it.")
            return
        if stage in ("trajectory", "decoder", "pure"):
            from .training import trajectory

            best = trajectory.run(stage, path, data, out, resume, minutes, start, examples)
        else:
            from .training import depth

            best = depth.run(stage, path, data, out, resume, minutes, not sharp, device, start)
    _say(f"best at step {best['step']:.0f}: {out / 'best.safetensors'}")


@app.command()
def export(
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    checkpoint: Annotated[
        Path | None, typer.Argument(help="Weights that train wrote; without them they are random.", show_default=False)
    ] = None,
    preset: Annotated[str, typer.Option(help="Sizes of the random network: paper or tiny.")] = "tiny",
    dinov2: Annotated[
        Path | None, typer.Option(help="Local folder with DINOv2 weights for the random network's encoder.")
    ] = None,
    precision: Annotated[str, typer.Option(help="Matrix products in float32, float16 or bfloat16.")] = "float32",
) -> None:
    """Write a network as ONNX graphs with a manifest, compared with torch on the way. Needs the extra [train]."""
    if checkpoint and dinov2:
        raise ConfigError("--dinov2 is for a random network; a checkpoint brings its own encoder")
    _refuse_existing(out)
    with _train_extra(), _progress("Exporting") as advance:
        from .export import export_network, load_network

        network, training = load_network(checkpoint, preset, dinov2)
        data = training.pop("data", [])
        export_network(network, out, training, data, precision, advance)
    _say(f"{out}: {network.preset.name}, {precision}, as in onnxruntime.")


@engine_app.command("build")
def engine_build(folder: EngineFolder = None) -> None:
    """Compile TensorRT plans ahead of time, into the user's cache; minutes for a large network."""
    from .engine.manifest import load_manifest
    from .engine.probe import check_engine
    from .engine.tensorrt import TensorRtEngine

    with _progress("Compiling") as advance:
        engine = TensorRtEngine(load_manifest(_engine_folder(folder)), progress=advance)
    check_engine(engine)
    engine.close()
    _say(f"{engine.name}: built {', '.join(engine.built) or 'nothing, all plans were in the cache'}.")


@engine_app.command("info")
def engine_info(folder: EngineFolder = None) -> None:
    """What a folder holds, what it was trained on, and what would run it here."""
    from .engine.manifest import load_manifest
    from .engine.select import select_engine

    manifest = load_manifest(_engine_folder(folder))
    _say(f"{manifest.folder}: {manifest.preset}, {manifest.precision}, exported by {manifest.version}")
    table = Table("graph", "MB", Column("in", overflow="fold"), Column("out", overflow="fold"), box=None)
    for name, graph in manifest.graphs.items():
        shapes = [
            ", ".join(f"{tensor} {'×'.join(map(str, shape))}" for tensor, shape in side.items())
            for side in (graph.inputs, graph.outputs)
        ]
        table.add_row(name, f"{graph.path.stat().st_size / 1e6:.1f}", *shapes)
    out_console.print(table)
    for key, value in manifest.training.items():
        _say(f"training, {key}: {value}")
    for entry in manifest.data:
        _say(f"data: {', '.join(f'{key} {value}' for key, value in entry.items())}")
    engine, warning = select_engine("auto", manifest.folder)
    _say(f"here: {warning or (engine and engine.name)}")


@app.command()
def doctor() -> None:
    """Check this machine: libraries, ROS, middleware, inference, leftovers.

    Exit status 1 when something essential is missing.
    """
    from .doctor import check_all

    table = Table("", "what", Column("found", overflow="fold"), box=None, pad_edge=False)
    checks = check_all()
    for check in checks:
        table.add_row(_MARKS[check.state], check.name, escape(check.found))
    out_console.print(table)
    for check in checks:
        if check.remedy:
            _say(f"\n{check.name}: {check.remedy}")
    raise typer.Exit(1 if any(check.state == "missing" for check in checks) else 0)


@app.command()
def parameters() -> None:
    """Print every parameter with its range and meaning (the page docs/parameters.md)."""
    print(parameter_page(), end="")


@app.command(name="export-trajectory")
def export_trajectory(
    folder: Annotated[Path, typer.Argument(help="What replay wrote.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="File to write.")],
    format: Annotated[str, typer.Option(help="tum (evo), tum-sparse, or gcsv (Gyroflow).")] = "tum",
) -> None:
    """Write a run's trajectory for another tool."""
    from .camera import Shutter
    from .evaluation import writers
    from .evaluation.evaluate import load_run

    run = load_run(folder)
    if format == "gcsv":
        readout_ns = round(max(run.parameters.get("readout_s", 0.0), 0.0) * 1e9)
        writers.write_gcsv(out, run.dense, Shutter(0, readout_ns))
    elif format in ("tum", "tum-sparse"):
        trajectory = run.sparse if format == "tum-sparse" else run.dense
        writers.write_tum(out, trajectory.stamp_ns, trajectory.q_start_from_cam)
    else:
        raise ConfigError(f"format '{format}' is none of tum, tum-sparse, gcsv")
    _say(str(out))


def main() -> None:
    """Entry point: what a user can cause ends in one sentence on stderr and exit status 2."""
    try:
        app()
    except PerspBlurError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith(__package__):
            raise
        _fail(f"the Python package '{error.name}' is missing; `perspblur doctor` tells how to install it")
    except OSError as error:  # disk full, no permission
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def parameter_page() -> str:
    """Markdown: name, default, unit, range and meaning of every parameter."""
    rows = ["# Parameters", "", _PARAMETER_INTRODUCTION, ""]
    rows += ["| parameter | default | unit | range | meaning |", "|---|---|---|---|---|"]
    rows += [
        f"| `{name}` | {_cell(DEFAULTS[name])} | {spec.unit} | {_range(spec, DEFAULTS[name])} | {spec.doc} |"
        for name, spec in SPECS.items()
    ]
    return "\n".join(rows) + "\n"


_PARAMETER_INTRODUCTION = (
    "The same names hold for the ROS node, for parameter files, for a bag's `params.yaml` and for `--set name=value`. "
    "Anything else, and any value out of range, is refused with a sentence. Made by `perspblur parameters`."
)
_MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "missing": "[red]missing[/]"}


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        return "`[]`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if value != "" else "`''`"


def _range(spec: Spec, default: Any) -> str:
    if spec.choices:
        return ", ".join(f"`{choice}`" for choice in spec.choices)
    if spec.low is None:
        return ""
    text = f"{spec.low:g} … {spec.high:g}"
    if spec.also is not None:
        text += f", or {spec.also:g}"
    return f"three of {text}" if isinstance(default, tuple) else text


def _say(text: str, console: Console = out_console) -> None:
    """Text as it is: nothing coloured, nothing broken, so that paths can be copied."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _fail(sentence: str) -> None:
    err_console.print(f"perspblur: {sentence}", style="red", highlight=False, markup=False, soft_wrap=True)
    sys.exit(2)


def _command_line() -> str:
    return shlex.join(["perspblur", *sys.argv[1:]])


def _refuse_existing(path: Path) -> None:
    """Before minutes of rendering, not after."""
    if path.exists():
        raise ConfigError(f"{path} exists already and is not overwritten")


def _engine_folder(folder: Path | None) -> Path:
    from .share import share_path

    return folder or share_path("engines", "tiny")


@contextmanager
def _train_extra() -> Iterator[None]:
    """A missing training library ends in one sentence that says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in ("onnx", "onnxscript", "safetensors", "torch", "transformers"):
            raise
        raise ConfigError(f"'{error.name}' is missing: pip install 'perspblur_ros[train]' installs it") from None


@contextmanager
def _progress(title: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr; yields ``advance(done, total)``."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err_console, transient=True, disable=not err_console.is_terminal) as bar:
        task = bar.add_task(title, total=total)

        def advance(done: int, of: int | None = None, label: str = "") -> None:
            bar.update(task, completed=done, total=of or total, description=label or title)

        yield advance


def _paper_tables(out: Path, **chosen: Any) -> None:
    from .evaluation.paper_tables import write_tables

    with _progress("Clips") as advance:
        text = write_tables(out, on_progress=advance, **chosen)
    _say(text)
    _say(f"Tables: {out / 'tables.md'}")


def _scene(rgb: Path, depth: Path | None, depth_scale: float, intrinsics: tuple[float | None, ...]) -> Scene:
    from .sim.scene import load_picture, load_rgbd

    if depth is None:
        raise ConfigError("--rgb needs --depth, a 16-bit PNG")
    if intrinsics[0] is None:
        raise ConfigError("--rgb needs --fx, the picture's focal length in pixels")
    height, width = load_picture(rgb).shape[:2]
    return load_rgbd(rgb, depth, depth_scale, _camera(width, height, *intrinsics))


def _camera(width: int, height: int, fx: float | None, fy: float | None, cx: float | None, cy: float | None) -> Camera:
    from .camera import Camera

    assert fx is not None
    return Camera(
        width,
        height,
        fx,
        fx if fy is None else fy,
        (width - 1) / 2 if cx is None else cx,
        (height - 1) / 2 if cy is None else cy,
    )


def _path(
    gyro: Path | None,
    start_s: float,
    duration_s: float,
    axes: str,
    amplitude: float,
    remove_mean: bool,
    seed: int,
    rate_rms: float,
) -> MotionPath:
    from .sim.hand_motion import hand_motion
    from .sim.motion import from_gyro_csv

    if gyro is None:
        return hand_motion(seed, duration_s, rate_rms)
    return from_gyro_csv(gyro, start_s, duration_s, axes, amplitude, remove_mean)


if __name__ == "__main__":
    main()
