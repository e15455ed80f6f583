"""``perspblur`` and ``python -m perspblur_ros``."""

import os
import sys

from .ros.middleware import BLAS_VARIABLES


def main() -> None:
    """The command line, after what must come before the slow imports: a node's signal handlers, one BLAS thread."""
    for name in BLAS_VARIABLES:
        os.environ.setdefault(name, "1")
    if sys.argv[1:2] == ["run"]:
        from .ros.signals import StopRequest

        StopRequest()
    from .cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
