"""The object store under faults: killed while it is written to, its node without power, a drive lost.

What counts is what the client counted: every object whose writing was acknowledged is there, whole.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError
from ruamel.yaml import YAML

from onprem_mlops import lab
from onprem_mlops.site import load_site
from roles.object_store.settings import VERIFIER
from roles.object_store.verify.clients import opened
from tests.lab.clients import Writer, writing
from tests.lab.sites import TestSite, made

pytestmark = pytest.mark.lab

ROLES = ("node", "firewall", "mirror", "object_store")
DRIVES = tuple(f"/srv/objects/{number}" for number in range(4))
BUCKET = "verify-faults"
PART = 5 << 20
"""Bytes of the smallest part of a multipart upload but the last."""
KILLS = 3


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestSite]:
    """One node with four drives."""
    with made("lab", "t-objects", tmp_path_factory.mktemp("site"), roles=ROLES, booted=False) as site:
        yaml = YAML()
        file = site.folder / "site.yaml"
        written = yaml.load(file)
        written["nodes"] = [node for node in written["nodes"] if "services" in node["groups"]]
        written["settings"]["object_store"] = {"drives": list(DRIVES), "drives_on_system_disk": True}
        yaml.dump(written, file)
        site.run("lab", "up", "--nodes-only").must()
        site.run("deploy", "infrastructure").must()
        yield site


@pytest.fixture(scope="module")
def node(site: TestSite) -> str:
    """The node's name."""
    return load_site(site.folder).nodes[0].name


@pytest.fixture(scope="module")
def s3(site: TestSite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of the object store, and a bucket for these tests."""
    loaded = load_site(site.folder)
    settings: Any = loaded.settings("object_store")
    with opened(loaded, settings, settings.internal_endpoint(loaded), tmp_path_factory.mktemp("authority")) as store:
        client = store.client(VERIFIER)
        client.create_bucket(Bucket=BUCKET)
        yield client


def _body(key: str, size: int) -> bytes:
    """Content that only this key has."""
    block = hashlib.sha256(key.encode()).digest()
    return (block * (size // len(block) + 1))[:size]


def _whole(s3: Any, size: int) -> Callable[[str], bool]:
    def whole(key: str) -> bool:
        body: bytes = s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return body == _body(key, size)

    return whole


def _keys(s3: Any, prefix: str) -> list[str]:
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    return [one["Key"] for page in pages for one in page.get("Contents", ())]


def _writer(s3: Any, name: str, size: int) -> Writer:
    """Writes objects of one size: what is small lies with its metadata, what is large in files of its own."""
    whole = _whole(s3, size)

    def write(number: int) -> None:
        key = f"{name}/{number}"
        s3.put_object(Bucket=BUCKET, Key=key, Body=_body(key, size))

    def read() -> set[int]:
        return {int(key.rpartition("/")[2]) for key in _keys(s3, f"{name}/") if whole(key)}

    return Writer(name, write, read)


def _in_parts(s3: Any) -> Writer:
    """Writes objects in two parts."""

    def write(number: int) -> None:
        key = f"parts/{number}"
        upload = s3.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
        halves = (_body(key, PART + 1000)[:PART], _body(key, PART + 1000)[PART:])
        parts = [_part(s3, key, upload, at, half) for at, half in enumerate(halves, 1)]
        s3.complete_multipart_upload(Bucket=BUCKET, Key=key, UploadId=upload, MultipartUpload={"Parts": parts})

    def read() -> set[int]:
        whole = _whole(s3, PART + 1000)
        return {int(key.rpartition("/")[2]) for key in _keys(s3, "parts/") if whole(key)}

    return Writer("parts", write, read)


def _part(s3: Any, key: str, upload: str, number: int, body: bytes) -> dict[str, Any]:
    answer = s3.upload_part(Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=number, Body=body)
    return {"PartNumber": number, "ETag": answer["ETag"]}


def _kill(site: TestSite, node: str) -> None:
    site.on(node, "systemctl kill --signal=KILL onprem-minio.service")


def _until_it_answers(s3: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            s3.head_bucket(Bucket=BUCKET)
        except (BotoCoreError, ClientError):
            # Whatever is refused while it starts: it must end in time.
            assert time.monotonic() < end, f"the object store does not answer after {seconds} s"
            time.sleep(0.2)
        else:
            return


def test_nothing_acknowledged_is_lost_when_it_is_killed(site: TestSite, node: str, s3: Any) -> None:
    writers = [_writer(s3, "small", 2_000), _writer(s3, "large", 1_000_000), _in_parts(s3)]
    with writing(writers):
        for _ in range(KILLS):
            time.sleep(3)
            _kill(site, node)
        # It comes back by itself, and is written to again.
        _until_it_answers(s3)
        time.sleep(2)
    assert int(site.on(node, "systemctl show -P NRestarts onprem-minio.service")) >= KILLS
    for writer in writers:
        assert writer.refused, f"{writer.name}: no kill was felt"
        assert len(writer.acknowledged) > 3, f"{writer.name}: hardly anything was written"
        lost = writer.acknowledged - writer.read()
        assert not lost, f"{writer.name}: {len(lost)} of {len(writer.acknowledged)} acknowledged objects are lost"


def test_an_upload_goes_on_where_a_kill_cut_it_off(site: TestSite, node: str, s3: Any) -> None:
    key = "resumed"
    body = _body(key, PART + 1000)
    upload = s3.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
    first = _part(s3, key, upload, 1, body[:PART])
    _kill(site, node)
    _until_it_answers(s3)
    parts = s3.list_parts(Bucket=BUCKET, Key=key, UploadId=upload)["Parts"]
    assert [one["ETag"] for one in parts] == [first["ETag"]], "the part that was acknowledged is lost"
    second = _part(s3, key, upload, 2, body[PART:])
    s3.complete_multipart_upload(Bucket=BUCKET, Key=key, UploadId=upload, MultipartUpload={"Parts": [first, second]})
    assert _whole(s3, PART + 1000)(key)


def test_objects_outlast_a_lost_drive_and_a_node_without_power(site: TestSite, node: str, s3: Any) -> None:
    keys = [f"kept/{number}" for number in range(30)]
    for key in keys:
        s3.put_object(Bucket=BUCKET, Key=key, Body=_body(key, 300_000))
    whole = _whole(s3, 300_000)
    lost, other = DRIVES[1], DRIVES[3]
    _lose(site, node, lost)
    assert all(map(whole, keys)), "objects are lost with one drive of four"
    s3.put_object(Bucket=BUCKET, Key="kept/written-without", Body=b"content")
    found = site.json("verify", "infrastructure", "--role", "object_store", code=1)
    failed = [one for one in found["checks"] if one["outcome"] == "failed"]
    # It is named, and everything that clients do goes on.
    assert len(failed) == 1 and failed[0]["message"].startswith(f"{lost}: "), failed
    lab.power_cut(site.spec, node)
    lab.start(site.spec, node, lambda message, node: None)
    _until_it_answers(s3)
    assert all(map(whole, keys)), "objects are lost with one drive of four and the node's power"
    # The deploy gives the new drive to the server, which fills it from the others.
    site.run("deploy", "infrastructure", "--role", "object_store").must()
    _until_mended(site, node, lost, len(keys))
    _lose(site, node, other)
    assert all(map(whole, keys)), "what was mended is not enough to read from"


def _lose(site: TestSite, node: str, drive: str) -> None:
    # At once, as a disk goes: the server writes while it is removed.
    site.on(node, f"mv {drive} {drive}.lost && rm -rf {drive}.lost")


def _until_mended(site: TestSite, node: str, drive: str, count: int, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while int(site.on(node, f"find {drive}/{BUCKET}/kept -name xl.meta | wc -l")) <= count:
        assert time.monotonic() < end, f"{drive} is not filled after {seconds} s"
        time.sleep(1)
