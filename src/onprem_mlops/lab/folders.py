"""Where a lab keeps what it has on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onprem_mlops import paths


def shared_folder() -> Path:
    """What all labs of this user share: the unpacked root file systems, and which labs use them."""
    return paths.state_dir() / "lab"


@dataclass(frozen=True, slots=True)
class NodeFolders:
    """One node's folders. `root` is a mount point, empty while the lab is down."""

    base: Path

    @property
    def root(self) -> Path:
        """Where the node's file system is mounted while it is up."""
        return self.base / "root"

    @property
    def upper(self) -> Path:
        """What the node has written over the shared root file system."""
        return self.base / "upper"

    @property
    def work(self) -> Path:
        """The overlay's own scratch folder."""
        return self.base / "work"

    @property
    def data(self) -> Path:
        """The folders that must lie on a real file system."""
        return self.base / "data"

    @property
    def made(self) -> Path:
        """Written last when the node's disks are made; says from what."""
        return self.base / "made.json"

    @property
    def console(self) -> Path:
        """What the node printed on its console since it was last started."""
        return self.base / "console.log"

    @property
    def keeper_lock(self) -> Path:
        """Locked as long as the node's keeper lives."""
        return self.base / "keeper.lock"

    @property
    def relay_lock(self) -> Path:
        """Locked as long as a relay impairs the node's network; holds the relay's process number."""
        return self.base / "relay.lock"

    @property
    def keeper_script(self) -> Path:
        """The keeper's script, written at each start."""
        return self.base / "keeper.sh"


@dataclass(frozen=True, slots=True)
class LabFolders:
    """One lab's folders, below the site's state folder."""

    site: str

    @property
    def base(self) -> Path:
        """What belongs to the lab alone; keys, secrets and authority of its site lie beside it."""
        return paths.site_state(self.site) / "lab"

    @property
    def lock(self) -> Path:
        """Held by whoever changes the lab."""
        return self.base / "lock"

    @property
    def known_hosts(self) -> Path:
        """The pinned host keys in the form that `ssh` reads."""
        return self.base / "known_hosts"

    @property
    def spec(self) -> Path:
        """The lab as it was last brought up."""
        return self.base / "spec.json"

    def node(self, name: str) -> NodeFolders:
        """The folders of one node."""
        return NodeFolders(self.base / "nodes" / name)
