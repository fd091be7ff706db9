"""A Python environment made on a node from wheels of the artifact store: the shell that does it. Pure.

An environment lies at `<root>/<version>-<digest>`, where the digest is that of all its wheels and of the lock file, so
it never changes: another set of wheels is another environment beside it. It is built under `<root>/incoming` and takes
its name, whole, in one rename; a build that dies anywhere begins again.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence

from onprem_mlops.artifacts.manifest import LOCK
from onprem_mlops.steps import PublishedFile

INTERPRETER = "/usr/bin/python3"
"""The node's own Python, whose version the wheels are for."""

SIZES = "sizes"
"""File in an environment with the sum of its files' sizes: what a power cut or a person took is found out by it."""

_SUM = (
    "find . -type d -name __pycache__ -prune -o -type f ! -path ./" + SIZES + " -printf '%s\\n' "
    "| { n=0; s=0; while read -r one; do n=$((n + 1)); s=$((s + one)); done; echo $n $s; }"
)


def environment_path(root: str, files: Sequence[PublishedFile]) -> str:
    """Where the environment of these wheels lies below `root`."""
    listed = "".join(sorted(f"{one.sha256}  {one.name}\n" for one in files))
    return f"{root}/{files[0].version}-{hashlib.sha256(listed.encode()).hexdigest()[:12]}"


def is_whole(path: str) -> str:
    """Reading command: whether the environment is there as it was made, and its interpreter still runs."""
    return f'cd {shlex.quote(path)} && [ "$({_SUM})" = "$(cat {SIZES})" ] && bin/python -I -c ""'


def listing(files: Sequence[PublishedFile], installer: Sequence[PublishedFile]) -> str:
    """What `build` reads: checksum, name and address of each file, the wheel of the installer first."""
    wheel = next(one for one in installer if one.name.endswith(".whl"))
    return "".join(f"{one.sha256} {one.name} {one.url}\n" for one in (wheel, *files))


def build(path: str, *, authority: str, warm: str = "") -> str:
    """Shell: make the environment, reading a `listing` from standard input. Needs curl and Python, no network else.

    Args:
        path: of `environment_path`.
        authority: path on the node of the site authority's certificate, which the mirror must be signed by.
        warm: Python statements, such as the imports of a service's start, run once so that their bytecode is there:
            the service's account cannot write it, and without it each start compiles all anew.
    """
    root, _, name = path.rpartition("/")
    quoted = {"root": root, "name": name, "authority": authority, "warm": warm, "python": INTERPRETER}
    values = {key: shlex.quote(value) for key, value in quoted.items()}
    return _BUILD.format(**values, lock=LOCK, sizes=SIZES, sum=_SUM)


def others(path: str) -> str:
    """Shell: names of what else lies below the environment's root, one a line."""
    root, _, name = path.rpartition("/")
    return f"find {shlex.quote(root)} -mindepth 1 -maxdepth 1 ! -name {shlex.quote(name)}"


_BUILD = """\
set -e
umask 022
mkdir -p {root}
cd {root}
rm -rf incoming
mkdir -p incoming/wheels
cd incoming/wheels
cat >../listing
while read -r _ name url; do printf 'url = "%s"\\noutput = "%s"\\n' "$url" "$name"; done <../listing >../downloads
curl --fail --fail-early --silent --show-error --parallel --parallel-max 8 --retry 3 --retry-connrefused \
--connect-timeout 10 --max-time 900 --proto =https --cacert {authority} --config ../downloads
while read -r sum name _; do echo "$sum  $name"; done <../listing >../sums
sha256sum --quiet --strict --check ../sums || {{ echo 'not the files that the lock pins' >&2; exit 1; }}
read -r _ installer _ <../listing
{python} -m zipfile -e "$installer" ../installer
rm "$installer"
chmod +x ../installer/*.data/scripts/uv
export UV_CACHE_DIR="$PWD/../cache" UV_OFFLINE=1 UV_NO_CONFIG=1 UV_PYTHON_DOWNLOADS=never HOME="$PWD/.."
uv=$(echo ../installer/*.data/scripts/uv)
"$uv" venv --quiet --relocatable --python {python} ../{name}
"$uv" pip install --quiet --python ../{name}/bin/python --no-index --find-links . --no-deps --require-hashes \
--link-mode hardlink -r {lock}
cd ../{name}
env -u PYTHONDONTWRITEBYTECODE bin/python -I -W ignore -c {warm} >/dev/null
rm -f .lock
( {sum} ) >{sizes}
cd {root}
rm -rf {name}
mv -T incoming/{name} {name}
rm -rf incoming
"""
