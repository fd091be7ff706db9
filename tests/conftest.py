"""What all tests have in common."""

from __future__ import annotations

import signal

# Under a shell that runs the tests in the background Ctrl-C is ignored, by all that they start as well.
signal.signal(signal.SIGINT, signal.default_int_handler)
