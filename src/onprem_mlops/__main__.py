"""The process of the command line. gevent comes first, before anything that it has to patch."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402


def main() -> None:
    """Run the command line and exit with its code."""
    from onprem_mlops.cli import run

    sys.exit(run())


if __name__ == "__main__":
    main()
