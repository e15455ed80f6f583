"""The process of the node: ``ros2 run perspblur_ros pipeline``, the launch file, and ``perspblur run``."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .signals import StopRequest

if TYPE_CHECKING:
    from rclpy.context import Context

SPIN_S = 0.1  # the wheels' executors must not spin without a bound: a signal would not end them


def main(argv: Sequence[str] | None = None) -> int:
    """Run the lifecycle node until a signal; returns the exit status. ``argv`` as on the command line."""
    return run_node(_load, argv)


def _load() -> Callable[[Context], Any]:
    from .node import PerspBlurNode

    def make(context: Context) -> Any:
        node = PerspBlurNode(context=context)
        node.start_automatically()
        return node

    return make


def run_node(load: Callable[[], Callable[[Context], Any]], argv: Sequence[str] | None = None) -> int:
    """Serve a node until SIGINT or SIGTERM, or until it is ``finished``.

    ``load`` does the slow imports and returns what makes the node, which has ``finished`` and ``exit_status``.
    Returns that status, or 1 with one sentence on stderr when the node cannot start.
    """
    stop = StopRequest()
    from . import middleware
    from .graph import with_defaults

    arguments = with_defaults(sys.argv[1:] if argv is None else list(argv))
    try:
        middleware.prepare_process()
        make = load()
        context = _context(arguments, stop)
        try:
            return _serve(make(context), context, stop)
        finally:
            context.try_shutdown()
            context.destroy()  # gives the shared memory back
    except Exception as error:  # whatever keeps the node from starting is one sentence, never a traceback
        print(f"perspblur: {' '.join(str(error).split()) or repr(error)}", file=sys.stderr)
        return 1
    finally:
        stop.ignore()


def _context(arguments: list[str], stop: StopRequest) -> Context:
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    context = rclpy.Context()
    stop.arm()
    rclpy.init(args=["perspblur", *arguments], context=context, signal_handler_options=SignalHandlerOptions.NO)
    return context


def _serve(node: Any, context: Context, stop: StopRequest) -> int:
    from rclpy.executors import SingleThreadedExecutor

    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    gc.collect()
    gc.freeze()  # a full collection stops every thread for 10 ms, which the pacer's subscribers would feel
    try:
        while not stop and not node.finished:
            _spin_once(executor, node)
    finally:
        executor.remove_node(node)
        executor.shutdown(timeout_sec=0.5)
        node.destroy_node()
        gc.unfreeze()  # or what refers to itself would outlive the process's end, shared memory with it
    return int(node.exit_status)


def _spin_once(executor: Any, node: Any) -> None:
    try:
        executor.spin_once(timeout_sec=SPIN_S)
    except Exception as error:  # callbacks guard themselves; this is for rclpy's own, which must not end the node
        node.get_logger().error(f"a callback failed: {error!r}", throttle_duration_sec=5.0)


if __name__ == "__main__":
    sys.exit(main())
