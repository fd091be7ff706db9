"""Lays down containerd and what it needs."""

from __future__ import annotations

from onprem_mlops.engine.operations import apt, containers, files, systemd
from onprem_mlops.roles import Context, removal, step

from .settings import Settings

ON = ("control_plane", "worker")
BINARIES = ("containerd", "containerd-shim-runc-v2", "ctr")
CNI_PLUGINS = ("loopback", "host-local", "portmap", "bandwidth", "tuning")
"""What Calico's configuration chains to; the other reference plugins would only be more to attack."""

CONFIG = "/etc/containerd/config.toml"
UNIT = "/etc/systemd/system/containerd.service"
CERTIFICATES = "/etc/containerd/certs.d"


@step(on=ON)
def runtime(ctx: Context[Settings]) -> None:
    """containerd runs with the configuration on disk, and images come from the mirror."""
    apt.packages("runc, which starts containers", "runc")
    apt.held("runc changes in a deploy, not at night", "runc")
    _binaries(ctx)
    _registries(ctx)
    files.content("crictl configuration", "/etc/crictl.yaml", ctx.render("crictl.yaml.j2"))
    config = ctx.render("config.toml.j2", sandbox=ctx.image("image-pause"))
    files.content("containerd configuration", CONFIG, config, mode="600")
    files.content("containerd service", UNIT, ctx.render("containerd.service.j2"))
    systemd.service("containerd runs", "containerd.service", configuration=(CONFIG, UNIT, "/usr/local/bin/containerd"))


def _binaries(ctx: Context[Settings]) -> None:
    for name in BINARIES:
        _download(ctx, f"/usr/local/bin/{name}", "containerd", name)
    _download(ctx, "/usr/local/bin/crictl", "crictl", "crictl")
    for name in CNI_PLUGINS:
        _download(ctx, f"/opt/cni/bin/{name}", "cni-plugins", name)


def _download(ctx: Context[Settings], path: str, artifact: str, name: str) -> None:
    authority = ctx.settings_of("node").authority_path
    files.download(name, path, ctx.file(artifact, name), authority=authority)


def _registries(ctx: Context[Settings]) -> None:
    authority = ctx.settings_of("node").authority_path
    for registry in ctx.settings.registries:
        text = ctx.render(
            "hosts.toml.j2",
            registry=registry,
            url=f"{ctx.site.mirror_url}/v2/{registry}",
            authority=authority,
        )
        files.content(f"mirror of {registry}", f"{CERTIFICATES}/{registry}/hosts.toml", text)
    text = ctx.render("others.toml.j2", authority=authority)
    files.content("trust in the site's own registries", f"{CERTIFICATES}/_default/hosts.toml", text)


@removal(on=ON)
def remove(ctx: Context[Settings]) -> None:
    """No container runs, and nothing of containerd is left; images and container data are no data of the site."""
    containers.stopped("no container runs")
    systemd.gone("containerd is off", "containerd.service")
    containers.unmounted("nothing of containers is mounted", "/run/containerd", "/var/lib/containerd")
    binaries = [f"/usr/local/bin/{name}" for name in (*BINARIES, "crictl")]
    files.absent("containerd's files", *binaries, UNIT, "/etc/crictl.yaml")
    folders = ("/etc/containerd", "/run/containerd", "/opt/containerd", "/var/lib/cni")
    files.absent("containerd's folders", *folders, recursive=True)
    files.absent("CNI plugins", *(f"/opt/cni/bin/{name}" for name in CNI_PLUGINS))
    files.no_empty_folders("folders of CNI", "/opt/cni/bin", "/opt/cni", "/etc/cni/net.d", "/etc/cni")
    containers.emptied("images and containers", "/var/lib/containerd")
    systemd.reloaded("systemd forgets the unit")
    apt.purged("runc", "runc")
