"""``perspblur`` and ``python -m perspblur_ros``."""

import sys

from .ros.middleware import prepare_process


def main() -> None:
    """The command line, after what must come before the slow imports: libraries' settings, a node's signal handlers."""
    prepare_process()
    if sys.argv[1:2] == ["run"]:
        from .ros.signals import StopRequest

        StopRequest()
    from .cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
