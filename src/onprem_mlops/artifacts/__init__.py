"""Everything that is laid down on the nodes: catalogue, sources, store, images, mirror tree."""

from onprem_mlops.artifacts.catalogue import Artifact, Catalogue
from onprem_mlops.artifacts.events import (
    BuildEvent,
    Damaged,
    Failed,
    Finished,
    Listener,
    Planned,
    Started,
    Waiting,
)
from onprem_mlops.artifacts.manifest import ArtifactManifest, Problem, StoredFile, StoredImage, TreeFile
from onprem_mlops.artifacts.store import BuildFailed, Built, Store

__all__ = [
    "Artifact",
    "ArtifactManifest",
    "BuildEvent",
    "BuildFailed",
    "Built",
    "Catalogue",
    "Damaged",
    "Failed",
    "Finished",
    "Listener",
    "Planned",
    "Problem",
    "Started",
    "Store",
    "StoredFile",
    "StoredImage",
    "TreeFile",
    "Waiting",
]
