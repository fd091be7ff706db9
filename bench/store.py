"""The artifact store: nothing to do, and, with --from-nothing, all of it made without any prebuilt part.

From nothing means a cache folder of its own, empty, beside the user's: no artifact, no module, no compiled package, no
toolchain. It is removed afterwards, also when the build fails. What a package registry answers is not ours to measure:
it is part of the time, as on any first use.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from bench._measure import figure, repeat_with, timed
from bench._watch import watched
from onprem_mlops.paths import cache_dir

RUNS = 5
LIMIT_NOTHING = 1.0
LIMIT_COLD = 25 * 60


def nothing_to_do() -> None:
    """Time `mirror build` on a store that is whole."""
    command = ["./mlops", "mirror", "build"]
    watched(command).must("mirror build")
    runs = sorted((timed(command) for _ in range(RUNS)), key=lambda run: run.seconds)
    if any("nothing to do" not in run.output for run in runs):
        raise SystemExit("a timed run of mirror build made something")
    median = runs[RUNS // 2].seconds
    figure("artifact store, nothing to do", f"{median:.2f} s", "under 1 s", median < LIMIT_NOTHING)
    repeat_with("./mlops bench store")


def from_nothing() -> None:
    """Time the build of every artifact that is on, with an empty cache."""
    beside = cache_dir().parent
    beside.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="onprem-mlops-bench-", dir=beside))
    try:
        built = watched(["./mlops", "mirror", "build"], {"MLOPS_CACHE": str(work)})
        built.must("mirror build from nothing")
        # Before the caches go, the build has checked every file that it put into the store.
        checked = watched(["./mlops", "mirror", "verify"], {"MLOPS_CACHE": str(work)}).must("mirror verify")
        sys.stdout.write(built.output)
        sys.stdout.write(checked.output)
        minutes = built.seconds / 60
        figure(
            f"artifact store from nothing, {os.cpu_count()} cores",
            f"{minutes:.1f} min",
            "at most 25 min",
            built.seconds <= LIMIT_COLD,
        )
        figure("  its controller and compilers, peak memory", f"{built.peak_mib:.0f} MiB", "no limit", held=True)
    finally:
        shutil.rmtree(work)
    repeat_with("./mlops bench store -- --from-nothing")


def main() -> None:
    cold = "--from-nothing" in sys.argv[1:]
    sys.stdout.write(f"load average {' '.join(f'{one:.1f}' for one in os.getloadavg())}\n")
    nothing_to_do()
    if cold:
        from_nothing()


if __name__ == "__main__":
    main()
