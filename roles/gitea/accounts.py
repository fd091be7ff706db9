"""Accounts, organisations, teams and repositories of Gitea, made through its own API on its own node."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from onprem_mlops.engine.facts import probe
from onprem_mlops.engine.operations import rest, shell
from onprem_mlops.engine.operations.rest import Answer, Api
from onprem_mlops.errors import MlopsError
from onprem_mlops.roles import Context

from .settings import AUTOMATION, Organisation, Settings, Team

PROGRAM = "/usr/local/bin/gitea"
PAGE = 1000
"""Objects that one answer lists at most; Gitea is told so."""
ITSELF = f"/admin/users?is_2fa_enabled=true&limit={PAGE}&q={AUTOMATION}"
"""Lists the account that deploys act with, if it has a second factor; answers an administrator's token only."""
FROM_FILE = "site file "
"""What the titles of SSH keys begin with that the site file names."""
UNITS = ("code", "issues", "pulls", "releases", "wiki", "projects", "packages", "actions")


def laid_down(ctx: Context[Settings]) -> None:
    """All of it. Reads what is there in two round trips; what is right is left alone."""
    api = Api(
        f"{ctx.settings.endpoint(ctx.site)}/api/v1",
        ctx.settings.token_header,
        ctx.settings_of("node").authority_path,
    )
    _private(ctx.settings.token_header)
    wanted = organisations(ctx.settings)
    paths = (ITSELF, *_paths(ctx, wanted))
    found = rest.read(api, *paths)
    if found[ITSELF].status in (401, 403) or not probe(f"[ -s {api.header} ]").ok:
        _automation(ctx)
        found = rest.read(api, *paths)
    if not found[ITSELF].found and not ctx.planning:
        raise MlopsError(
            f"{ctx.node.name}: Gitea answers the account that deploys act with HTTP {found[ITSELF].status}",
            "`journalctl -u gitea -n 50` on that node says why; then deploy again.",
        )
    if AUTOMATION not in (one["login"] for one in found[ITSELF].body or ()):
        _second_factor(ctx, api)
        found = rest.read(api, *paths)
    _people(ctx, api, found)
    for name, organisation in wanted.items():
        _organisation(api, name, organisation, found)
    _teams(ctx, api, wanted)
    for name in ctx.settings.repositories(ctx.site):
        _repository(ctx, api, name, found)


def organisations(settings: Settings) -> Mapping[str, Organisation]:
    """What the site file names, and the platform's own."""
    own = {
        settings.platform: Organisation(description="The platform's own description", visibility="private"),
        settings.shared: Organisation(description="Packages that everybody may install", visibility="public"),
    }
    return {**own, **settings.organisations}


def _paths(ctx: Context[Settings], wanted: Mapping[str, Organisation]) -> Iterator[str]:
    for person in ctx.settings.people:
        yield f"/users/{person}"
        yield f"/users/{person}/keys?limit={PAGE}"
    for name in wanted:
        yield f"/orgs/{name}"
        yield f"/orgs/{name}/teams?limit={PAGE}"
    for name in ctx.settings.repositories(ctx.site):
        at = f"/repos/{ctx.settings.platform}/{name}"
        yield at
        yield f"{at}/branch_protections/main"


def _private(header: str) -> None:
    """The token of deploys is root's alone, also if somebody changed that: it is made on the node, and only once."""
    path = shlex.quote(header)
    shell.run(
        "nobody but root reads the token that deploys act with",
        f"chown root:root {path} && chmod 600 {path}",
        unless=f"[ ! -e {path} ] || [ \"$(stat -c '%a %U %G' {path})\" = '600 root root' ]",
    )


def _automation(ctx: Context[Settings]) -> None:
    """The account that deploys act with, and a token for it."""
    gitea = f"runuser -u {ctx.settings.account} -- {PROGRAM} --config {ctx.settings.configuration} admin user"
    header = shlex.quote(ctx.settings.token_header)
    # Its password is told nobody (a bot, which has none, would be told to change it). The token's name is new each
    # time: an old one's text is gone.
    shell.run(
        "account and token that deploys act with",
        # Whatever else Gitea has to say when it starts goes to the same place as the token.
        f"cd / && umask 077; token() {{ {gitea} generate-access-token --username {AUTOMATION} "
        "--token-name deploy-$(date +%s) --scopes all --raw | grep -xE '[0-9a-f]{40}'; }; "
        f"token=$(token 2>/dev/null) || {{ {gitea} create --admin --username {AUTOMATION} "
        f"--email {AUTOMATION}@{ctx.site.domain} --random-password --random-password-length 40 "
        "--must-change-password=false >/dev/null && token=$(token); } || exit 1; "
        f'echo "Authorization: token $token" >{header}.new && mv -f {header}.new {header}',
        unless=False,
    )


def _second_factor(ctx: Context[Settings], api: Api) -> None:
    """The account has one also where nobody must: with the setting it would no longer see what it made."""
    url = ctx.settings.endpoint(ctx.site)
    values = {"url": url, "header": api.header, "authority": api.authority, "account": AUTOMATION}
    script = ctx.render("enrol.sh.j2", **values)
    shell.run("second factor of the account that deploys act with", "bash -s", unless=False, stdin=script)


def _people(ctx: Context[Settings], api: Api, found: Mapping[str, Answer]) -> None:
    for name, person in ctx.settings.people.items():
        now = found[f"/users/{name}"]
        wanted = {"email": person.email, "full_name": person.full_name}
        rest.present(
            f"account {name}",
            api,
            now.body,
            wanted,
            what=f"account {name}",
            create=("POST", "/admin/users"),
            at_first={
                "username": name,
                "password": ctx.secret(f"first_password_{name}"),
                "must_change_password": True,
            },
        )
        rights = {"admin": person.admin, "active": True, "prohibit_login": not person.active}
        have = {} if now.body is None else {**now.body, "admin": now.body["is_admin"]}
        rest.present(
            f"details and rights of {name}",
            api,
            have,
            {**wanted, **rights},
            what=f"account {name}",
            create=("PATCH", f"/admin/users/{name}"),
            update=("PATCH", f"/admin/users/{name}"),
            always={"login_name": name, "source_id": 0},
        )
        keys = {" ".join(one["key"].split()[:2]): one for one in found[f"/users/{name}/keys?limit={PAGE}"].body or ()}
        for key in person.ssh_keys:
            rest.present(
                f"SSH key of {name}",
                api,
                {} if key in keys else None,
                {},
                what=f"SSH key {key[-16:]} of {name}",
                create=("POST", f"/admin/users/{name}/keys"),
                at_first={"title": f"{FROM_FILE}{key[-16:]}", "key": key},
            )
        for key, one in keys.items():
            # Those that the person added stay.
            if one["title"].startswith(FROM_FILE) and key not in person.ssh_keys:
                what = f"- {one['title']}"
                rest.called(
                    f"no longer an SSH key of {name}", api, "DELETE", f"/admin/users/{name}/keys/{one['id']}", what=what
                )


def _organisation(api: Api, name: str, wanted: Organisation, found: Mapping[str, Answer]) -> None:
    rest.present(
        f"organisation {name}",
        api,
        found[f"/orgs/{name}"].body,
        {"description": wanted.description, "visibility": wanted.visibility},
        what=f"organisation {name}",
        create=("POST", "/orgs"),
        update=("PATCH", f"/orgs/{name}"),
        at_first={"username": name},
    )


def _teams(ctx: Context[Settings], api: Api, wanted: Mapping[str, Organisation]) -> None:
    teams = {(owner, name): team for owner, of in wanted.items() for name, team in of.teams.items()}
    if not teams:
        return
    listed = [f"/orgs/{name}/teams?limit={PAGE}" for name in wanted]
    found = _by_name(rest.read(api, *listed))
    for (owner, name), team in teams.items():
        _team(api, owner, name, team, found.get((owner, name)))
    # A team that was made just now has a number since.
    found = _by_name(rest.read(api, *listed))
    members = {at: f"/teams/{found[at]['id']}/members?limit={PAGE}" for at in teams if at in found}
    there = rest.read(api, *members.values())
    for at, team in teams.items():
        names = {one["login"] for one in there[members[at]].body or ()} if at in members else set()
        _members(api, at, found.get(at, {}).get("id", 0), set(team.members), names)


def _by_name(answers: Mapping[str, Answer]) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {(path.split("/")[2], team["name"]): team for path, answer in answers.items() for team in answer.body or ()}


def _team(api: Api, owner: str, name: str, wanted: Team, now: Mapping[str, Any] | None) -> None:
    units = {f"repo.{unit}": wanted.permission for unit in UNITS}
    rest.present(
        f"team {name} of {owner}",
        api,
        now,
        {
            "includes_all_repositories": True,
            "can_create_org_repo": wanted.creates_repositories,
            **({"permission": "admin"} if wanted.permission == "admin" else {"units_map": units}),
        },
        what=f"team {name} of {owner}",
        create=("POST", f"/orgs/{owner}/teams"),
        update=("PATCH", f"/teams/{now['id'] if now else 0}"),
        always={"name": name, "permission": wanted.permission},
    )


def _members(api: Api, at: tuple[str, str], number: int, wanted: set[str], names: set[str]) -> None:
    owner, team = at
    for one in sorted(wanted - names):
        rest.called(f"{one} in team {team} of {owner}", api, "PUT", f"/teams/{number}/members/{one}", what=f"+ {one}")
    for one in sorted(names - wanted):
        path = f"/teams/{number}/members/{one}"
        rest.called(f"{one} no longer in team {team} of {owner}", api, "DELETE", path, what=f"- {one}")


def _repository(ctx: Context[Settings], api: Api, name: str, found: Mapping[str, Answer]) -> None:
    at = f"/repos/{ctx.settings.platform}/{name}"
    rest.present(
        f"repository {name} of the platform",
        api,
        found[at].body,
        {"private": True},
        what=f"repository {ctx.settings.platform}/{name}",
        create=("POST", f"/orgs/{ctx.settings.platform}/repos"),
        update=("PATCH", at),
        at_first={"name": name, "default_branch": "main", "object_format_name": "sha1"},
    )
    rest.present(
        f"protection of {name}",
        api,
        found[f"{at}/branch_protections/main"].body,
        {
            # Only `./mlops site push` goes past a review; history is never rewritten.
            "enable_push": True,
            "enable_push_whitelist": True,
            "push_whitelist_usernames": [AUTOMATION],
            "enable_force_push": False,
            "required_approvals": ctx.settings.approvals,
            "block_on_rejected_reviews": True,
            "dismiss_stale_approvals": True,
        },
        what=f"protection of main in {ctx.settings.platform}/{name}",
        create=("POST", f"{at}/branch_protections"),
        update=("PATCH", f"{at}/branch_protections/main"),
        at_first={"rule_name": "main"},
    )
