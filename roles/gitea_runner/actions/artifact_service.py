"""Gitea's artifact service, as its own token lets a job use it."""

from __future__ import annotations

import base64
import json
import os
import re
import urllib.request
from typing import Any

SERVICE = "twirp/github.actions.results.api.v1.ArtifactService"
SECONDS = 600


def numbers() -> dict[str, str]:
    """The run and the job, as the token names them."""
    payload = os.environ["ACTIONS_RUNTIME_TOKEN"].split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    found = re.search(r"Actions\.Results:(\d+):(\d+)", claims["scp"])
    if found is None:
        raise SystemExit("the job's token is not one for artifacts")
    return {"workflow_run_backend_id": found[1], "workflow_job_run_backend_id": found[2]}


def call(method: str, **values: Any) -> dict[str, Any]:
    """One call, about this run."""
    base = os.environ["ACTIONS_RESULTS_URL"].rstrip("/")
    headers = {"Authorization": f"Bearer {os.environ['ACTIONS_RUNTIME_TOKEN']}", "Content-Type": "application/json"}
    body = json.dumps(numbers() | values).encode()
    request = urllib.request.Request(f"{base}/{SERVICE}/{method}", body, headers, method="POST")
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        return json.load(answer)
