"""Workflows as people find them: pushed, run, seen; and what a job that means harm gets at: nothing."""

from __future__ import annotations

import base64
import io
import secrets
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest

from onprem_mlops.artifacts.publish import StorePublisher
from onprem_mlops.verify.suite import SYSTEM_STORE, DoesNotApply, NodeApi, NodeHost, Nodes, NotChecked, Site, until
from roles.gitea_runner.settings import Settings

pytestmark = pytest.mark.limit(300)

QUIET_SECONDS = 90
"""After so long without any change a job is not waited for any more."""

WORK = """
on: {{push: {{branches: [{branch}]}}}}
jobs:
  first:
    runs-on: {label}
    steps:
      - uses: actions/checkout@v4
      - run: grep -q private-content content.txt && echo "checked out $(git rev-parse HEAD)"
      - id: cache
        uses: actions/cache@v4
        with: {{path: kept, key: "key-{marker}"}}
      - run: echo "hit=${{{{ steps.cache.outputs.cache-hit }}}} kept=$(cat kept/file 2>/dev/null)"
      - run: mkdir -p kept out && echo {marker} >kept/file && echo {marker} >out/result.txt
      - uses: actions/upload-artifact@v4
        with: {{name: result, path: out}}
  second:
    runs-on: {label}
    needs: [first]
    steps:
      - uses: actions/download-artifact@v4
        with: {{name: result, path: got}}
      - run: echo "downloaded=$(cat got/result.txt)"
"""

INSTALLS = """
on: {{push: {{branches: [main]}}}}
jobs:
  installs:
    runs-on: {label}
    steps:
      - run: python3 -m venv tried
      - run: tried/bin/pip install -q --no-deps --disable-pip-version-check {project}
      - run: echo "installed=$(tried/bin/pip show {project} | sed -n 's/^Version. //p')"
"""

FAILS = """
on: {{push: {{branches: [main]}}}}
jobs:
  fails:
    runs-on: {label}
    steps:
      - run: exit 3
"""

HOSTILE = """
on: {{push: {{branches: [main]}}}}
jobs:
  hostile:
    runs-on: {label}
    steps:
      - run: |
          canary={half}""{other}
          echo "found=$(find / -xdev -type f -readable -not -path '/proc/*' -not -path '/sys/*' -size -2 \\
            -exec grep -lsF "$canary" {{}} + 2>/dev/null | grep -v "$HOME" | grep -v "${{HOME%/home}}" | tr '\\n' ' ')"
          echo "shm=$(ls /dev/shm/ /tmp /var/tmp 2>/dev/null | grep -c verify-canary)"
          others=0; for p in /proc/[0-9]*; do
            u=$(stat -c %u "$p" 2>/dev/null) || continue; [ "$u" = "$(id -u)" ] || others=$((others+1)); done
          echo "others=$others"
          # Compared by the shell itself: a grep would find its own arguments.
          all=$(cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n')
          case $all in *"$canary"*) seen=yes ;; *) seen=no ;; esac
          echo "process=$seen"
          echo "daemon=$(cat /proc/$PPID/environ >/dev/null 2>&1 && echo read || echo refused)"
          echo "memory=$( ( : </proc/$PPID/mem ) 2>/dev/null && echo read || echo refused)"
          echo "pipes=$(ls /run/onprem-gitea-runner/*/ 2>/dev/null | wc -l)"
          cd /etc/onprem-gitea-runner 2>/dev/null || cd /
          echo "token=$(cat registration-token runner.yaml cache.yaml 2>/dev/null | wc -c)"
          cd /
          echo "root=$(sudo -n id -u 2>/dev/null; su -c 'id -u' </dev/null 2>/dev/null; unshare -r id -u 2>/dev/null)"
          has() {{ sed -n "s/^$1:[[:space:]]*//p" /proc/self/status; }}
          echo "caps=$(has CapBnd) nnp=$(has NoNewPrivs)"
          echo "writable=$(find / -xdev -writable -type d -not -path '/proc/*' 2>/dev/null \\
            | grep -v "^${{HOME%/home}}" | grep -vE '^/(tmp|var/tmp|dev/shm|run/onprem-gitea-runner)' | tr '\\n' ' ')"
          for at in {targets}; do
            if timeout 3 bash -c "exec 3<>/dev/tcp/${{at%:*}}/${{at#*:}}" 2>/dev/null; then is=open; else is=shut; fi
            echo "net $at $is"
          done
          for at in /tmp /dev/shm "$PWD"; do echo left >"$at/left-{marker}" || true; done
          setsid nohup sleep 900 >/dev/null 2>&1 &
          echo "user=$(id -un)"
"""


def smallest_wheel(site: Site) -> str:
    """File name of the smallest Python package that the platform offers; empty if it offers none."""
    published = StorePublisher(site)
    wheels = [one for name in site.wheelhouses for one in published.files(name) if one.name.endswith(".whl")]
    return min(wheels, key=lambda one: one.size).name if wheels else ""


@dataclass(frozen=True)
class Pushed:
    """A repository whose workflows ran once for each of its pushes."""

    forge: NodeApi
    path: str
    marker: str
    label: str

    def push(self, files: dict[str, str], **branch: str) -> None:
        """One commit with these files, which must be new: to `main`, or as the API says to another branch."""
        wanted = [
            {"operation": "create", "path": path, "content": base64.b64encode(text.encode()).decode()}
            for path, text in files.items()
        ]
        change = {"files": wanted, "message": "verify", "branch": "main", **branch}
        self.forge.ask("POST", f"{self.path}/contents", change)

    def ended(self, *names: str) -> dict[str, Any]:
        """These jobs by name, once they have ended. AssertionError if nothing happens any more before that."""
        said: dict[str, str] = {}
        end = time.monotonic() + QUIET_SECONDS
        while time.monotonic() < end:
            jobs = {one["name"]: one for one in self.forge.listed(f"{self.path}/actions/jobs", "jobs")}
            if all(name in jobs and jobs[name]["status"] == "completed" for name in names):
                return jobs
            now = {name: self._state(one) for name, one in jobs.items()}
            if now != said:
                said, end = now, time.monotonic() + QUIET_SECONDS
            time.sleep(1)
        states = "; ".join(f"{name}: {said.get(name, 'never began')}" for name in names)
        raise AssertionError(f"nothing happened for {QUIET_SECONDS} s, and not all jobs have ended: {states}")

    @staticmethod
    def _state(job: dict[str, Any]) -> str:
        """How far a job is."""
        steps = sum(step["status"] == "completed" for step in job.get("steps") or ())
        return f"{job['status']}, {steps} steps done, at {job.get('runner_name') or 'no slot'}"

    def log(self, job: dict[str, Any]) -> str:
        """What a job wrote."""
        return self.forge.fetch("GET", f"{self.path}/actions/jobs/{job['id']}/logs").decode(errors="replace")


@pytest.fixture(scope="module")
def forge(site: Site, nodes: Nodes) -> NodeApi:
    """Gitea, asked by its administrator. NotChecked if it does not answer on its own node."""
    gitea: Any = site.settings("gitea")
    host, url = nodes[gitea.hosts(site)[0].name], gitea.endpoint(site)
    if host.run(f"curl -fsS --max-time 10 --cacert {SYSTEM_STORE} {url}{gitea.health}").rc != 0:
        raise NotChecked(f"{host.name}: Gitea does not answer", "Other checks say why.")
    return NodeApi(host, f"{url}/api/v1", gitea.token_header)


def way_to_gitea(site: Site) -> str:
    """Address and port at which a node finds Gitea: the gateway's where there is one, the only way there then."""
    gitea: Any = site.settings("gitea")
    at = urlsplit(gitea.root_url(site))
    return f"{site.names[str(at.hostname)][0]}:{at.port or 443}"


@pytest.fixture(scope="module")
def runner(site: Site, settings: Settings, nodes: Nodes) -> NodeHost:
    """A node that runs jobs."""
    return nodes[settings.hosts(site)[0].name]


@pytest.fixture(scope="module")
def canary(runner: NodeHost) -> Iterator[str]:
    """A secret in every place where a service may have one: a file of root's, a process, folders that all share."""
    text = "verify-canary-" + secrets.token_hex(12)
    paths = " ".join(f"{folder}/{text}" for folder in ("/tmp", "/var/tmp", "/dev/shm"))  # noqa: S108
    secret = "/etc/onprem-gitea-runner-verify"  # noqa: S105
    pid = runner.check_output(
        f"umask 077; echo {text} >{secret}; umask 022; for at in {paths}; do echo {text} >$at; done; "
        f"CANARY={text} setsid sh -c 'sleep 1800; : {text}' >/dev/null 2>&1 & echo $!"
    ).strip()
    try:
        yield text
    finally:
        runner.run(f"rm -f {secret} {paths}; pkill -KILL -P {pid}; kill -KILL {pid}")


@pytest.fixture(scope="module")
def pushed(forge: NodeApi, runner: NodeHost, site: Site, canary: str) -> Iterator[Pushed]:
    """A private repository whose workflows have run, which goes with all that it made."""
    owner = f"verify-{secrets.token_hex(4)}"
    label, marker = runner.name, secrets.token_hex(8)
    targets = [f"{runner.address}:22", "127.0.0.1:22", way_to_gitea(site)]
    forge.ask("POST", "/orgs", {"username": owner, "visibility": "private"})
    try:
        forge.ask("POST", f"/orgs/{owner}/repos", {"name": "work", "private": True, "default_branch": "main"})
        found = Pushed(forge, f"/repos/{owner}/work", marker, label)
        values = {"branch": "main", "label": label, "marker": marker, "targets": " ".join(targets)}
        values |= {"half": canary[:20], "other": canary[20:], "project": smallest_wheel(site).split("-")[0]}
        workflows = {"work": WORK, "fails": FAILS, "hostile": HOSTILE} | (
            {"installs": INSTALLS} if values["project"] else {}
        )
        files = {f".gitea/workflows/{name}.yaml": text.format(**values) for name, text in workflows.items()}
        found.push({"content.txt": "private-content\n", **files})
        yield found
    finally:
        forge.fetch("DELETE", f"/repos/{owner}/work")
        forge.fetch("DELETE", f"/orgs/{owner}")


@pytest.fixture(scope="module")
def jobs(site: Site, pushed: Pushed) -> dict[str, Any]:
    """The jobs of the first push, by name."""
    return pushed.ended("first", "second", "fails", "hostile", *(["installs"] if smallest_wheel(site) else []))


@pytest.fixture(scope="module")
def hostile(pushed: Pushed, jobs: dict[str, Any]) -> dict[str, str]:
    """What a job found that looked at everything that it could."""
    lines = [line.split("Z ", 1)[-1] for line in pushed.log(jobs["hostile"]).splitlines()]
    found = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith(("net ", " ")))
    found |= {line.rsplit(" ", 1)[0]: line.rsplit(" ", 1)[1] for line in lines if line.startswith("net ")}
    assert "user" in found, f"the job that looks at everything did not get to its end: {lines[-5:]}"
    return found


def test_workflow_runs_on_push(pushed: Pushed, jobs: dict[str, Any]) -> None:
    """A push to a private repository runs its workflow, which checks it out; status and log arrive."""
    assert jobs["first"]["conclusion"] == "success", (
        f"{jobs['first']['conclusion']}: {pushed.log(jobs['first'])[-900:]}"
    )
    assert "checked out" in pushed.log(jobs["first"]), pushed.log(jobs["first"])[-600:]


def test_artifact(pushed: Pushed, jobs: dict[str, Any]) -> None:
    """What a job uploads can be downloaded by a later job and by people."""
    said = pushed.log(jobs["second"])
    assert f"downloaded={pushed.marker}" in said, f"the later job: {said[-900:]}"
    found = pushed.forge.ask("GET", f"{pushed.path}/actions/artifacts")["artifacts"]
    assert [one["name"] for one in found] == ["result"], f"artifacts: {found}"
    packed = pushed.forge.fetch("GET", f"{pushed.path}/actions/artifacts/{found[0]['id']}/zip")
    content = zipfile.ZipFile(io.BytesIO(packed)).read("result.txt").decode().strip()
    assert content == pushed.marker, f"the artifact holds {content!r}, not {pushed.marker!r}"


def test_job_installs_packages(site: Site, pushed: Pushed, jobs: dict[str, Any]) -> None:
    """A job installs the platform's Python packages with pip, which is told nothing: neither an index nor a login."""
    wheel = smallest_wheel(site)
    if not wheel:
        raise DoesNotApply("no role of this site offers Python packages")
    said = pushed.log(jobs["installs"])
    assert f"installed={wheel.split('-')[1]}" in said, said[-900:]


def test_failing_step_fails_the_run(jobs: dict[str, Any]) -> None:
    """A step that fails makes its run fail."""
    assert jobs["fails"]["conclusion"] == "failure", f"it ended with {jobs['fails']['conclusion']}"


def test_cache_is_restored(pushed: Pushed, jobs: dict[str, Any]) -> None:
    """What one run caches, the next run of the same repository finds."""
    assert "hit=false kept=" in pushed.log(jobs["first"]), "there was a cache before the first run"
    text = WORK.format(branch="again", label=pushed.label, marker=pushed.marker)
    again = text.partition("  second:")[0].replace("first:", "again:")
    pushed.push({".gitea/workflows/again.yaml": again}, new_branch="again")
    found = pushed.log(pushed.ended("again")["again"])
    assert f"hit=true kept={pushed.marker}" in found, found[-900:]


@pytest.mark.parametrize(
    "what, wanted",
    [
        pytest.param("found", "", id="files"),
        pytest.param("shm", "0", id="shared-folders"),
        pytest.param("process", "no", id="arguments"),
        pytest.param("others", "0", id="processes"),
        pytest.param("daemon", "refused", id="environment-of-the-runner"),
        pytest.param("memory", "refused", id="memory-of-the-runner"),
        pytest.param("pipes", "0", id="configuration-of-the-runner"),
        pytest.param("token", "0", id="registration"),
        pytest.param("root", "", id="becoming-root"),
        pytest.param("writable", "", id="folders-of-others"),
    ],
)
def test_job_gets_at_nothing(hostile: dict[str, str], what: str, wanted: str) -> None:
    """A job cannot read secrets or the runner's credentials, see others' processes, become root, or write elsewhere."""
    assert hostile.get(what, "not said").strip() == wanted, f"a job that looked for {what} found: {hostile.get(what)}"


def test_job_has_no_capabilities(hostile: dict[str, str]) -> None:
    """A job has no capability and can never get one."""
    assert hostile["caps"] == "0000000000000000 nnp=1", f"capabilities of a job: {hostile['caps']}"


def test_job_reaches_only_what_it_may(hostile: dict[str, str], site: Site, runner: NodeHost) -> None:
    """A job reaches Gitea, and no other service of the node."""
    for address in (str(runner.address), "127.0.0.1"):
        assert runner.run(f"timeout 3 bash -c 'exec 3<>/dev/tcp/{address}/22'").rc == 0, (
            "sshd does not even answer root"
        )
        assert hostile[f"net {address}:22"] == "shut", f"{runner.name}: a job reaches {address}:22"
    assert hostile[f"net {way_to_gitea(site)}"] == "open", f"{runner.name}: a job cannot reach Gitea"


def test_job_leaves_nothing(hostile: dict[str, str], runner: NodeHost, pushed: Pushed) -> None:
    """When a job has ended, no file and no process of it is left on the node."""
    left = runner.lines(
        f"find / -xdev -name '*left-{pushed.marker}*' -not -path '/proc/*' 2>/dev/null; find /dev/shm -name '*left-*'"
    )
    assert not left, f"{runner.name}: {', '.join(left)}"
    processes = runner.lines(f"pgrep -a -u {hostile['user']} sleep || true")
    assert not processes, f"{runner.name}: {', '.join(processes)}"


def test_registration_is_for_one_job(forge: NodeApi, jobs: dict[str, Any], settings: Settings, site: Site) -> None:
    """Every slot waits with a registration of its own that is good for one job."""
    slots = {f"{node.name}-{slot}" for node in settings.hosts(site) for slot in settings.slots}
    known: dict[str, bool] = {}

    def all_known() -> bool:
        # Between two jobs a slot has none, and other people's jobs go on meanwhile.
        found = forge.listed("/admin/actions/runners", "runners")
        known.update({one["name"]: bool(one.get("ephemeral")) for one in found if one["status"] == "online"})
        return slots <= known.keys()

    assert until(all_known, 60, every=1), f"no runner asks for jobs at: {', '.join(sorted(slots - known.keys()))}"
    lasting = sorted(name for name in slots if not known[name])
    assert not lasting, f"runners that take more than one job: {', '.join(lasting)}"


def test_slots_are_users_of_their_own(runner: NodeHost, settings: Settings) -> None:
    """Each slot runs as an account of its own, and the cache as another, none of them root."""
    units = [f"onprem-gitea-runner@{slot}.service" for slot in settings.slots]
    users = [runner.check_output(f"systemctl show -P User {unit}").strip() for unit in (*units, "onprem-gitea-cache")]
    assert len(set(users)) == len(users) and not {"", "root"} & set(users), f"{runner.name}: accounts {users}"


def test_cache_is_closed_to_strangers(runner: NodeHost, settings: Settings) -> None:
    """The cache answers jobs only, and on the node's loopback only."""
    base = f"http://127.0.0.1:{settings.cache_port}"
    for path, method in (("/_apis/artifactcache/cache?keys=a&version=b", "GET"), ("/_internal/register", "POST")):
        said = runner.run(f"curl -s -o /dev/null -w '%{{http_code}}' --max-time 10 -X {method} '{base}{path}'").stdout
        assert said == "401", f"{runner.name}: {method} {path} without a job's token answers {said}"
    assert runner.run(f"curl -s --max-time 3 http://{runner.address}:{settings.cache_port}/").rc != 0, (
        f"{runner.name}: the cache answers at the node's address"
    )


def test_secrets_are_private(runner: NodeHost) -> None:
    """What holds a secret of the runner can be read by root only, the cache's configuration by the cache only."""
    said = runner.lines(
        "stat -c '%n %a %U' /etc/onprem-gitea-runner/registration-token /etc/onprem-gitea-runner/runner.yaml "
        "/etc/onprem-gitea-runner/cache.yaml /var/lib/onprem-gitea-runner/registrations/*"
    )
    wrong = [line for line in said if line.split()[1:] not in (["600", "root"], ["400", "onprem-gitea-cache"])]
    assert said and not wrong, f"{runner.name}: {'; '.join(wrong) or 'no files'}"
