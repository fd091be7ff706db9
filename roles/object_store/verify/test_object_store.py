"""The object store that this role lays down: its nodes, its drives, and who may do what with the site's buckets."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from botocore.exceptions import ClientError

from onprem_mlops.site import Secrets
from onprem_mlops.verify.suite import (
    Controller,
    DoesNotApply,
    NodeHost,
    Nodes,
    Site,
    assert_certificate,
    assert_old_tls_is_refused,
    listeners,
)
from roles.object_store.settings import ADMINISTRATOR, METRICS, STRANGER, VERIFIER, Settings
from roles.object_store.verify.clients import Store, emptied, opened, refusal

LEAST_FREE = 0.1
"""Part of a drive that must be free: MinIO writes nothing to a drive that is nearly full."""

MC = "mc --config-dir /etc/onprem-minio/client --json"

GUESSES = {"minioadmin": "minioadmin", ADMINISTRATOR: "minioadmin", "minio": "minio123", "admin": "password"}
"""Names and secrets that everybody knows from handbooks."""


@pytest.fixture(scope="module")
def hosts(site: Site, settings: Settings, nodes: Nodes) -> list[NodeHost]:
    """The nodes that keep objects."""
    found = [nodes[host.name] for host in settings.hosts(site)]
    if not found:
        raise DoesNotApply("the objects are in a company's own S3")
    return found


@pytest.fixture(scope="module")
def store(
    site: Site, settings: Settings, hosts: list[NodeHost], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Store]:
    """The object store itself, without a gateway before it."""
    url = settings.internal_endpoint(site)
    with opened(site, settings, url, tmp_path_factory.mktemp("authority")) as store:
        yield store


@pytest.fixture(scope="module")
def administrator(site: Site, store: Store) -> Any:
    """Who may do everything."""
    return store.client(ADMINISTRATOR, Secrets.of(site).get("object_store", "root_password").reveal())


@pytest.fixture
def bucket(store: Store, administrator: Any) -> Iterator[str]:
    """A fresh bucket, gone at the end with all that is in it."""
    name = f"verify-{secrets.token_hex(6)}"
    store.client(VERIFIER).create_bucket(Bucket=name)
    try:
        yield name
    finally:
        emptied(administrator, name)


# The nodes


def test_certificate(site: Site, settings: Settings, controller: Controller, hosts: list[NodeHost]) -> None:
    """The object store's certificates are signed by the site's authority, have its names, and are good for weeks.

    `./mlops deploy --role object_store` renews a certificate that is due.
    """
    for host in hosts:
        names = (site.full_name(host.site_node), settings.internal_name(site), settings.name(site))
        assert_certificate(controller, host, settings.port, *names)


def test_old_tls_is_refused(site: Site, settings: Settings, controller: Controller, hosts: list[NodeHost]) -> None:
    """TLS 1.1 and older is refused by the object store."""
    for host in hosts:
        assert_old_tls_is_refused(controller, host, settings.port, site.full_name(host.site_node))


def test_service_is_a_user_of_its_own(settings: Settings, hosts: list[NodeHost]) -> None:
    """The object store runs as an account of its own that holds no privileges and cannot become another one."""
    for host in hosts:
        found = [one for one in listeners(host) if one.port == settings.port and one.protocol == "tcp"]
        assert found, f"{host.name}: nobody listens on {settings.port}"
        pid = str(found[0].pid)
        status = dict(line.split(":", 1) for line in host.lines("cat /proc/%s/status", pid) if ":" in line)
        user = host.check_output("stat -c %%U /proc/%s", pid).strip()
        others = set(host.lines("pgrep -u %s", user)) - {pid}
        assert user != "root", f"{host.name}: the object store runs as root"
        assert not others, f"{host.name}: account {user} also runs {', '.join(sorted(others))}"
        assert int(status["CapEff"], 16) == 0, f"{host.name}: it has capabilities {status['CapEff'].strip()}"
        assert status["NoNewPrivs"].strip() == "1", f"{host.name}: it may take on privileges"


def test_secrets_are_private(site: Site, settings: Settings, hosts: list[NodeHost]) -> None:
    """Every file that holds a secret of the object store is read by root or by one service's account only."""
    known = Secrets.of(site)
    values = [known.get("object_store", name).reveal() for name in ("root_password", "encryption_key", "audit_token")]
    values += [known.get(*settings.secret_of_user(site, user)).reveal() for user in settings.all_users(site)]
    for host in hosts:
        said = host.feed("cd / && grep -rlFf - /etc 2>/dev/null", "\n".join(values) + "\n")
        found = said.stdout.splitlines()
        assert found, f"{host.name}: no file in /etc holds a secret, not even the service's own"
        states = host.lines("stat -c '%%a %%U %%n' " + " ".join(["%s"] * len(found)), *found)
        wrong = [one for one in states if one.split()[0] not in ("600", "400")]
        assert not wrong, f"{host.name}: {'; '.join(wrong)}"
        key = host.check_output("stat -c '%a %U' /etc/onprem-minio/certs/private.key")
        assert key == "400 onprem-minio", f"{host.name}: the private key of its certificate is {key}"


def test_secrets_are_not_on_command_lines(site: Site, hosts: list[NodeHost]) -> None:
    """No secret of the object store stands on a command line."""
    values = [Secrets.of(site).get("object_store", name).reveal() for name in ("root_password", "encryption_key")]
    for host in hosts:
        shown = host.check_output("ps -eo args=")
        assert "minio" in shown, f"{host.name}: ps does not even show the server"
        assert not any(value in shown for value in values), f"{host.name}: a secret is on a command line"


# Drives


def test_drives_are_there(hosts: list[NodeHost]) -> None:
    """Every drive of the object store is there and takes part.

    Replace the disk, mount it at the same place, `./mlops deploy --role object_store`; what it held is mended from the
    others.
    """
    said = hosts[0].check_output(f"{MC} admin info site")
    servers = json.loads(said)["info"]["servers"]
    lost = [
        f"{drive.get('endpoint')}: {drive.get('state')}{', being mended' if drive.get('healing') else ''}"
        for server in servers
        for drive in server.get("drives") or ()
        if drive.get("state") != "ok" or drive.get("healing")
    ]
    off = [f"{server['endpoint']}: {server['state']}" for server in servers if server["state"] != "online"]
    assert not lost and not off, "; ".join(lost + off)


def test_drives_have_room(settings: Settings, hosts: list[NodeHost]) -> None:
    """No drive of the object store is nearly full, in bytes or in files.

    Let old objects go (a class with `expire_days`), or move to larger drives.
    """
    for host in hosts:
        for drive in settings.drives:
            for what, column in (("bytes", "pcent"), ("files", "ipcent")):
                used = host.check_output(f"df --output={column} %s | tail -1 | tr -d ' %%'", drive)
                full = used.isdigit() and int(used) > 100 * (1 - LEAST_FREE)
                assert not full, f"{host.name}: {drive}: {used} % of its {what} are used"


def test_objects_are_encrypted(store: Store, settings: Settings, hosts: list[NodeHost], bucket: str) -> None:
    """What is written to the drives cannot be read there: every object is encrypted."""
    marker = secrets.token_hex(24)
    s3 = store.client(VERIFIER)
    for key, body in (("small", marker), ("large", marker * 50_000)):
        s3.put_object(Bucket=bucket, Key=key, Body=body.encode())
        told = s3.head_object(Bucket=bucket, Key=key).get("ServerSideEncryption")
        assert told in ("AES256", "aws:kms"), f"{key}: it says to be encrypted with {told}"
    written = readable = 0
    for host in hosts:
        for drive in settings.drives:
            written += len(host.run("find %s -type f", f"{drive}/{bucket}").stdout.splitlines())
            readable += host.run("grep -rqF %s %s", marker, f"{drive}/{bucket}").rc == 0
    assert written >= 2, "the objects are not on the drives, so nothing was looked at"
    assert not readable, f"the content can be read on {readable} drives"


# Who may do what


@pytest.mark.parametrize("user", GUESSES)
def test_no_default_password(store: Store, user: str) -> None:
    """Names and passwords from handbooks do not get in."""
    status, code = refusal(lambda: store.client(user, GUESSES[user]).list_buckets())
    assert status == 403 and code in ("InvalidAccessKeyId", "SignatureDoesNotMatch"), f"{user}: {status} {code}"


def test_buckets_are_as_declared(site: Site, settings: Settings, administrator: Any) -> None:
    """Every bucket is there with the versions, the lock and the rules of its class.

    `./mlops deploy --role object_store` makes what is missing, and mends what was changed by hand.
    """
    wanted = settings.all_buckets(site)
    there = {one["Name"] for one in administrator.list_buckets()["Buckets"]}
    assert set(wanted) <= there, f"missing: {', '.join(sorted(set(wanted) - there))}"
    for name, bucket in wanted.items():
        kept = settings.classes[bucket.data_class]
        versions = administrator.get_bucket_versioning(Bucket=name).get("Status") == "Enabled"
        assert versions == (kept.versioning or kept.lock_days is not None), f"{name}: versions are kept: {versions}"
        assert _lock_days(administrator, name) == kept.lock_days, f"{name}: locked for {kept.lock_days} days it is not"
        days = (kept.expire_days, kept.expire_old_versions_days)
        assert _expiry(administrator, name) == days, f"{name}: objects and old versions do not go after {days} days"


def _lock_days(s3: Any, bucket: str) -> int | None:
    try:
        lock = s3.get_object_lock_configuration(Bucket=bucket)["ObjectLockConfiguration"]
    except ClientError as error:
        assert error.response["Error"]["Code"] == "ObjectLockConfigurationNotFoundError", f"{bucket}: {error}"
        return None
    days: int = lock["Rule"]["DefaultRetention"]["Days"]
    return days


def _expiry(s3: Any, bucket: str) -> tuple[int | None, int | None]:
    try:
        rules = s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    except ClientError as error:
        assert error.response["Error"]["Code"] == "NoSuchLifecycleConfiguration", f"{bucket}: {error}"
        return None, None
    rules = [one for one in rules if one["Status"] == "Enabled"]
    objects = [one["Expiration"]["Days"] for one in rules if "Expiration" in one]
    old = "NoncurrentVersionExpiration"
    versions = [one[old]["NoncurrentDays"] for one in rules if old in one]
    return (objects or [None])[0], (versions or [None])[0]


def test_users_reach_their_own_buckets_only(site: Site, settings: Settings, store: Store) -> None:
    """Every user lists and writes the buckets that the site file gives, and no others.

    `./mlops deploy --role object_store` gives each user its rights again, and takes others away.
    """
    buckets = settings.all_buckets(site)
    for user, rights in {**settings.all_users(site), STRANGER: None, METRICS: None}.items():
        s3 = store.client(user)
        write = set(rights.write) if rights else set()
        read = write | set(rights.read) if rights else set()
        for bucket in buckets:
            _listing(s3, user, bucket, bucket in read)
            _writing(s3, user, bucket, bucket in write)


def _listing(s3: Any, user: str, bucket: str, may: bool) -> None:
    try:
        s3.list_objects_v2(Bucket=bucket, MaxKeys=1)
    except ClientError as error:
        assert not may and error.response["Error"]["Code"] == "AccessDenied", f"{user}: {bucket}: {error}"
    else:
        assert may, f"{user} lists {bucket}, to which it has no right"


def _writing(s3: Any, user: str, bucket: str, may: bool) -> None:
    """Begin an upload in parts and give it up: it needs the right to write, and leaves nothing."""
    key = f"verify-{secrets.token_hex(6)}"
    try:
        upload = s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    except ClientError as error:
        assert not may and error.response["Error"]["Code"] == "AccessDenied", f"{user}: {bucket}: {error}"
        return
    s3.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)
    assert may, f"{user} writes to {bucket}, to which it has no right"


def test_nothing_is_public(site: Site, settings: Settings, store: Store) -> None:
    """No bucket answers somebody who has no key."""
    client = store.anonymous()
    for bucket in settings.all_buckets(site):
        listed = partial(client.list_objects_v2, Bucket=bucket)
        status, code = refusal(listed, f"{bucket}: a list that somebody without a key asked for")
        assert (status, code) == (403, "AccessDenied"), f"{bucket}: answered with {status} {code}"


def test_quota(hosts: list[NodeHost], store: Store, bucket: str) -> None:
    """A bucket with a quota refuses what is larger than that, and takes what is smaller."""
    hosts[0].check_output(f"{MC} quota set %s --size 1MiB", f"site/{bucket}")
    s3 = store.client(VERIFIER)
    s3.put_object(Bucket=bucket, Key="small", Body=b"x" * 1000)
    status, code = refusal(lambda: s3.put_object(Bucket=bucket, Key="large", Body=b"x" * (2 << 20)))
    assert code == "XMinioAdminBucketQuotaExceeded", f"refused with {status} {code}"
    found = [one["Key"] for one in s3.list_objects_v2(Bucket=bucket)["Contents"]]
    assert found == ["small"], f"there is {', '.join(found)}"


# What is written down and counted


def test_audit_log(hosts: list[NodeHost], store: Store, bucket: str) -> None:
    """Who did what to which object, allowed or refused, stands in the journal of the node within seconds."""
    key = f"object-{secrets.token_hex(6)}"
    store.client(VERIFIER).put_object(Bucket=bucket, Key=key, Body=b"content")
    refusal(lambda: store.client(STRANGER).get_object(Bucket=bucket, Key=key))
    wanted = {(VERIFIER, "PutObject", 200), (STRANGER, "GetObject", 403)}
    found: set[tuple[str, str, int]] = set()
    text = ""
    end = time.monotonic() + 15
    while not wanted <= found and time.monotonic() < end:
        time.sleep(0.5)
        text = "\n".join(
            host.run("journalctl -q -o cat --since -2min -u onprem-minio-audit | grep -F %s", key).stdout
            for host in hosts
        )
        lines = [json.loads(line) for line in text.splitlines() if line]
        found = {(one["user"], one["call"], one["status"]) for one in lines if one.get("bucket") == bucket}
    assert wanted <= found, f"in the journal: {sorted(found)}"
    assert "Signature" not in text and "AWS4-HMAC" not in text, "a request's signature is in the journal"


def _token(site: Site, user: str) -> str:
    """What a user shows to read metrics: a JSON Web Token, signed with its secret key."""
    key = Secrets.of(site).get("object_store", f"user_{user}").reveal().encode()
    claims = {"exp": int(time.time()) + 60, "sub": user, "iss": "prometheus"}
    parts = [base64.urlsafe_b64encode(json.dumps(one).encode()).rstrip(b"=") for one in ({"alg": "HS512"}, claims)]
    signature = hmac.new(key, b".".join(parts), hashlib.sha512).digest()
    return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


def test_metrics(site: Site, settings: Settings, controller: Controller, hosts: list[NodeHost]) -> None:
    """Metrics are told to who has the token for them, and to nobody else."""
    url = f"{settings.internal_endpoint(site)}/minio/v2/metrics/cluster"
    answer = controller.get(url, authorization=f"Bearer {_token(site, METRICS)}")
    assert answer.status == 200 and "minio_cluster_drive_online_total" in answer.text, f"HTTP {answer.status}"
    for who, headers in (("nobody", {}), (STRANGER, {"authorization": f"Bearer {_token(site, STRANGER)}"})):
        answer = controller.get(url, **headers)
        assert answer.status == 403, f"{who}: HTTP {answer.status}"


def test_health(site: Site, settings: Settings, controller: Controller, hosts: list[NodeHost]) -> None:
    """The object store says of itself that it is alive and can write."""
    for host in hosts:
        for path in ("live", "cluster"):
            url = f"https://{site.full_name(host.site_node)}:{settings.port}/minio/health/{path}"
            status = controller.get(url).status
            assert status == 200, f"{url}: HTTP {status}"
