"""The process of the command line. gevent comes first, before anything that it has to patch.

`mirror` alone goes without: it fills the store with real threads and calls native code from them, which does not stand
being run on greenlets' stacks.
"""

from __future__ import annotations

import sys

if sys.argv[1:2] != ["mirror"]:
    from gevent import monkey

    monkey.patch_all()


def main() -> None:
    """Run the command line and exit with its code."""
    from onprem_mlops.cli import run

    sys.exit(run())


if __name__ == "__main__":
    main()
