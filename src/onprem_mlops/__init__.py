"""Build and run an MLOps platform on your own hardware."""

import sys

# paramiko loads a whole task runner for one keyword of ssh_config, which is not read here: a tenth of a second for
# every command. Without it, it does without.
sys.modules.setdefault("invoke", None)  # type: ignore[arg-type]
