"""A real browser on this machine: what a page shows once its styles and scripts have loaded."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from onprem_mlops import prerequisites
from onprem_mlops.errors import RequestError
from onprem_mlops.verify.outcomes import NotChecked

_LOAD_SECONDS = 30.0
_NETWORK_CHANGED = "net::ERR_NETWORK_CHANGED"
"""This machine's own interfaces changed meanwhile, as when a node of a lab begins: it says nothing of the site."""
_TRIES = 5


class Page:
    """One tab, spoken to over a pipe (the Chrome DevTools protocol)."""

    def __init__(self, commands: BinaryIO, answers: BinaryIO) -> None:
        self._commands, self._answers = commands, answers
        self._number = 0
        self._session = ""
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def open(self, url: str) -> None:
        """Go there and wait until everything that the page names has loaded. AssertionError if it cannot be reached."""
        for _ in range(_TRIES):
            said = self._ask("Page.navigate", url=url)
            if said.get("errorText") != _NETWORK_CHANGED:
                break
            time.sleep(1)
        assert not said.get("errorText"), f"the browser cannot open {url}: {said['errorText']}"
        deadline = time.monotonic() + _LOAD_SECONDS
        while self.value("document.readyState") != "complete":
            assert time.monotonic() < deadline, f"{url} has not loaded in {_LOAD_SECONDS:.0f} s"
            time.sleep(0.1)

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives in the page; a promise is waited for."""
        done = self._ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, f"{expression}: {done['exceptionDetails'].get('text')}"
        return done["result"].get("value")

    def picture(self, path: Path) -> None:
        """Write what is seen, as PNG."""
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"]))

    def _ask(self, method: str, **parameters: Any) -> Mapping[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        while True:
            answer = json.loads(self._message())
            if answer.get("id") == self._number:
                assert "error" not in answer, f"the browser refuses {method}: {answer['error']}"
                result: Mapping[str, Any] = answer["result"]
                return result

    def _message(self) -> bytes:
        whole = b""
        while (one := self._answers.read(1)) != b"\0":
            if not one:
                raise NotChecked("the browser on this machine ended by itself")
            whole += one
        return whole


@contextmanager
def browser(environment: Mapping[str, str], certificate: x509.Certificate) -> Iterator[Page]:
    """A tab of chromium that takes exactly this certificate, which the caller has verified, and reaches the site only.

    NotChecked if there is no chromium here and none can be installed.
    """
    try:
        prerequisites.require("chromium")
    except RequestError as error:
        raise NotChecked(error.message, error.advice) from None
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    pin = base64.b64encode(hashlib.sha256(key).digest()).decode()
    with tempfile.TemporaryDirectory(prefix="onprem-mlops-browser-", ignore_cleanup_errors=True) as folder:
        options = [
            "--headless=new",
            "--remote-debugging-pipe",
            f"--user-data-dir={folder}",
            f"--proxy-server={environment['HTTPS_PROXY']}",
            f"--ignore-certificate-errors-spki-list={pin}",
            "--disable-background-networking",
            "--disable-gpu",
            "--no-first-run",
            "--window-size=1280,900",
        ]
        # Chromium refuses its sandbox to root; what it opens here is the site's own page.
        options += ["--no-sandbox"] if os.geteuid() == 0 else []
        yield from _tab(options, folder)


def _tab(options: list[str], home: str) -> Iterator[Page]:
    from_us, to_browser = os.pipe()
    from_browser, to_us = os.pipe()
    # It reads commands from descriptor 3 and answers on 4.
    start = 'in=$1 out=$2; shift 2; exec "$@" 3<&"$in" 4>&"$out"'
    process = subprocess.Popen(
        ["bash", "-c", start, "bash", str(from_us), str(to_us), "chromium", *options],
        pass_fds=(from_us, to_us),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": home},
    )
    os.close(from_us)
    os.close(to_us)
    try:
        with os.fdopen(to_browser, "wb") as commands, os.fdopen(from_browser, "rb") as answers:
            yield Page(commands, answers)
    finally:
        process.terminate()
        process.wait(10)
