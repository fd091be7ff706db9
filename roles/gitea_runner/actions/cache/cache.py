"""Restores and saves a job's cache, over the protocol of upstream's actions/cache, with Python's own library."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from urllib.error import HTTPError, URLError

SECONDS = 600


def paths() -> list[str]:
    """What is cached, as the workflow names it."""
    return [line.strip() for line in os.environ["INPUT_PATH"].splitlines() if line.strip()]


def version() -> str:
    """Caches of other paths or another compression do not fit."""
    return hashlib.sha256("|".join([*paths(), "zstd"]).encode()).hexdigest()


def ask(method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> tuple[int, dict]:
    """Ask the cache; its status and what it said. HTTPError is raised for what it refuses."""
    data = body if body is None or hasattr(body, "read") else json.dumps(body).encode()
    wanted = {"Authorization": f"Bearer {os.environ['ACTIONS_RUNTIME_TOKEN']}", "Content-Type": "application/json"}
    url = f"{os.environ['ACTIONS_CACHE_URL']}_apis/artifactcache/{path}"
    request = urllib.request.Request(url, data, wanted | (headers or {}), method=method)
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        text = answer.read()
        return answer.status, json.loads(text) if text else {}


def tell(file: str, **values: str) -> None:
    """Write outputs, or state for the end of the job."""
    with open(os.environ[file], "a") as out:
        out.writelines(f"{name.replace('_', '-')}={value}\n" for name, value in values.items())


def restore() -> int:
    """Take the cache of the key, or of the first beginning that fits."""
    key = os.environ["INPUT_KEY"]
    others = [line.strip() for line in os.environ.get("INPUT_RESTORE-KEYS", "").splitlines() if line.strip()]
    query = urllib.parse.urlencode({"keys": ",".join([key, *others]), "version": version()})
    tell("GITHUB_STATE", key=key)
    tell("GITHUB_OUTPUT", cache_primary_key=key)
    status, found = ask("GET", f"cache?{query}")
    if status == 204:
        print(f"no cache for {key}")
        tell("GITHUB_OUTPUT", cache_hit="false")
        return 1 if os.environ.get("INPUT_FAIL-ON-CACHE-MISS") == "true" else 0
    matched = found["cacheKey"]
    if os.environ.get("INPUT_LOOKUP-ONLY") != "true":
        with urllib.request.urlopen(found["archiveLocation"], timeout=SECONDS) as archive:
            unpack = subprocess.Popen(["tar", "--zstd", "-xPf", "-"], stdin=subprocess.PIPE)
            assert unpack.stdin is not None
            while block := archive.read(1 << 20):
                unpack.stdin.write(block)
            unpack.stdin.close()
            if unpack.wait() != 0:
                return 1
    tell("GITHUB_STATE", matched=matched)
    tell("GITHUB_OUTPUT", cache_hit=str(matched == key).lower(), cache_matched_key=matched)
    print(f"restored {matched}")
    return 0


def save() -> int:
    """Keep the paths under the key, unless it was there already."""
    key = os.environ.get("STATE_key", os.environ["INPUT_KEY"])
    if os.environ.get("STATE_matched") == key:
        print(f"{key} is there already")
        return 0
    found = sorted({name for path in paths() for name in glob.glob(os.path.expanduser(path), recursive=True)})
    if not found:
        print(f"nothing to keep at {', '.join(paths())}")
        return 0
    with tempfile.TemporaryFile() as archive:
        subprocess.run(["tar", "--zstd", "-cPf", "-", "--", *found], stdout=archive, check=True)
        size = archive.tell()
        archive.seek(0)
        _, reserved = ask("POST", "caches", {"key": key, "version": version(), "cacheSize": size})
        number = reserved["cacheId"]
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        ask("PATCH", f"caches/{number}", archive, headers | {"Content-Range": f"bytes 0-{size - 1}/*"})
        ask("POST", f"caches/{number}", {"size": size})
    print(f"kept {size} bytes under {key}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit({"restore": restore, "save": save}[sys.argv[1]]())
    except (HTTPError, URLError) as error:
        # A cache is a help, never a need: without one, the job goes on.
        print(f"::warning::the cache cannot be used: {error}")
