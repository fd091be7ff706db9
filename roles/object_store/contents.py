"""What is in the object store: buckets, users and their rights. All is read at once; only what differs is changed."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from onprem_mlops.engine.facts import probe
from onprem_mlops.engine.operations import shell
from onprem_mlops.errors import MlopsError
from onprem_mlops.site import Hidden
from roles.object_store.settings import METRICS, RESERVED, VERIFIER, Bucket, DataClass, User

_POLICY = re.compile(r"(?P<user>[a-z][a-z0-9-]*)\.[0-9a-f]{12}")
"""Name of a policy of ours: the user's, and the checksum of what it says. Another content is thus another name."""

_NO_ENTRY = "SignatureDoesNotMatch|InvalidAccessKeyId|does not match|does not exist in our records|disabled"
"""What a user hears who is not let in. One without a right to anything is let in, and hears something else."""


@dataclass
class State:
    """What the object store holds of what the site wants, as its client tells it."""

    buckets: dict[str, dict[str, Any]] = field(default_factory=dict)
    quotas: dict[str, int] = field(default_factory=dict)
    users: dict[str, dict[str, Any]] = field(default_factory=dict)
    shut_out: set[str] = field(default_factory=set)
    """Users that are not let in with the secret that they should have."""


def state(mc: str, buckets: tuple[str, ...], users: tuple[str, ...]) -> State:
    """Read it, in one round trip; empty if the object store does not answer.

    Args:
        mc: the command of its client, which knows the administrator as `site` and each user by its name.
        buckets: names of those that are wanted.
        users: the same.
    """
    at = " ".join(f"site/{name}" for name in buckets) or "site/"
    script = (
        f"{mc} admin user ls site || exit 1; "
        # Asked together: each start of the client costs more than all its questions. It gives up at the first bucket
        # that is not there.
        f"{mc} stat {at} || for at in {at}; do {mc} stat $at; done; "
        f"for at in {at}; do {mc} quota info $at; done; "
        f"for user in {' '.join(users)}; do {mc} ls $user/ 2>&1 | grep -qE '{_NO_ENTRY}' "
        '&& printf \'{"shut_out": "%s"}\\n\' $user; done; true'
    )
    found = State()
    for one in _objects(probe(script).text):
        _note(found, one)
    return found


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a text, which may be written over several lines."""
    decoder, at = json.JSONDecoder(), 0
    while (at := text.find("{", at)) >= 0:
        one, at = decoder.raw_decode(text, at)
        yield one


def _note(found: State, one: dict[str, Any]) -> None:
    if "shut_out" in one:
        found.shut_out.add(one["shut_out"])
    elif one.get("status") != "success":
        return
    elif "accessKey" in one:
        found.users[one["accessKey"]] = one
    elif "Versioning" in one:
        found.buckets[one["name"].strip("/")] = one
    elif "quota" in one:
        found.quotas[one["bucket"].strip("/")] = one["quota"]


def bucket(mc: str, name: str, wanted: Bucket, kept: DataClass, found: State) -> None:
    """A bucket with its versions, lock, quota and rules. One that has no lock and should have is an error."""
    now = found.buckets.get(name)
    at = f"site/{name}"
    locked = kept.lock_days is not None
    if now is not None and locked and _lock(now) is None:
        raise MlopsError(
            f"bucket {name} was made without a lock, which a bucket cannot get later",
            f"Give it another name or another class in settings.object_store.buckets.{name}, and copy its objects.",
        )
    shell.run(f"bucket {name}", f"{mc} mb {'--with-lock ' if locked else ''}{at}", unless=now is not None)
    now = now or {}
    versions = kept.versioning or locked
    verb = "enable" if versions else "suspend"
    # A bucket that never had versions is as good as one whose versions are suspended.
    shell.run(
        f"versions in {name}: {'kept' if versions else 'not kept'}",
        f"{mc} version {verb} {at}",
        unless=(now.get("Versioning", {}).get("status") == "Enabled") == versions,
    )
    if locked:
        shell.run(
            f"{name} is locked for {kept.lock_days} days",
            f"{mc} retention set --default governance {kept.lock_days}d {at}",
            unless=_lock(now) == ("GOVERNANCE", f"{kept.lock_days}DAYS"),
        )
    # Rights are users' own; a policy of the bucket itself, which may let in everybody, is nothing that the site knows.
    shell.run(
        f"{name} has no policy of its own",
        f"{mc} anonymous set none {at}",
        unless=(now.get("Policy") or {}).get("type", "none") == "none",
    )
    quota = f"set {at} --size {wanted.quota}B" if wanted.quota else f"clear {at}"
    shell.run(f"quota of {name}", f"{mc} quota {quota}", unless=found.quotas.get(name, 0) == (wanted.quota or 0))
    _rules(mc, name, kept, now)


def _lock(now: Mapping[str, Any]) -> tuple[str, str] | None:
    """How long, and how strictly, a bucket's versions are locked; None if it has no lock at all."""
    lock = now.get("ObjectLock") or {}
    return (lock.get("mode", ""), lock.get("validity", "")) if lock.get("enabled") == "Enabled" else None


def _rules(mc: str, name: str, kept: DataClass, now: Mapping[str, Any]) -> None:
    rules: list[dict[str, Any]] = []
    if kept.expire_days:
        rules.append({"ID": "objects", "Status": "Enabled", "Expiration": {"Days": kept.expire_days}})
    if kept.expire_old_versions_days:
        days = {"NoncurrentDays": kept.expire_old_versions_days}
        rules.append({"ID": "old-versions", "Status": "Enabled", "NoncurrentVersionExpiration": days})
    done = _summary(rules) == _summary(((now.get("ilm") or {}).get("config") or {}).get("Rules") or [])
    at = f"site/{name}"
    if rules:
        shell.run(
            f"how long {name} keeps what", f"{mc} ilm rule import {at}", stdin=json.dumps({"Rules": rules}), unless=done
        )
    else:
        shell.run(f"{name} keeps everything", f"{mc} ilm rule rm --all --force {at}", unless=done)


def _summary(rules: list[dict[str, Any]]) -> set[tuple[str, str, int, int]]:
    """What matters of rules of expiry: their other fields the server fills with what it likes."""
    return {
        (
            rule["ID"],
            rule["Status"],
            (rule.get("Expiration") or {}).get("Days", 0),
            (rule.get("NoncurrentVersionExpiration") or {}).get("NoncurrentDays", 0),
        )
        for rule in rules
    }


def user(mc: str, name: str, secret: Hidden, policy: str, found: State) -> None:
    """A user with its secret key, and exactly the rights that `policy` (JSON) gives."""
    now = found.users.get(name)
    let_in = now is not None and now.get("userStatus") == "enabled" and name not in found.shut_out
    # Also who was switched off is let in again by this.
    shell.run(
        f"user {name} with its secret",
        f"{mc} admin user add site",
        stdin=f"{name}\n{secret.reveal()}\n",
        unless=let_in,
    )
    called = f"{name}.{hashlib.sha256(policy.encode()).hexdigest()[:12]}"
    held = [one for one in str((now or {}).get("policyName", "")).split(",") if one]
    others = [one for one in held if one != called]
    shell.run(
        f"rights of {name}",
        f"{mc} admin policy create site {called} /dev/stdin && "
        + (f"{mc} admin policy attach site {called} --user {name} && " if called not in held else "")
        + "".join(f"{mc} admin policy detach site {shlex.quote(one)} --user {name} && " for one in others)
        + "true",
        stdin=policy,
        unless=held == [called],
    )


def rights(name: str, user: User) -> str:
    """A user's policy, as JSON."""
    statements = []
    if name == VERIFIER:
        statements = [_allow(("s3:*",), f"{RESERVED}*", f"{RESERVED}*/*")]
    elif name == METRICS:
        statements = [{"Effect": "Allow", "Action": ["admin:Prometheus"], "Resource": ["arn:aws:s3:::*"]}]
    elif seen := sorted({*user.read, *user.write}):
        statements = [
            _allow(_LOOK, *seen),
            _allow(_READ, *(f"{one}/*" for one in seen)),
        ]
    if user.write:
        statements.append(_allow(("s3:ListBucketMultipartUploads",), *user.write))
        statements.append(_allow(_WRITE, *(f"{one}/*" for one in user.write)))
    # A user without any rights has a policy, too: by it the next deploy knows the user for ours.
    return json.dumps({"Version": "2012-10-17", "Statement": statements or [_NOTHING]})


_LOOK = ("s3:ListBucket", "s3:ListBucketVersions", "s3:GetBucketLocation", "s3:GetBucketVersioning")
_READ = ("s3:GetObject", "s3:GetObjectVersion", "s3:GetObjectTagging")
_WRITE = (
    "s3:PutObject",
    "s3:PutObjectTagging",
    "s3:DeleteObject",
    "s3:AbortMultipartUpload",
    "s3:ListMultipartUploadParts",
)
"""Not s3:DeleteObjectVersion: what a class keeps of deleted objects is kept from its own users, too."""
_NOTHING = {"Effect": "Deny", "Action": ["s3:*"], "Resource": ["arn:aws:s3:::*"]}


def _allow(actions: tuple[str, ...], *resources: str) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": list(actions), "Resource": [f"arn:aws:s3:::{one}" for one in resources]}


def no_others(mc: str, names: tuple[str, ...], found: State) -> None:
    """Users that this role made and the site names no longer are gone; one that a person made stays."""
    for name, now in found.users.items():
        policies = str(now.get("policyName", "")).split(",")
        ours = any((match := _POLICY.fullmatch(one)) and match["user"] == name for one in policies)
        if name not in names and ours:
            shell.run(f"no user {name}", f"{mc} admin user rm site {shlex.quote(name)}", unless=False)
