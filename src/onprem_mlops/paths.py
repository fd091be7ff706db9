"""Where things lie: the repository, and the user's own cache and state folders."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def _xdg(own: str, xdg: str, default: str) -> Path:
    if explicit := os.environ.get(own):
        return Path(explicit).absolute()
    base = os.environ.get(xdg)
    return (Path(base) if base else Path.home() / default) / "onprem-mlops"


def cache_dir() -> Path:
    """The folder of the artifact store; safe to delete, slow to fill again."""
    return _xdg("MLOPS_CACHE", "XDG_CACHE_HOME", ".cache")


def state_dir() -> Path:
    """The folder of what must outlive a run but never enters git."""
    return _xdg("MLOPS_STATE", "XDG_STATE_HOME", ".local/state")


def site_state(site_name: str) -> Path:
    """One site's state: kubeconfig, run logs, lock; for a lab also its keys, secrets and authority."""
    return state_dir() / "sites" / site_name
