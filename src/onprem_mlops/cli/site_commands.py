"""init, validate, secrets, certs: what concerns the site's own files."""

from __future__ import annotations

import sys
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.markup import escape
from rich.table import Table

from onprem_mlops.cli.options import DEFAULT_INVENTORY, Inventory
from onprem_mlops.cli.result import PRIVATE, Result, writes
from onprem_mlops.console import console, print_table
from onprem_mlops.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from onprem_mlops.site import CertificateStatus, Recipient, SiteError
    from onprem_mlops.site.creation import NewNode, NewSite

secrets_app = typer.Typer(help="The site's secrets, kept encrypted to its recipients.", no_args_is_help=True)
site_app = typer.Typer(help="The site's description in the site's own Git.", no_args_is_help=True)
certs_app = typer.Typer(help="The site's certificate authority and certificates.", no_args_is_help=True)

Yes = Annotated[
    bool, typer.Option("--yes", help="Ask nothing. Needs --accept-host-keys or a --host-key for each node.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(rich_help_panel="The site")(init)
    app.command(rich_help_panel="The site")(validate)
    app.add_typer(secrets_app, name="secrets", rich_help_panel="The site")
    app.add_typer(certs_app, name="certs", rich_help_panel="The site")
    app.add_typer(site_app, name="site", rich_help_panel="The site")


@writes("init/v1")
def init(
    name: Annotated[str, typer.Argument(help="Short name of the site; its folder is inventories/NAME.")],
    domain: Annotated[str | None, typer.Option(help="Domain of nodes and services.")] = None,
    network: Annotated[str | None, typer.Option(help="Network of the nodes, such as 192.0.2.0/24.")] = None,
    node: Annotated[
        list[str] | None, typer.Option(metavar="NAME=ADDRESS:GROUP,GROUP", help="A node; repeat for each.")
    ] = None,
    api_address: Annotated[
        str | None, typer.Option(help="Virtual address of the Kubernetes API, for three control planes.")
    ] = None,
    ssh_user: Annotated[str, typer.Option(help="Account on the nodes.")] = "mlops",
    ssh_port: Annotated[int, typer.Option(help="Port of sshd on the nodes.")] = 22,
    ssh_key: Annotated[str, typer.Option(help="Private key of that account.")] = "~/.ssh/id_ed25519",
    host_key: Annotated[
        list[str] | None, typer.Option(metavar="NAME=KEY", help="A node's host key, ssh-ed25519 AAAA…, known to you.")
    ] = None,
    accept_host_keys: Annotated[
        bool, typer.Option("--accept-host-keys", help="Pin the scanned host keys without asking.")
    ] = False,
    yes: Yes = False,
    folder: Annotated[Path | None, typer.Option(help="Where to make it; default inventories/NAME.")] = None,
) -> Result:
    """Make a new site: a commented site file, fresh secrets, a certificate authority."""
    from onprem_mlops.site.creation import NewSite, create_site, refuse_existing
    from onprem_mlops.site.secrets import default_identity_file, ensure_identity, identity_from_environment

    target = folder or Path("inventories") / name
    refuse_existing(target)
    ask = not yes and sys.stdin.isatty()
    new = NewSite(
        name,
        domain or _asked("Domain of nodes and services", "--domain", ask),
        tuple(_nodes(node or [], ask)),
        _parsed(IPv4Network, network or _asked("Network of the nodes", "--network", ask), "a network", "192.0.2.0/24"),
        _parsed(IPv4Address, api_address, "an address", "192.0.2.10") if api_address else None,
        ssh_user,
        ssh_port,
        ssh_key,
    )
    keys = _host_keys(new, host_key or [], accept=accept_host_keys, ask=ask)
    identity = identity_from_environment() or default_identity_file()
    own = ensure_identity(identity)
    site = create_site(new, keys, target, [_named(own)])
    console.print(f"Made [bold]{escape(str(site.folder))}[/bold] with {len(site.nodes)} nodes.")
    console.print(f"Its secrets open with {escape(str(identity))} only: keep a copy of that file in a safe place.")
    console.print(f"Next: ./mlops plan -i {escape(str(site.folder))}")
    return Result({"site": site.name, "folder": str(site.folder), "recipient": own.key})


@writes("validate/v1")
def validate(inventory: Inventory = DEFAULT_INVENTORY) -> Result:
    """Check the site file; every error with its line, all at once."""
    from onprem_mlops.site import SiteError, load_site

    try:
        site = load_site(inventory)
    except SiteError as error:
        problems = [
            {"path": one.path, "line": one.line, "column": one.column, "message": one.message} for one in error.problems
        ]
        return Result({"valid": False, "problems": problems}, error=error)
    roles = ", ".join(site.role_settings) or "none"
    console.print(f"Site [bold]{site.name}[/bold] is right: {len(site.nodes)} nodes; roles that are on: {roles}.")
    for role, notice in site.notices:
        console.print(f"[yellow]note[/yellow] [bold]{role}[/bold]: {escape(notice)}")
    return Result(
        {
            "valid": True,
            "problems": [],
            "site": site.name,
            "nodes": [one.name for one in site.nodes],
            "roles": list(site.role_settings),
            "notices": [{"role": role, "message": notice} for role, notice in site.notices],
        }
    )


@site_app.command("push")
@writes("site-push/v1")
def site_push(inventory: Inventory = DEFAULT_INVENTORY) -> Result:
    """Push this program's commits and the site's folder (secrets encrypted) to the Git that the site itself serves."""
    from onprem_mlops.publication import push, record
    from onprem_mlops.site import load_site

    pushed = push(load_site(inventory))
    for one in pushed:
        state = "now" if one.changed else "already"
        console.print(f"{one.what}: {escape(one.url)} is {state} at {one.commit[:12]}", soft_wrap=True)
    return Result({"pushed": record(pushed)})


@secrets_app.command()
@writes("secrets/v1", mode=PRIVATE)
def show(
    role: Annotated[str | None, typer.Argument(help="Only this role's.")] = None,
    name: Annotated[str | None, typer.Argument(help="Only this one; prints nothing but its value.")] = None,
    reveal: Annotated[bool, typer.Option("--reveal", help="Show the values, in the file of --json too.")] = False,
    inventory: Inventory = DEFAULT_INVENTORY,
) -> Result:
    """List the secrets; with ROLE NAME print one."""
    from onprem_mlops.site import Secrets, load_site

    secrets = Secrets.of(load_site(inventory))
    if role and name:
        alone = secrets.get(role, name).reveal()
        sys.stdout.write(alone + "\n")
        return Result({"secrets": {role: [name]}, "values": {role: {name: alone}}})
    known = secrets.show()
    if role is not None and role not in known:
        raise RequestError(f'there are no secrets of a role "{role}"', f"There are some of: {', '.join(known)}.")
    chosen = {key: value for key, value in known.items() if role in (None, key)}
    table = Table("role", "name", "value", box=None)
    for of_role, named in chosen.items():
        for one, value in named.items():
            table.add_row(of_role, one, escape(value.reveal() if reveal else str(value)))
    print_table(table)
    data: dict[str, Any] = {"secrets": {key: list(named) for key, named in chosen.items()}}
    if reveal:
        data["values"] = {key: {one: value.reveal() for one, value in named.items()} for key, named in chosen.items()}
    return Result(data)


@secrets_app.command()
@writes("secrets-edit/v1")
def edit(inventory: Inventory = DEFAULT_INVENTORY) -> Result:
    """Edit the secrets in $VISUAL or $EDITOR; written only if the result is right."""
    from onprem_mlops.site import Secrets, load_site
    from onprem_mlops.site.material import irreplaceable
    from onprem_mlops.site.secrets import run_editor

    def try_again(error: SiteError) -> bool:
        console.print(escape(error.message), soft_wrap=True)
        return sys.stdin.isatty() and typer.confirm("Edit again?", default=True)

    site = load_site(inventory)
    changed = Secrets.of(site).edit(run_editor, try_again, kept=irreplaceable(site))
    console.print("Written. The next deploy lays the changes down." if changed else "Nothing was changed.")
    return Result({"changed": changed})


@secrets_app.command()
@writes("secrets-rotate/v1")
def rotate(
    role: Annotated[str, typer.Argument(help="The role whose secret it is.")],
    name: Annotated[str, typer.Argument(help="The secret.")],
    inventory: Inventory = DEFAULT_INVENTORY,
    now: Annotated[bool, typer.Option("--deploy", help="Lay it down at once, wherever it is used.")] = False,
) -> Result:
    """Give a secret a fresh value; a deploy lays it down."""
    from onprem_mlops.cli.run_commands import run_phase
    from onprem_mlops.site import Secrets, load_site

    site = load_site(inventory)
    Secrets.of(site).rotate(site, role, name)
    if not now:
        # Not --role: who checks a secret and who shows it are often two roles.
        console.print(f"{role} {name} has a new value. The next deploy lays it down: ./mlops deploy")
        return Result({"role": role, "name": name, "deploy": None})
    deployed = run_phase(inventory, None, None, None, planning=False)
    return Result({"role": role, "name": name, "deploy": deployed.data}, exit_code=deployed.exit_code)


@secrets_app.command("add-recipient")
@writes("secrets-recipients/v1")
def add_recipient(
    key: Annotated[str, typer.Argument(help="Public key: age1… or ssh-ed25519 AAAA….")],
    name: Annotated[str, typer.Option(help="Whose key it is.")],
    inventory: Inventory = DEFAULT_INVENTORY,
) -> Result:
    """Let another person's key read the secrets."""
    from onprem_mlops.site import Recipient, Secrets, load_site

    secrets = Secrets.of(load_site(inventory))
    secrets.add_recipient(Recipient(key, name))
    console.print(f"{escape(name)} can read the secrets now. Commit {secrets.file.name} and recipients.txt.")
    return Result(_recipients(secrets.recipients))


@secrets_app.command("remove-recipient")
@writes("secrets-recipients/v1")
def remove_recipient(
    who: Annotated[str, typer.Argument(help="Name or key, as recipients.txt has it.")],
    inventory: Inventory = DEFAULT_INVENTORY,
) -> Result:
    """Encrypt without a recipient from now on."""
    from onprem_mlops.site import Secrets, load_site

    secrets = Secrets.of(load_site(inventory))
    gone = secrets.remove_recipient(who)
    console.print(f"{escape(gone.name or gone.key)} cannot read what is written from now on.")
    console.print("What they have read, and what git's history holds, they still know: rotate what matters.")
    return Result(_recipients(secrets.recipients))


@certs_app.command("list")
@writes("certs/v1")
def list_certificates(inventory: Inventory = DEFAULT_INVENTORY) -> Result:
    """Every certificate with the days it has left, first to end first."""
    from onprem_mlops.site import SiteMaterial, load_site

    rows = SiteMaterial(load_site(inventory), planning=True).certificates()
    table = Table("certificate", "node", "ends", "days left", "next deploy", box=None)
    for row in rows:
        table.add_row(*_certificate_cells(row))
    print_table(table)
    return Result({"certificates": [_certificate_json(row) for row in rows]})


@certs_app.command("renew-authority")
@writes("certs-authority/v1")
def renew_authority_command(
    yes_destroy: Annotated[
        str | None, typer.Option("--yes-destroy", metavar="NAME", help="The site's name, instead of typing it.")
    ] = None,
    inventory: Inventory = DEFAULT_INVENTORY,
) -> Result:
    """Replace the authority, as after a change of the domain; the next deploy issues every certificate anew."""
    from onprem_mlops.site import load_site
    from onprem_mlops.site.material import renew_authority

    site = load_site(inventory)
    console.print("Clients that trust the present authority refuse new certificates until a deploy reached them.")
    name = yes_destroy if yes_destroy is not None else typer.prompt(f"Type the site's name ({site.name}) to go on")
    if name != site.name:
        raise RequestError(f'"{name}" is not the site\'s name; nothing was changed', f"The site is {site.name}.")
    renew_authority(site)
    console.print("Made a new authority. Next: ./mlops deploy")
    return Result({"site": site.name})


def _certificate_cells(row: CertificateStatus) -> list[str]:
    ends = f"{row.not_after:%Y-%m-%d}" if row.not_after else "-"
    left = "-" if row.days_left is None else str(row.days_left)
    due = f"[yellow]{escape(row.why_due)}[/yellow]" if row.why_due else "[dim]as it is[/dim]"
    return [f"{row.role} {row.name}".strip(), row.node or "-", ends, left, due]


def _certificate_json(row: CertificateStatus) -> dict[str, object]:
    return {
        "role": row.role,
        "name": row.name,
        "node": row.node,
        "not_after": row.not_after.isoformat() if row.not_after else None,
        "days_left": row.days_left,
        "why_due": row.why_due,
    }


def _recipients(recipients: list[Recipient]) -> dict[str, object]:
    return {"recipients": [{"name": one.name, "key": one.key} for one in recipients]}


def _named(own: Recipient) -> Recipient:
    import getpass
    import socket

    from onprem_mlops.site import Recipient

    return Recipient(own.key, f"{getpass.getuser()} on {socket.gethostname()}")


def _asked(question: str, flag: str, ask: bool) -> str:
    if not ask:
        raise RequestError(f"{flag} is missing", "Without a terminal, or with --yes, everything comes from flags.")
    return str(typer.prompt(question))


def _nodes(given: list[str], ask: bool) -> list[NewNode]:
    from onprem_mlops.site.creation import NewNode

    if given:
        return [NewNode.parse(text) for text in given]
    if not ask:
        raise RequestError("--node is missing", "Give one for each node: --node cp1=192.0.2.11:control_plane")
    console.print("The nodes, one a line: name=address:group,group (such as cp1=192.0.2.11:control_plane).")
    console.print("An empty line ends.")
    found: list[NewNode] = []
    while line := typer.prompt("node", default="", show_default=False):
        try:
            found.append(NewNode.parse(line))
        except RequestError as error:
            console.print(f"{escape(error.message)}. {escape(error.advice)}")
    return found


P = TypeVar("P")


def _parsed(kind: Callable[[str], P], text: str, what: str, example: str) -> P:
    try:
        return kind(text)
    except ValueError as error:
        raise RequestError(f'"{text}" is not {what}: {error}', f"Write one such as {example}.") from None


def _host_keys(new: NewSite, given: list[str], *, accept: bool, ask: bool) -> dict[str, str]:
    """The host keys to pin: those given, and those scanned and confirmed."""
    from onprem_mlops.site.fields import fingerprint
    from onprem_mlops.site.host_keys import scan_host_keys

    keys = dict(_given_key(text, new) for text in given)
    unknown = [node for node in new.nodes if node.name not in keys]
    if not unknown:
        return keys
    if not accept and not ask:
        names = ", ".join(node.name for node in unknown)
        raise RequestError(
            f"nobody can confirm the host keys of {names}",
            "Give each with --host-key NAME=KEY, or take what is scanned with --accept-host-keys.",
        )
    scanned = scan_host_keys([node.address for node in unknown], new.ssh_port)
    table = Table(
        "node", "address", "fingerprint (compare with: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub)", box=None
    )
    for node in unknown:
        keys[node.name] = scanned[node.address]
        table.add_row(node.name, str(node.address), fingerprint(scanned[node.address]))
    print_table(table)
    if not accept and not typer.confirm("Are these the keys that the machines themselves show?", default=False):
        raise RequestError("host keys not confirmed; nothing was made", "Compare them on the machines' own consoles.")
    return keys


def _given_key(text: str, new: NewSite) -> tuple[str, str]:
    from onprem_mlops.site import fields

    name, _, key = text.partition("=")
    if name not in {node.name for node in new.nodes}:
        raise RequestError(f'--host-key "{name}" is no node of this site', "Write --host-key NAME=ssh-ed25519 AAAA…")
    return name, _parsed(fields.host_key, key, "a host key", "ssh-ed25519 AAAA…")
