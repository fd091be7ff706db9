"""What runs containers: the right version, its own configuration, and images from the site's mirror only."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping

from onprem_mlops.artifacts import Store
from onprem_mlops.verify.suite import NodeHost, Site
from roles.containerd.settings import Settings


def test_version(node: NodeHost, versions: Mapping[str, str]) -> None:
    """The containerd that runs has the version of the catalogue."""
    said = dict(line.split(":", 1) for line in node.lines("crictl version"))
    name, found = said["RuntimeName"].strip(), said["RuntimeVersion"].strip().removeprefix("v")
    wanted = versions["containerd"]
    assert (name, found) == ("containerd", wanted), f"{node.name}: {name} {found} runs, not {wanted}"
    binary = node.check_output("/usr/local/bin/containerd --version").split()[2].removeprefix("v")
    assert binary == wanted, (
        f"{node.name}: /usr/local/bin/containerd is {binary}: after a restart {found} would be gone"
    )


def test_service(node: NodeHost) -> None:
    """containerd runs, also after a reboot, and is ready for containers and their network."""
    service = node.service("containerd")
    assert service.is_running, f"{node.name}: containerd does not run"
    assert service.is_enabled, f"{node.name}: containerd would not start at boot"
    said = node.run("crictl info")
    assert "default endpoints" not in said.stderr, f"{node.name}: crictl has no configuration and guesses whom to ask"
    conditions = json.loads(said.stdout)["status"]["conditions"]
    wrong = [
        f"{one['type']}: {one['message']}" for one in conditions if one["type"] == "RuntimeReady" and not one["status"]
    ]
    assert not wrong, f"{node.name}: {'; '.join(wrong)}"


def test_effective_configuration(node: NodeHost, settings: Settings) -> None:
    """containerd runs with the cgroup driver and the registry configuration of the site file."""
    running = json.loads(node.check_output("crictl info"))["config"]
    runc = running["containerd"]["runtimes"]["runc"]["options"]
    wanted = settings.cgroup_driver == "systemd"
    assert bool(runc.get("SystemdCgroup")) is wanted, (
        f"{node.name}: SystemdCgroup is {runc.get('SystemdCgroup')}, not {wanted}"
    )
    listening = node.lines("ss -H -tlnp | grep -E '\"containerd\"' | awk '{print $4}' | grep -v '^127\\.' || true")
    assert not listening, f"{node.name}: containerd listens on {', '.join(listening)}"


def test_registries_have_no_way_out(node: NodeHost, site: Site, settings: Settings) -> None:
    """Every registry leads to the site's mirror, and none has a second address."""
    folders = node.lines("ls -I _default /etc/containerd/certs.d")
    assert set(folders) == set(settings.registries), (
        f"{node.name}: registries {', '.join(folders)}, not {', '.join(settings.registries)}"
    )
    wrong = []
    for registry in folders:
        hosts = tomllib.loads(node.file(f"/etc/containerd/certs.d/{registry}/hosts.toml").content_string)
        addresses = [hosts.get("server", "no server: the internet"), *hosts.get("host", {})]
        wrong += [f"{registry} → {one}" for one in addresses if not one.startswith(f"{site.mirror_url}/")]
        wrong += [
            f"{registry} trusts anybody" for one in (hosts, *hosts.get("host", {}).values()) if one.get("skip_verify")
        ]
    # Of all others only who signs them is said: neither where they are nor that anybody may answer for them.
    others = tomllib.loads(node.file("/etc/containerd/certs.d/_default/hosts.toml").content_string)
    wrong += [f"other registries: {key}" for key in sorted(set(others) - {"capabilities", "ca"})]
    assert not wrong, f"{node.name}: {'; '.join(wrong)}"


def test_image_is_pulled(node: NodeHost) -> None:
    """An image that is not on the node yet is pulled from the mirror for real."""
    image = Store().image("image-netcheck")
    node.run(
        "crictl rmi %s", image
    )  # fails if it is not there, or if a pod of another check is using it: then it was pulled
    pulled = node.run("crictl pull %s", image)
    assert pulled.rc == 0, f"{node.name}: crictl pull {image}: {pulled.stderr.strip()[-300:]}"


def test_unknown_image_is_refused(node: NodeHost) -> None:
    """An image that the mirror lacks, or of a registry that it does not stand in for, is refused."""
    for image, why in (("registry.k8s.io/verify-there-is-none:1", "not found"), ("example.invalid/pause:1", "")):
        pulled = node.run("crictl pull %s", image)
        assert pulled.rc != 0, f"{node.name}: crictl pull {image} succeeded"
        assert why in pulled.stderr, f"{node.name}: crictl pull {image}: {pulled.stderr.strip()[-300:]}"


def test_socket_is_private(node: NodeHost) -> None:
    """Only root may talk to containerd."""
    said = node.check_output("stat -c '%a %U' /run/containerd/containerd.sock")
    assert said.split()[1] == "root", f"{node.name}: the socket is {said}"
    assert int(said.split()[0], 8) & 0o007 == 0, f"{node.name}: the socket is {said}: anybody may start containers"
