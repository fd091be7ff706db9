"""MLflow as data scientists use it, with its real client in an environment of its own and nothing but an address, a
login and the site's authority."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from onprem_mlops import wheelhouse
from onprem_mlops.artifacts.publish import StorePublisher
from onprem_mlops.errors import MlopsError
from onprem_mlops.site.secrets import Secrets
from onprem_mlops.verify.suite import Controller, DoesNotApply, NodeHost, Nodes, NotChecked, Response, Site
from roles.mlflow.settings import ADMINISTRATOR, Settings

CACHE = "/var/cache/onprem-mlflow-client"
"""Where the client's environment stays on the node, so that the next verification need not make it again."""

ARTIFACT_BYTES = 200 << 20
METRICS = 1000
ARTIFACT_SECONDS = 60.0
"""For 200 MB up or down: a client that tries an address that it cannot use takes minutes."""

AUTHORITY = "/usr/local/share/ca-certificates/onprem-mlops.crt"
WARM = "import mlflow, mlflow.pyfunc, mlflow.sklearn, skops.io, sklearn.linear_model"


@dataclass
class Person:
    """Somebody with a login."""

    name: str
    password: str

    @property
    def headers(self) -> dict[str, str]:
        """What logs them in."""
        login = base64.b64encode(f"{self.name}:{self.password}".encode()).decode()
        return {"Authorization": f"Basic {login}", "Content-Type": "application/json"}


@dataclass
class Tracking:
    """The server's API, and what is to be taken away again."""

    controller: Controller
    address: str
    administrator: Person
    made: list[tuple[str, str, dict[str, Any], dict[str, str]]] = field(default_factory=list)

    def call(self, person: Person, method: str, path: str, body: Any = None, workspace: str = "") -> Response:
        """One request."""
        headers = {**person.headers, **({"X-MLFLOW-WORKSPACE": workspace} if workspace else {})}
        data = None if body is None else json.dumps(body).encode()
        return self.controller.request(method, f"{self.address}{path}", headers=headers, body=data)

    def do(self, method: str, path: str, body: Any = None, workspace: str = "") -> Any:
        """One request of the administrator's that must succeed."""
        answer = self.call(self.administrator, method, path, body, workspace)
        assert answer.status in (200, 201, 204), f"{method} {path}: HTTP {answer.status} {answer.text[:300]}"
        return answer.json if answer.body else {}


@dataclass
class Team:
    """A team that is there for these checks only: its workspace and two members.

    And a guest, who may work in it and was given nothing of others, as every user in `default`; and somebody who is in
    no team.
    """

    workspace: str
    member: Person
    colleague: Person
    guest: Person
    stranger: Person

    @property
    def people(self) -> tuple[Person, ...]:
        """All of them."""
        return (self.member, self.colleague, self.guest, self.stranger)


@pytest.fixture(scope="module")
def host(site: Site, settings: Settings, nodes: Nodes) -> NodeHost:
    """A node that serves, on which the client runs, too, as an account without rights."""
    return nodes[settings.hosts(site)[0].name]


@pytest.fixture(scope="module")
def tracking(site: Site, settings: Settings, controller: Controller) -> Tracking:
    """The server, as its administrator finds it."""
    address = settings.internal_endpoint(site, settings.hosts(site)[0])
    return Tracking(controller, address, Person(ADMINISTRATOR, _secret(site, "admin_password")))


@pytest.fixture(scope="module")
def people(site: Site, settings: Settings) -> dict[str, Person]:
    """Everybody whom the site file names, with the password in the site's secrets."""
    if not settings.users:
        raise DoesNotApply("the site file names no users")
    return {name: Person(name, _secret(site, f"user_{name}")) for name in settings.users}


def _secret(site: Site, name: str) -> str:
    """A secret of the role. NotChecked where the site's secrets cannot be read."""
    try:
        return Secrets.of(site).get("mlflow", name).reveal()
    except MlopsError as error:
        raise NotChecked(f"the site's secrets cannot be read here: {error.message}", error.advice) from None


@pytest.fixture(scope="module")
def team(tracking: Tracking) -> Iterator[Team]:
    """Some accounts and a workspace; all of it is gone afterwards, with what was logged."""
    mark = secrets.token_hex(3)
    names = ("member", "colleague", "guest", "stranger")
    found = Team(f"verify-{mark}", *(Person(f"verify-{mark}-{name}", secrets.token_hex(12)) for name in names))
    shared = {"workspace": "USE", "experiment": "EDIT", "registered_model": "EDIT"}
    try:
        tracking.do("POST", "/api/3.0/mlflow/workspaces", {"name": found.workspace})
        for person in found.people:
            tracking.do("POST", "/api/2.0/mlflow/users/create", {"username": person.name, "password": person.password})
        _role(tracking, found.workspace, "members", shared, (found.member, found.colleague))
        _role(tracking, found.workspace, "guests", {"workspace": "USE"}, (found.guest,))
        yield found
    finally:
        left = [said for said in _take_away(tracking, found) if said]
        assert not left, f"left behind: {'; '.join(left)}"


def _role(
    tracking: Tracking, workspace: str, name: str, permissions: Mapping[str, str], people: Iterable[Person]
) -> None:
    """A role inside MLflow with permissions by kind, for some people."""
    body: dict[str, Any] = {"workspace": workspace, "name": name}
    role = tracking.do("POST", "/api/3.0/mlflow/roles/create", body)["role"]["id"]
    for kind, permission in permissions.items():
        body = {"role_id": role, "resource_type": kind, "resource_pattern": "*", "permission": permission}
        tracking.do("POST", "/api/3.0/mlflow/roles/permissions/add", body)
    for person in people:
        tracking.do("POST", "/api/3.0/mlflow/roles/assign", {"username": person.name, "role_id": role})


def _take_away(tracking: Tracking, team: Team) -> Iterator[str]:
    """Remove all that was made; what could not be, in words."""
    workspace = team.workspace
    search = "/api/2.0/mlflow/experiments/search?max_results=100&view_type=ALL"
    found = tracking.call(tracking.administrator, "GET", search, workspace=workspace)
    for experiment in found.json.get("experiments", ()) if found.status == 200 else ():
        # The workspace's end takes what is in the databases, not what is in the object store.
        path = f"/api/2.0/mlflow-artifacts/artifacts/{experiment['experiment_id']}"
        yield _refusal(tracking, path, workspace=workspace)
    yield _refusal(tracking, f"/api/3.0/mlflow/workspaces/{workspace}?mode=CASCADE")
    for person in team.people:
        yield _refusal(tracking, "/api/2.0/mlflow/users/delete", {"username": person.name})


def _refusal(tracking: Tracking, path: str, body: Any = None, workspace: str = "") -> str:
    """What the server said to the removal; empty if it is done, or there was nothing."""
    answer = tracking.call(tracking.administrator, "DELETE", path, body, workspace)
    return "" if answer.status in (200, 204, 404) else f"{path}: HTTP {answer.status} {answer.text[:200]}"


def _collect(host: NodeHost, workspace: str) -> str:
    """What is deleted in the workspace goes for good, as the nightly timer would do after some weeks."""
    unit = host.lines("systemctl cat onprem-mlflow-gc.service")
    start = next(line for line in unit if line.startswith("ExecStart="))
    command = start.removeprefix("ExecStart=").partition(" --")[0]
    said = host.run(
        "systemd-run --quiet --wait --pipe --collect -p User=onprem-mlflow -p PrivateTmp=yes "
        "-p EnvironmentFile=/etc/onprem-mlflow/environment -E PYTHONPATH=/usr/local/lib/onprem-mlflow -E HOME=/tmp "
        f"{command} --workspace {workspace} 2>&1",
        timeout=60,
    )
    assert said.rc == 0, f"{host.name}: mlflow gc ended with {said.rc}: {said.stdout[-400:]}"
    return str(said.stdout)


@pytest.fixture(scope="module")
def python(site: Site, host: NodeHost) -> str:
    """The client's Python, in an environment that has nothing of the server's."""
    published = StorePublisher(site)
    files = published.files("mlflow-client")
    path = wheelhouse.environment_path(CACHE, files)
    if host.run(wheelhouse.is_whole(path)).rc != 0:
        wanted = wheelhouse.listing(files, published.files("uv"))
        made = host.feed(wheelhouse.build(path, authority=AUTHORITY, warm=WARM), wanted, timeout=170)
        assert made.rc == 0, f"{host.name}: no environment for the client: {made.stderr[-400:]}"
        host.check_output(f"{wheelhouse.others(path)} -exec rm -rf {{}} +")
    return f"{path}/bin/python"


def _run(host: NodeHost, python: str, team: Team, address: str, script: str, *arguments: str) -> Any:
    """Run a script of ours as somebody who has four settings, an empty home, and no rights; what it prints as JSON."""
    login = (
        f"MLFLOW_TRACKING_URI={address}\nMLFLOW_TRACKING_SERVER_CERT_PATH={AUTHORITY}\n"
        f"MLFLOW_TRACKING_USERNAME={team.member.name}\nMLFLOW_TRACKING_PASSWORD={team.member.password}\n"
    )
    source = Path(__file__).with_name(script).read_text()
    # Over standard input, so that the password is in nobody's arguments.
    given = f"{login}.\n{source}"
    said = host.feed(
        'home=$(mktemp -d) && chown nobody $home && cd $home && { while read -r line && [ "$line" != . ]; do '
        'export "$line"; done; export HOME=$home PYTHONDONTWRITEBYTECODE=1; '
        f"setpriv --reuid=nobody --regid=nogroup --clear-groups {python} -W ignore - {' '.join(arguments)}; }}; "
        "ended=$?; cd /; rm -rf $home; exit $ended",
        given,
        timeout=170,
    )
    assert said.rc == 0, f"{host.name}: the client ended with {said.rc}: {said.stderr[-600:]}"
    return json.loads(said.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def logged(host: NodeHost, python: str, team: Team, tracking: Tracking) -> Any:
    """What a member of a team logged: an experiment, runs, metrics, an artifact, a model."""
    return _run(host, python, team, tracking.address, "train.py.txt", team.workspace, str(METRICS), str(ARTIFACT_BYTES))


@pytest.mark.limit(180)
def test_runs_and_metrics(logged: Any, team: Team, tracking: Tracking) -> None:
    """A run with nested runs and 1 000 metrics is as it was logged, for a colleague as well."""
    assert logged["nested"] == 2, f"{logged['nested']} of 2 nested runs found below their parent"
    path = f"/api/2.0/mlflow/metrics/get-history?run_id={logged['run']}&metric_key=loss&max_results=5000"
    seen = tracking.call(team.colleague, "GET", path, workspace=team.workspace)
    assert seen.status == 200, f"a colleague reads the metrics: HTTP {seen.status} {seen.text[:300]}"
    values = {one["step"]: one["value"] for one in seen.json["metrics"]}
    assert values == {step: step / 8 for step in range(METRICS)}, f"{len(values)} of {METRICS} metrics are right"


@pytest.mark.limit(180)
def test_large_artifact(logged: Any, record_property: Any) -> None:
    """A client with nothing but an address, a login and the site's authority sends 200 MB and gets them back whole.

    If it takes minutes, the server tells its clients to fetch from the object store itself: see the role's README.
    """
    up, down = logged["seconds_up"], logged["seconds_down"]
    record_property("found", f"{ARTIFACT_BYTES >> 20} MB up in {up:.1f} s, down in {down:.1f} s")
    assert logged["received"] == logged["sent"], "what came back is not what was sent"
    assert max(up, down) < ARTIFACT_SECONDS, f"{up:.0f} s up, {down:.0f} s down"


def test_clients_get_no_address_of_the_object_store(logged: Any, team: Team, tracking: Tracking) -> None:
    """The server signs no addresses of the object store: artifacts pass through it, where permissions are."""
    info = tracking.do("GET", "/api/3.0/mlflow/server-info")
    offered = [name for name, value in info.items() if name.startswith("multipart") and value]
    assert not offered, f"the server offers {', '.join(offered)}"
    path = f"/api/2.0/mlflow-artifacts/presigned/{logged['artifact']}"
    answer = tracking.call(team.member, "GET", path, workspace=team.workspace)
    assert answer.status in (400, 404, 501), f"{path}: HTTP {answer.status} {answer.text[:300]}"


@pytest.mark.limit(180)
def test_model_comes_back(host: NodeHost, python: str, team: Team, tracking: Tracking, logged: Any) -> None:
    """A registered model is found by its alias and says the same in a clean environment as where it was trained."""
    found = _run(host, python, team, tracking.address, "predict.py.txt", team.workspace, logged["model"])
    assert found["version"] == "1", f"alias champion is of version {found['version']}"
    assert found["predicted"] == logged["predicted"], f"it says {found['predicted']}, not {logged['predicted']}"


@pytest.mark.parametrize("inside", [True, False], ids=["with-the-team's-name", "without"])
def test_other_teams_are_refused(team: Team, tracking: Tracking, logged: Any, inside: bool) -> None:
    """Who is not in a team can neither read nor change nor list its runs, models and artifacts."""
    workspace = team.workspace if inside else ""
    run, model = logged["run"], logged["model"]
    log = {"run_id": run, "key": "loss", "value": 0, "timestamp": 0, "step": 9}
    artifact = f"/api/2.0/mlflow-artifacts/artifacts/{logged['artifact']}"
    asked: list[tuple[str, str, Any]] = [
        ("GET", f"/api/2.0/mlflow/runs/get?run_id={run}", None),
        ("POST", "/api/2.0/mlflow/runs/log-metric", log),
        ("POST", "/api/2.0/mlflow/runs/delete", {"run_id": run}),
        ("POST", "/api/2.0/mlflow/experiments/delete", {"experiment_id": logged["experiment"]}),
        ("GET", f"/api/2.0/mlflow/registered-models/get?name={model}", None),
        ("GET", artifact, None),
        ("PUT", artifact, {}),
        ("POST", "/api/2.0/mlflow/experiments/create", {"name": "stolen"}),
    ]
    seen = tracking.call(team.colleague, "GET", asked[0][1], workspace=team.workspace)
    assert seen.status == 200, f"a colleague reads the run: HTTP {seen.status} {seen.text[:300]}"
    for method, path, body in asked:
        answer = tracking.call(team.stranger, method, path, body, workspace)
        assert answer.status in (403, 404), f"{method} {path} by a stranger: HTTP {answer.status} {answer.text[:200]}"
    listed = tracking.call(team.stranger, "GET", "/api/2.0/mlflow/experiments/search?max_results=100", None, workspace)
    shown = [one["experiment_id"] for one in listed.json.get("experiments", ())] if listed.status == 200 else []
    assert logged["experiment"] not in shown, "a stranger finds the team's experiment in the list"


def test_own_work_is_not_shared(team: Team, tracking: Tracking, logged: Any) -> None:
    """Who works in a workspace sees there what they made themselves, and nothing else that nobody shared with them."""
    body = {"name": "own"}
    made = tracking.call(team.guest, "POST", "/api/2.0/mlflow/experiments/create", body, team.workspace)
    assert made.status == 200, f"a guest makes an experiment: HTTP {made.status} {made.text[:200]}"
    asked: list[tuple[str, str, Any]] = [
        ("GET", f"/api/2.0/mlflow/runs/get?run_id={logged['run']}", None),
        ("POST", "/api/2.0/mlflow/runs/search", {"experiment_ids": [logged["experiment"]]}),
        ("GET", "/api/2.0/mlflow/registered-models/search?max_results=100", None),
        ("GET", "/api/2.0/mlflow/experiments/search?max_results=100", None),
    ]
    theirs = (logged["run"], logged["model"], logged["experiment"])
    for method, path, body in asked:
        # The control: a colleague finds something there.
        seen = tracking.call(team.colleague, method, path, body, team.workspace).text
        assert any(f'"{name}"' in seen for name in theirs), f"{method} {path} shows a colleague nothing: {seen[:200]}"
        found = tracking.call(team.guest, method, path, body, team.workspace).text
        assert not any(f'"{name}"' in found for name in theirs), f"{method} {path} shows a guest {found[:200]}"
    own = made.json["experiment_id"]
    assert f'"{own}"' in found, f"a guest does not find an experiment of their own: {found[:200]}"


def test_nothing_is_shared_by_default(team: Team, tracking: Tracking) -> None:
    """Who was given nothing sees nothing of the workspace `default`, not even that experiment which MLflow makes."""
    path = "/api/2.0/mlflow/experiments/get?experiment_id=0"
    if tracking.call(tracking.administrator, "GET", path).status != 200:
        raise DoesNotApply("somebody has removed MLflow's own experiment")
    answer = tracking.call(team.stranger, "GET", path)
    assert answer.status in (403, 404), f"{path} by somebody without rights: HTTP {answer.status} {answer.text[:200]}"


def test_only_administrators_administer(team: Team, tracking: Tracking) -> None:
    """A user can neither make accounts or teams, nor become an administrator, nor change another's password."""
    name = team.member.name
    for method, path, body in (
        ("POST", "/api/2.0/mlflow/users/create", {"username": f"{name}-2", "password": "0123456789abcdef"}),
        ("PATCH", "/api/2.0/mlflow/users/update-admin", {"username": name, "is_admin": True}),
        ("PATCH", "/api/2.0/mlflow/users/update-password", {"username": ADMINISTRATOR, "password": "0123456789abcdef"}),
        ("POST", "/api/3.0/mlflow/workspaces", {"name": f"{team.workspace}-2"}),
    ):
        answer = tracking.call(team.member, method, path, body, team.workspace)
        assert answer.status == 403, f"{method} {path} by a user: HTTP {answer.status} {answer.text[:200]}"


@pytest.mark.limit(120)
def test_users_of_the_site_log_in(people: dict[str, Person], settings: Settings, tracking: Tracking) -> None:
    """Everybody whom the site file names logs in with the password in the site's secrets, with the rights it names.

    `./mlops deploy --role mlflow` gives back passwords and rights that somebody changed at the server.
    """
    path = "/api/2.0/mlflow/users/current"
    for name, person in people.items():
        answer = tracking.call(person, "GET", path)
        assert answer.status == 200, f"{name} logs in: HTTP {answer.status} {answer.text[:200]}"
        found, wanted = answer.json["user"], settings.users[name].administrator
        assert found["username"] == name, f"{name} is {found['username']} after the login"
        assert found["is_admin"] == wanted, (
            f"{name} is an administrator: {found['is_admin']}; in the site file: {wanted}"
        )
        wrong = tracking.call(Person(name, f"{person.password}x"), "GET", path)
        assert wrong.status == 401, f"{name} with another password: HTTP {wrong.status}"


@pytest.mark.limit(120)
def test_users_see_their_teams_and_no_other(
    people: dict[str, Person], settings: Settings, team: Team, tracking: Tracking
) -> None:
    """Everybody whom the site file names sees the work of their own teams, and of no other.

    `./mlops deploy --role mlflow` puts people into the teams that the site file names, and takes them out of others.
    """
    made = {"name": f"{team.workspace}-seen"}
    tracking.do("POST", "/api/2.0/mlflow/experiments/create", made, team.workspace)
    # One experiment of each team; a team that has none yet has nothing to show.
    search = "/api/2.0/mlflow/experiments/search?max_results=1"
    work: dict[str, str] = {}
    for workspace in (*settings.teams, team.workspace):
        for one in tracking.do("GET", search, workspace=workspace).get("experiments", ()):
            work[workspace] = f"/api/2.0/mlflow/experiments/get?experiment_id={one['experiment_id']}"
    # The control: who is in a team sees its experiment.
    seen = tracking.call(team.colleague, "GET", work[team.workspace], workspace=team.workspace)
    assert seen.status == 200, f"a colleague reads the experiment: HTTP {seen.status} {seen.text[:200]}"
    for name, person in people.items():
        user = settings.users[name]
        own = {*settings.teams, team.workspace} if user.administrator else set(user.teams)
        listed = tracking.call(person, "GET", "/api/3.0/mlflow/workspaces")
        assert listed.status == 200, f"{name} lists workspaces: HTTP {listed.status} {listed.text[:200]}"
        found = {one["name"] for one in listed.json.get("workspaces", ())} & {*settings.teams, team.workspace}
        assert found == own, f"{name} sees the teams {sorted(found)}, and should see {sorted(own)}"
        for workspace, path in work.items():
            answer = tracking.call(person, "GET", path, workspace=workspace)
            wanted = (200,) if workspace in own else (403, 404)
            assert answer.status in wanted, f"{name} reads an experiment of {workspace}: HTTP {answer.status}"


@pytest.mark.limit(90)
def test_deleted_runs_go_for_good(host: NodeHost, team: Team, tracking: Tracking, logged: Any) -> None:
    """What was deleted is collected with its artifacts, and nothing else."""
    body = {"run_id": logged["spare"]}
    answer = tracking.call(team.member, "POST", "/api/2.0/mlflow/runs/delete", body, team.workspace)
    assert answer.status == 200, f"a member deletes a run of their own: HTTP {answer.status} {answer.text[:200]}"
    _collect(host, team.workspace)
    gone = tracking.call(
        tracking.administrator, "GET", f"/api/2.0/mlflow/runs/get?run_id={logged['spare']}", None, team.workspace
    )
    assert gone.status == 404, f"the deleted run is still there: HTTP {gone.status}"
    path = f"/api/2.0/mlflow-artifacts/artifacts/{logged['spare_artifact']}"
    left = tracking.call(tracking.administrator, "GET", path, None, team.workspace)
    assert left.status in (404, 500), f"its artifact is still there: HTTP {left.status}"
    kept = tracking.call(team.member, "GET", f"/api/2.0/mlflow/runs/get?run_id={logged['run']}", None, team.workspace)
    assert kept.status == 200, f"another run went with it: HTTP {kept.status}"
