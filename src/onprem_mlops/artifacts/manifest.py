"""What the store holds of one artifact."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, Field

LOCK = "requirements.lock"
"""Name of the lock file in a wheelhouse, beside the wheels."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StoredFile(_Frozen):
    """One file: its name within the artifact, and the blob that holds it."""

    name: str
    sha256: str
    size: int = Field(description="bytes")
    path: Path = Field(default=Path(), exclude=True, description="the blob; filled in by the store")


class StoredImage(_Frozen):
    """One image: the reference that manifests use, and the digest of its OCI manifest."""

    reference: str
    digest: str


class ArtifactManifest(_Frozen):
    """One artifact as it lies in the store."""

    name: str
    version: str
    source: str = Field(description="which kind of source it came from: url, go, deb, …")
    why: str = Field(default="", description="why that source was taken")
    fingerprint: str = Field(description="of all that determines the content; another one means: make again")
    made_with: str = Field(default="", description="tool and version")
    made_at: str = Field(description="ISO 8601, UTC")
    seconds: float
    prefix: str = Field(description="folder of the mirror tree below which its files are served")
    published: tuple[str, ...] = Field(description="names of files that the mirror serves")
    files: tuple[StoredFile, ...]
    images: tuple[StoredImage, ...] = ()


class TreeFile(_Frozen):
    """One file of the mirror tree."""

    path: PurePosixPath
    source: Path
    sha256: str
    size: int = Field(description="bytes")


class Problem(_Frozen):
    """Something wrong in the store."""

    artifact: str
    file: str
    what: str
