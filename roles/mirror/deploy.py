"""Carries the artifact store to its node and serves it."""

from __future__ import annotations

from onprem_mlops.engine.facts import probe
from onprem_mlops.engine.operations import apt, files, mirror, server, shell, systemd
from onprem_mlops.roles import Context, removal, step
from roles.mirror.settings import Settings

CONFIGURATION = "/etc/onprem-mirror"
NGINX = f"{CONFIGURATION}/nginx.conf"
REGISTRY = f"{CONFIGURATION}/registry.yaml"
CHAIN = f"{CONFIGURATION}/chain.pem"
KEY = f"{CONFIGURATION}/key.pem"
BINARY = "/usr/local/bin/registry"
MIRROR_UNIT = "/etc/systemd/system/onprem-mirror.service"
REGISTRY_UNIT = "/etc/systemd/system/onprem-registry.service"
LOCAL_SOURCE = "/etc/apt/sources.list.d/onprem-mirror-local.sources"
LOCAL_KEYRING = "/etc/apt/keyrings/onprem-mirror-local.asc"
PACKAGES_MASK = "/etc/systemd/system/nginx.service"


@step(on="services", only="first")
def push(ctx: Context[Settings]) -> None:
    """The store's tree on the node, whole and checked. Needs no package: the first thing that a site gets."""
    files.directory("where the mirror's tree lies", ctx.settings.root)
    mirror.pushed("artifacts that the site's roles lay down", ctx.settings.root, ctx.tree())


@step(on="services", only="first", after=("push",))
def serve(ctx: Context[Settings]) -> None:
    """nginx and the registry, each its own user, over what was pushed."""
    _install(ctx)
    _registry(ctx)
    _nginx(ctx)
    url = ctx.site.mirror_url
    trust = f"--cacert {ctx.settings_of('node').authority_path}"
    answers = f"curl -fsS {trust} -o /dev/null {url}/healthz && curl -fsS {trust} -o /dev/null {url}/v2/"
    shell.wait(
        "the mirror answers",
        answers,
        seconds=30,
        otherwise="systemctl status --no-pager --lines=10 onprem-mirror onprem-registry; " + answers,
    )


@removal(on="services")
def remove(ctx: Context[Settings]) -> None:
    """Take the services off. The tree itself is data: it goes only if the person agreed."""
    for unit in ("onprem-mirror.service", "onprem-registry.service"):
        systemd.gone(f"no {unit}", unit)
    files.absent("no units", MIRROR_UNIT, REGISTRY_UNIT)
    files.absent("no configuration", CONFIGURATION, recursive=True)
    files.absent("no registry", BINARY)
    apt.purged("nginx, if it came with this role", "nginx")
    files.absent("nginx's own service is no longer masked", PACKAGES_MASK)
    files.absent("no package source on the node's own disk", LOCAL_SOURCE, LOCAL_KEYRING)
    for user in ("onprem-mirror", "onprem-registry"):
        server.no_user(f"no user {user}", user)
    if ctx.remove_data:
        files.absent("no artifacts", ctx.settings.root, recursive=True)


def _install(ctx: Context[Settings]) -> None:
    """Packages, from the pushed tree itself: nothing serves it yet."""
    codename = probe('. /etc/os-release; echo "$VERSION_CODENAME"').text.strip()
    files.content("key of the store's package repository", LOCAL_KEYRING, ctx.package_key(codename))
    source = ctx.render("local.sources.j2", codename=codename, keyring=LOCAL_KEYRING)
    files.content("the pushed tree as package source", LOCAL_SOURCE, source)
    # The package's own service would come up on port 80 with a welcome page; ours is another unit.
    files.link("nginx's own service never starts", PACKAGES_MASK, "/dev/null")
    apt.packages("nginx and curl", "nginx", "curl")


def _registry(ctx: Context[Settings]) -> None:
    server.user("user of the registry", "onprem-registry", system=True)
    mirror.installed("program of the registry", BINARY, ctx.file("registry", "registry"), root=ctx.settings.root)
    files.directory("configuration of the mirror", CONFIGURATION)
    files.content("configuration of the registry", REGISTRY, ctx.render("registry.yaml.j2"))
    unit = ctx.render("onprem-registry.service.j2", binary=BINARY, configuration=REGISTRY)
    files.content("unit of the registry", REGISTRY_UNIT, unit)
    systemd.service(
        "registry with this configuration", "onprem-registry.service", configuration=(REGISTRY, REGISTRY_UNIT, BINARY)
    )


def _nginx(ctx: Context[Settings]) -> None:
    server.user("user of the mirror", "onprem-mirror", system=True)
    files.certificate("certificate of the mirror", CHAIN, KEY, ctx.certificate("mirror"), owner="onprem-mirror")
    files.content("configuration of nginx", NGINX, ctx.render("nginx.conf.j2", chain=CHAIN, key=KEY))
    unit = ctx.render("onprem-mirror.service.j2", configuration=NGINX)
    files.content("unit of the mirror", MIRROR_UNIT, unit)
    # A renewed certificate is newer than the service's start, which is what restarts it.
    systemd.service(
        "mirror with this configuration", "onprem-mirror.service", configuration=(NGINX, MIRROR_UNIT, CHAIN, KEY)
    )
