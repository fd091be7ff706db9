"""What the platform asks of any S3: MinIO as this role lays it down, or a company's own.

Made by a real client (boto3) as a user who may do anything with buckets `verify-…`, and as one who may do nothing.
Every check makes the objects it needs, in a bucket of its own that is gone at the end.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import secrets
import socket
import tarfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ClientError, SSLError

from onprem_mlops.verify.suite import DoesNotApply, Site
from roles.object_store.settings import STRANGER, VERIFIER, Settings
from roles.object_store.verify.clients import Store, emptied, opened, refusal

PART = 5 << 20
"""Bytes of the smallest part of a multipart upload but the last."""

MANY = 10_000
"""Objects in the bucket that is listed; they are made once and kept for the next verification."""
LISTED = "verify-many-objects"


@pytest.fixture(scope="module")
def store(site: Site, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The object store, where people and their programs reach it."""
    with opened(site, settings, settings.endpoint(site), tmp_path_factory.mktemp("authority")) as store:
        yield store


@pytest.fixture(scope="module")
def s3(store: Store) -> Any:
    """The client of the user who may do anything with buckets `verify-…`."""
    return store.client(VERIFIER)


@pytest.fixture(scope="module")
def stranger(store: Store) -> Any:
    """The client of the user who may do nothing."""
    return store.client(STRANGER)


@pytest.fixture
def bucket(s3: Any) -> Iterator[str]:
    """A fresh bucket, gone at the end with all that is in it."""
    name = f"verify-{secrets.token_hex(6)}"
    s3.create_bucket(Bucket=name)
    try:
        yield name
    finally:
        emptied(s3, name)


@pytest.fixture
def versioned(s3: Any, bucket: str) -> str:
    """A fresh bucket that keeps versions."""
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    return bucket


def _put(s3: Any, bucket: str, key: str, body: bytes = b"content", **more: Any) -> Any:
    return s3.put_object(Bucket=bucket, Key=key, Body=body, **more)


def _get(s3: Any, bucket: str, key: str, **more: Any) -> bytes:
    body: bytes = s3.get_object(Bucket=bucket, Key=key, **more)["Body"].read()
    return body


# Put, get, head, delete


def test_put_and_get(s3: Any, bucket: str) -> None:
    """What was put is what is got, bit by bit."""
    body = os.urandom(1 << 20)
    _put(s3, bucket, "object", body)
    assert _get(s3, bucket, "object") == body, "another content comes back"


def test_empty_object(s3: Any, bucket: str) -> None:
    """An object without content is one."""
    _put(s3, bucket, "empty", b"")
    head = s3.head_object(Bucket=bucket, Key="empty")
    assert head["ContentLength"] == 0, f"it has {head['ContentLength']} bytes"
    assert _get(s3, bucket, "empty") == b"", "it has content"


def test_overwrite(s3: Any, bucket: str) -> None:
    """A second put replaces the first."""
    _put(s3, bucket, "object", b"first")
    _put(s3, bucket, "object", b"second")
    assert _get(s3, bucket, "object") == b"second", "the first content comes back"


def test_etag_is_the_checksum(s3: Any, bucket: str) -> None:
    """The entity tag of a small object is its MD5, or the store says plainly that it is something else."""
    tag = _put(s3, bucket, "object", b"content")["ETag"].strip('"')
    head = s3.head_object(Bucket=bucket, Key="object")
    assert head["ETag"].strip('"') == tag, "head and put tell different tags"
    encrypted = "ServerSideEncryption" in head
    assert encrypted or tag == hashlib.md5(b"content", usedforsecurity=False).hexdigest(), f"the tag is {tag}"


def test_head(s3: Any, bucket: str) -> None:
    """Size, type and time of an object are told without its content."""
    _put(s3, bucket, "object", b"content", ContentType="text/plain")
    head = s3.head_object(Bucket=bucket, Key="object")
    assert (head["ContentLength"], head["ContentType"]) == (7, "text/plain"), f"told: {head}"
    age = abs((datetime.now(UTC) - head["LastModified"]).total_seconds())
    assert age < 60, f"it was changed {age:.0f} s ago by the store's clock"


def test_metadata(s3: Any, bucket: str) -> None:
    """Metadata of one's own comes back with the object."""
    _put(s3, bucket, "object", Metadata={"run": "a1", "team": "vision"})
    found = s3.head_object(Bucket=bucket, Key="object")["Metadata"]
    assert found == {"run": "a1", "team": "vision"}, f"metadata: {found}"


def test_headers_of_content(s3: Any, bucket: str) -> None:
    """Encoding, language, disposition and cache control are kept."""
    given: dict[str, Any] = {"ContentEncoding": "gzip", "ContentLanguage": "de", "CacheControl": "no-store"}
    given["ContentDisposition"] = 'attachment; filename="a.txt"'
    _put(s3, bucket, "object", **given)
    head = s3.head_object(Bucket=bucket, Key="object")
    wrong = {name: head.get(name) for name, value in given.items() if head.get(name) != value}
    assert not wrong, f"not kept: {wrong}"


def test_missing_object(s3: Any, bucket: str) -> None:
    """An object that is not there is not found."""
    found = refusal(lambda: _get(s3, bucket, "absent"))
    assert found == (404, "NoSuchKey"), f"refused with {found}"


def test_head_of_a_missing_object(s3: Any, bucket: str) -> None:
    """Nor is its head."""
    status, _ = refusal(lambda: s3.head_object(Bucket=bucket, Key="absent"))
    assert status == 404, f"refused with {status}"


def test_missing_bucket(s3: Any) -> None:
    """A bucket that is not there is not found."""
    found = refusal(lambda: _get(s3, f"verify-{secrets.token_hex(6)}", "object"))
    assert found == (404, "NoSuchBucket"), f"refused with {found}"


def test_delete(s3: Any, bucket: str) -> None:
    """A deleted object is gone."""
    _put(s3, bucket, "object")
    s3.delete_object(Bucket=bucket, Key="object")
    found = refusal(lambda: _get(s3, bucket, "object"))
    assert found == (404, "NoSuchKey"), f"refused with {found}"


def test_delete_of_nothing(s3: Any, bucket: str) -> None:
    """Deleting what is not there is no error."""
    answer = s3.delete_object(Bucket=bucket, Key="absent")["ResponseMetadata"]["HTTPStatusCode"]
    assert answer == 204, f"answered with {answer}"


def test_delete_of_many(s3: Any, bucket: str) -> None:
    """Many objects are deleted with one request."""
    keys = [f"object-{number}" for number in range(50)]
    for key in keys:
        _put(s3, bucket, key, b"")
    answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys]})
    assert len(answer.get("Deleted", ())) == 50, f"errors: {answer.get('Errors')}"
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket), "some are left"


def test_bucket_with_objects_stays(s3: Any, bucket: str) -> None:
    """A bucket that holds objects is not deleted."""
    _put(s3, bucket, "object")
    found = refusal(lambda: s3.delete_bucket(Bucket=bucket))
    assert found == (409, "BucketNotEmpty"), f"refused with {found}"


def test_bucket_that_is_there(s3: Any, bucket: str) -> None:
    """A second bucket of the same name is refused."""
    status, code = refusal(lambda: s3.create_bucket(Bucket=bucket))
    assert (status, code) == (409, "BucketAlreadyOwnedByYou"), f"refused with {status} {code}"


def test_wrong_checksum_is_refused(s3: Any, bucket: str) -> None:
    """Content that does not fit the checksum sent with it is refused, and nothing is stored."""
    wrong = base64.b64encode(hashlib.md5(b"other", usedforsecurity=False).digest()).decode()
    status, code = refusal(lambda: _put(s3, bucket, "object", b"content", ContentMD5=wrong))
    assert (status, code) == (400, "BadDigest"), f"refused with {status} {code}"
    assert refusal(lambda: _get(s3, bucket, "object"))[0] == 404, "it was stored all the same"


def test_sha256_is_kept(s3: Any, bucket: str) -> None:
    """A SHA-256 that is sent with an object is checked, kept and told."""
    _put(s3, bucket, "object", b"content", ChecksumAlgorithm="SHA256")
    told = s3.head_object(Bucket=bucket, Key="object", ChecksumMode="ENABLED").get("ChecksumSHA256")
    assert told == base64.b64encode(hashlib.sha256(b"content").digest()).decode(), f"told: {told}"


# Ranges


def test_range(s3: Any, bucket: str) -> None:
    """A part of an object is got alone."""
    _put(s3, bucket, "object", b"0123456789")
    found = _get(s3, bucket, "object", Range="bytes=2-5")
    assert found == b"2345", f"got {found!r}"


def test_range_to_the_end(s3: Any, bucket: str) -> None:
    """A range without an end goes to the end."""
    _put(s3, bucket, "object", b"0123456789")
    answer = s3.get_object(Bucket=bucket, Key="object", Range="bytes=7-")
    found = answer["Body"].read(), answer["ContentRange"]
    assert found == (b"789", "bytes 7-9/10"), f"got {found}"


def test_range_from_the_end(s3: Any, bucket: str) -> None:
    """A range may count from the end."""
    _put(s3, bucket, "object", b"0123456789")
    found = _get(s3, bucket, "object", Range="bytes=-3")
    assert found == b"789", f"got {found!r}"


def test_range_outside(s3: Any, bucket: str) -> None:
    """A range behind the end is refused."""
    _put(s3, bucket, "object", b"0123456789")
    status, code = refusal(lambda: _get(s3, bucket, "object", Range="bytes=20-30"))
    assert (status, code) == (416, "InvalidRange"), f"refused with {status} {code}"


# Conditions


def test_get_if_match(s3: Any, bucket: str) -> None:
    """A get with the right tag is answered, with a wrong one refused."""
    tag = _put(s3, bucket, "object")["ETag"]
    assert _get(s3, bucket, "object", IfMatch=tag) == b"content", "another content"
    status, _ = refusal(lambda: _get(s3, bucket, "object", IfMatch='"0123456789abcdef"'))
    assert status == 412, f"refused with {status}"


def test_get_if_none_match(s3: Any, bucket: str) -> None:
    """What the client has already is not sent again."""
    tag = _put(s3, bucket, "object")["ETag"]
    status, _ = refusal(lambda: _get(s3, bucket, "object", IfNoneMatch=tag))
    assert status == 304, f"answered with {status}"


def test_get_if_modified_since(s3: Any, bucket: str) -> None:
    """What was not changed since a time is not sent again."""
    _put(s3, bucket, "object")
    later = datetime.now(UTC) + timedelta(minutes=5)
    status, _ = refusal(lambda: _get(s3, bucket, "object", IfModifiedSince=later - timedelta(minutes=4, seconds=58)))
    assert status == 304, f"answered with {status}"


def test_put_if_absent(s3: Any, bucket: str) -> None:
    """A put that must make a new object does not replace one."""
    _put(s3, bucket, "object", b"first", IfNoneMatch="*")
    status, _ = refusal(lambda: _put(s3, bucket, "object", b"second", IfNoneMatch="*"))
    assert status == 412, f"refused with {status}"
    assert _get(s3, bucket, "object") == b"first", "it was replaced all the same"


def test_put_if_match(s3: Any, bucket: str) -> None:
    """A put that must replace a certain version replaces no other."""
    tag = _put(s3, bucket, "object", b"first")["ETag"]
    _put(s3, bucket, "object", b"second", IfMatch=tag)
    status, _ = refusal(lambda: _put(s3, bucket, "object", b"third", IfMatch=tag))
    assert status == 412, f"refused with {status}"


def test_one_of_many_puts_wins(s3: Any, bucket: str) -> None:
    """Of many puts at once that must make a new object, one succeeds."""

    def put(number: int) -> bool:
        try:
            _put(s3, bucket, "object", str(number).encode(), IfNoneMatch="*")
        except ClientError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = sum(pool.map(put, range(8)))
    assert won == 1, f"{won} of 8 succeeded"


# Multipart


def _begin(s3: Any, bucket: str, key: str = "object") -> str:
    upload: str = s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    return upload


def _part(s3: Any, bucket: str, upload: str, number: int, body: bytes) -> dict[str, Any]:
    answer = s3.upload_part(Bucket=bucket, Key="object", UploadId=upload, PartNumber=number, Body=body)
    return {"PartNumber": number, "ETag": answer["ETag"]}


def _complete(s3: Any, bucket: str, upload: str, parts: list[dict[str, Any]]) -> Any:
    return s3.complete_multipart_upload(Bucket=bucket, Key="object", UploadId=upload, MultipartUpload={"Parts": parts})


def test_multipart(s3: Any, bucket: str) -> None:
    """An object that comes in parts is whole, and not there before it is complete."""
    first, last = os.urandom(PART), os.urandom(1000)
    upload = _begin(s3, bucket)
    parts = [_part(s3, bucket, upload, 1, first), _part(s3, bucket, upload, 2, last)]
    assert refusal(lambda: _get(s3, bucket, "object"))[0] == 404, "it is there before it is complete"
    tag = _complete(s3, bucket, upload, parts)["ETag"].strip('"')
    assert _get(s3, bucket, "object") == first + last, "another content comes back"
    assert tag.endswith("-2"), f"the tag does not tell its parts: {tag}"


def test_multipart_out_of_order(s3: Any, bucket: str) -> None:
    """Parts may come in any order; their numbers tell where they belong."""
    first, last = os.urandom(PART), b"end"
    upload = _begin(s3, bucket)
    later = _part(s3, bucket, upload, 7, last)
    earlier = _part(s3, bucket, upload, 3, first)
    _complete(s3, bucket, upload, [earlier, later])
    assert _get(s3, bucket, "object") == first + last, "another content comes back"


def test_multipart_part_again(s3: Any, bucket: str) -> None:
    """A part that is sent again replaces the earlier one."""
    upload = _begin(s3, bucket)
    _part(s3, bucket, upload, 1, b"first")
    parts = [_part(s3, bucket, upload, 1, b"second")]
    _complete(s3, bucket, upload, parts)
    assert _get(s3, bucket, "object") == b"second", "the first part comes back"


def test_multipart_lists_its_parts(s3: Any, bucket: str) -> None:
    """An upload that is under way tells its parts, so that it can be resumed."""
    upload = _begin(s3, bucket)
    _part(s3, bucket, upload, 1, b"content")
    listed = s3.list_parts(Bucket=bucket, Key="object", UploadId=upload)["Parts"]
    assert [(one["PartNumber"], one["Size"]) for one in listed] == [(1, 7)], f"parts: {listed}"


def test_multipart_abort(s3: Any, bucket: str) -> None:
    """An upload that is given up leaves nothing."""
    upload = _begin(s3, bucket)
    _part(s3, bucket, upload, 1, b"content")
    s3.abort_multipart_upload(Bucket=bucket, Key="object", UploadId=upload)
    status, code = refusal(lambda: s3.list_parts(Bucket=bucket, Key="object", UploadId=upload))
    assert (status, code) == (404, "NoSuchUpload"), f"refused with {status} {code}"
    assert refusal(lambda: _get(s3, bucket, "object"))[0] == 404, "it is there"


def test_multipart_with_a_part_that_never_came(s3: Any, bucket: str) -> None:
    """An upload is not completed with a part that did not come."""
    upload = _begin(s3, bucket)
    came = _part(s3, bucket, upload, 1, b"content")
    missing = {"PartNumber": 2, "ETag": came["ETag"]}
    status, code = refusal(lambda: _complete(s3, bucket, upload, [came, missing]))
    assert (status, code) == (400, "InvalidPart"), f"refused with {status} {code}"


def test_multipart_in_wrong_order(s3: Any, bucket: str) -> None:
    """An upload is not completed with its parts listed in the wrong order."""
    upload = _begin(s3, bucket)
    parts = [_part(s3, bucket, upload, number, os.urandom(PART)) for number in (1, 2)]
    status, code = refusal(lambda: _complete(s3, bucket, upload, parts[::-1]))
    assert (status, code) == (400, "InvalidPartOrder"), f"refused with {status} {code}"


def test_multipart_with_small_parts(s3: Any, bucket: str) -> None:
    """Parts below 5 MiB, but the last, are refused."""
    upload = _begin(s3, bucket)
    parts = [_part(s3, bucket, upload, number, b"small") for number in (1, 2)]
    status, code = refusal(lambda: _complete(s3, bucket, upload, parts))
    assert (status, code) == (400, "EntityTooSmall"), f"refused with {status} {code}"


def test_multipart_copy(s3: Any, bucket: str) -> None:
    """A part may be copied from another object, or a range of it."""
    _put(s3, bucket, "source", b"0123456789")
    upload = _begin(s3, bucket)
    source = {"Bucket": bucket, "Key": "source"}
    answer = s3.upload_part_copy(
        Bucket=bucket, Key="object", UploadId=upload, PartNumber=1, CopySource=source, CopySourceRange="bytes=2-5"
    )
    _complete(s3, bucket, upload, [{"PartNumber": 1, "ETag": answer["CopyPartResult"]["ETag"]}])
    assert _get(s3, bucket, "object") == b"2345", "another content comes back"


# Presigned addresses


def _signed(s3: Any, action: str, bucket: str, seconds: int = 60) -> str:
    url: str = s3.generate_presigned_url(action, Params={"Bucket": bucket, "Key": "object"}, ExpiresIn=seconds)
    return url


def test_presigned_get(s3: Any, store: Store, bucket: str) -> None:
    """Who has a signed address gets the object without keys."""
    _put(s3, bucket, "object")
    found = store.fetch(_signed(s3, "get_object", bucket))
    assert found == (200, b"content"), f"answered with {found[0]}"


def test_presigned_put(s3: Any, store: Store, bucket: str) -> None:
    """Who has an address signed for it puts an object without keys."""
    status, _ = store.fetch(_signed(s3, "put_object", bucket), b"handed in")
    assert status == 200, f"answered with {status}"
    assert _get(s3, bucket, "object") == b"handed in", "another content comes back"


def test_presigned_for_something_else(s3: Any, store: Store, bucket: str) -> None:
    """An address that is signed to get does not put."""
    status, _ = store.fetch(_signed(s3, "get_object", bucket), b"slipped in")
    assert status == 403, f"answered with {status}"


def test_presigned_too_late(s3: Any, store: Store, bucket: str) -> None:
    """A signed address ends when it says."""
    _put(s3, bucket, "object")
    url = _signed(s3, "get_object", bucket, 1)
    time.sleep(2.2)
    status, _ = store.fetch(url)
    assert status == 403, f"answered with {status}"


def test_presigned_and_changed(s3: Any, store: Store, bucket: str) -> None:
    """A signed address that was changed is refused."""
    _put(s3, bucket, "object")
    _put(s3, bucket, "other")
    status, _ = store.fetch(_signed(s3, "get_object", bucket).replace("/object?", "/other?"))
    assert status == 403, f"answered with {status}"


# Versions


def test_versions(s3: Any, versioned: str) -> None:
    """What was overwritten is still there under its version."""
    first = _put(s3, versioned, "object", b"first")["VersionId"]
    _put(s3, versioned, "object", b"second")
    assert _get(s3, versioned, "object") == b"second", "the newest is not what is got"
    assert _get(s3, versioned, "object", VersionId=first) == b"first", "the first version is another"


def test_versions_are_listed(s3: Any, versioned: str) -> None:
    """All versions are listed, the newest first and marked."""
    made = [_put(s3, versioned, "object")["VersionId"] for _ in range(3)]
    listed = s3.list_object_versions(Bucket=versioned)["Versions"]
    assert [one["VersionId"] for one in listed] == made[::-1], "in another order"
    assert [one["IsLatest"] for one in listed] == [True, False, False], "another is marked as the newest"


def test_delete_marker(s3: Any, versioned: str) -> None:
    """A delete hides an object behind a marker; without the marker it is back."""
    _put(s3, versioned, "object")
    marker = s3.delete_object(Bucket=versioned, Key="object")
    assert marker.get("DeleteMarker") is True, f"no marker: {marker}"
    assert refusal(lambda: _get(s3, versioned, "object"))[0] == 404, "it is still got"
    s3.delete_object(Bucket=versioned, Key="object", VersionId=marker["VersionId"])
    assert _get(s3, versioned, "object") == b"content", "another content comes back"


def test_delete_of_a_version(s3: Any, versioned: str) -> None:
    """A version that is deleted by its name is gone, and the one before is the newest."""
    _put(s3, versioned, "object", b"first")
    second = _put(s3, versioned, "object", b"second")["VersionId"]
    s3.delete_object(Bucket=versioned, Key="object", VersionId=second)
    assert _get(s3, versioned, "object") == b"first", "another content comes back"


def test_versions_suspended(s3: Any, versioned: str) -> None:
    """Suspended, no new versions are kept, and the old ones stay."""
    old = _put(s3, versioned, "object", b"kept")["VersionId"]
    s3.put_bucket_versioning(Bucket=versioned, VersioningConfiguration={"Status": "Suspended"})
    _put(s3, versioned, "object", b"first")
    _put(s3, versioned, "object", b"second")
    assert len(s3.list_object_versions(Bucket=versioned)["Versions"]) == 2, "more than the old and the newest is kept"
    assert _get(s3, versioned, "object", VersionId=old) == b"kept", "the old version is another"


# Object lock


def test_object_lock(s3: Any) -> None:
    """A locked version cannot be deleted by who has no right to."""
    name = f"verify-{secrets.token_hex(6)}"
    s3.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    try:
        until = datetime.now(UTC) + timedelta(hours=1)
        version = _put(s3, name, "object", ObjectLockMode="GOVERNANCE", ObjectLockRetainUntilDate=until)["VersionId"]
        status, _ = refusal(lambda: s3.delete_object(Bucket=name, Key="object", VersionId=version))
        assert status in (400, 403), f"refused with {status}"
        assert _get(s3, name, "object", VersionId=version) == b"content", "it is gone all the same"
    finally:
        emptied(s3, name)


# Listing


def test_listing_by_pages(s3: Any, bucket: str) -> None:
    """A list that is longer than a page goes on where the page ended."""
    keys = [f"object-{number:02}" for number in range(12)]
    for key in keys:
        _put(s3, bucket, key, b"")
    pages = list(s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, PaginationConfig={"PageSize": 5}))
    assert [len(page["Contents"]) for page in pages] == [5, 5, 2], "the pages are of other sizes"
    assert [one["Key"] for page in pages for one in page["Contents"]] == keys, "other keys, or in another order"


def test_listing_by_prefix(s3: Any, bucket: str) -> None:
    """A list may be of keys that begin alike."""
    for key in ("runs/1", "runs/2", "models/1"):
        _put(s3, bucket, key, b"")
    found = [one["Key"] for one in s3.list_objects_v2(Bucket=bucket, Prefix="runs/")["Contents"]]
    assert found == ["runs/1", "runs/2"], f"listed: {found}"


def test_listing_like_folders(s3: Any, bucket: str) -> None:
    """With a delimiter, keys are listed as in folders."""
    for key in ("a/1", "a/2", "b/c/1", "top"):
        _put(s3, bucket, key, b"")
    answer = s3.list_objects_v2(Bucket=bucket, Delimiter="/")
    found = [one["Prefix"] for one in answer["CommonPrefixes"]], [one["Key"] for one in answer["Contents"]]
    assert found == (["a/", "b/"], ["top"]), f"listed: {found}"


def test_listing_after_a_key(s3: Any, bucket: str) -> None:
    """A list may begin after a key."""
    for key in ("a", "b", "c"):
        _put(s3, bucket, key, b"")
    found = [one["Key"] for one in s3.list_objects_v2(Bucket=bucket, StartAfter="a")["Contents"]]
    assert found == ["b", "c"], f"listed: {found}"


def test_first_listing_format(s3: Any, bucket: str) -> None:
    """The older form of listing, which many tools still use, works."""
    _put(s3, bucket, "object", b"")
    found = [one["Key"] for one in s3.list_objects(Bucket=bucket)["Contents"]]
    assert found == ["object"], f"listed: {found}"


def test_odd_names(s3: Any, bucket: str) -> None:
    """Keys may have spaces, umlauts, signs and dots; they come back as they are."""
    keys = ["with space", "größe/Maß", "a+b=c&d?e#f", "100%", "日本", "..hidden", "quote'\"", "tilde~!*()"]
    for key in keys:
        _put(s3, bucket, key, key.encode())
    found = {one["Key"] for one in s3.list_objects_v2(Bucket=bucket)["Contents"]}
    assert found == set(keys), f"not listed: {set(keys) - found}"
    wrong = [key for key in keys if _get(s3, bucket, key) != key.encode()]
    assert not wrong, f"another content: {wrong}"


def test_name_with_an_empty_part(s3: Any, bucket: str) -> None:
    """A key with an empty part between two slashes is kept as it is, or refused; it never becomes another key.

    S3 itself keeps it; MinIO refuses it. Programs that join paths carelessly meet the difference.
    """
    try:
        _put(s3, bucket, "a//b")
    except ClientError as error:
        assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 400, f"refused with {error}"
        assert "Contents" not in s3.list_objects_v2(Bucket=bucket), "it was refused, and something stored all the same"
        return
    found = [one["Key"] for one in s3.list_objects_v2(Bucket=bucket)["Contents"]]
    assert found == ["a//b"], f"listed: {found}"


def test_long_name(s3: Any, bucket: str) -> None:
    """A key may have 1024 bytes."""
    key = "/".join(["k" * 200] * 5)[:1000] + "e" * 5
    _put(s3, bucket, key)
    assert _get(s3, bucket, key) == b"content", "another content comes back"


@pytest.mark.limit(240)
def test_ten_thousand_objects(s3: Any) -> None:
    """A bucket of 10 000 objects is listed whole and in order. It is made once and kept for the next verification."""
    wanted = {f"part-{number % 100:02}/object-{number:05}" for number in range(MANY)}
    try:
        s3.create_bucket(Bucket=LISTED)
    except ClientError as error:
        assert error.response["Error"]["Code"] == "BucketAlreadyOwnedByYou", f"no bucket: {error}"
    missing = sorted(wanted - set(_all(s3)))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda at: _put_in_one_archive(s3, missing[at : at + 200]), range(0, len(missing), 200)))
        list(pool.map(lambda key: _put(s3, LISTED, key, b""), sorted(wanted - set(_all(s3)))))
    found = _all(s3)
    assert len(found) == MANY, f"{len(found)} are listed"
    assert found == sorted(wanted), "other keys, or in another order"


def _put_in_one_archive(s3: Any, keys: Sequence[str]) -> None:
    """MinIO unpacks an archive into its objects, in a third of the time; other stores take it for one object."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for key in keys:
            archive.addfile(tarfile.TarInfo(key))
    name = f"{keys[0]}.tar"
    s3.put_object(Bucket=LISTED, Key=name, Body=buffer.getvalue(), Metadata={"Snowball-Auto-Extract": "true"})
    s3.delete_object(Bucket=LISTED, Key=name)


def _all(s3: Any) -> list[str]:
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=LISTED)
    return [one["Key"] for page in pages for one in page.get("Contents", ())]


# Copy and tags


def test_copy(s3: Any, bucket: str) -> None:
    """An object is copied without going through the client, with its metadata."""
    _put(s3, bucket, "source", Metadata={"run": "a1"})
    s3.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": "source"})
    assert _get(s3, bucket, "copy") == b"content", "another content comes back"
    assert s3.head_object(Bucket=bucket, Key="copy")["Metadata"] == {"run": "a1"}, "other metadata"


def test_copy_with_other_metadata(s3: Any, bucket: str) -> None:
    """A copy may get other metadata."""
    _put(s3, bucket, "source", Metadata={"run": "a1"})
    source = {"Bucket": bucket, "Key": "source"}
    s3.copy_object(Bucket=bucket, Key="source", CopySource=source, Metadata={"run": "b2"}, MetadataDirective="REPLACE")
    found = s3.head_object(Bucket=bucket, Key="source")["Metadata"]
    assert found == {"run": "b2"}, f"metadata: {found}"


def test_copy_of_a_version(s3: Any, versioned: str) -> None:
    """An older version is brought back by copying it."""
    first = _put(s3, versioned, "object", b"first")["VersionId"]
    _put(s3, versioned, "object", b"second")
    source = {"Bucket": versioned, "Key": "object", "VersionId": first}
    s3.copy_object(Bucket=versioned, Key="object", CopySource=source)
    assert _get(s3, versioned, "object") == b"first", "another content comes back"


def test_tags(s3: Any, bucket: str) -> None:
    """Tags are set with the object, changed and taken off."""
    _put(s3, bucket, "object", Tagging="stage=raw")
    assert _tags(s3, bucket) == {"stage": "raw"}, "other tags than were set with it"
    s3.put_object_tagging(Bucket=bucket, Key="object", Tagging={"TagSet": [{"Key": "stage", "Value": "clean"}]})
    assert _tags(s3, bucket) == {"stage": "clean"}, "other tags than were set later"
    s3.delete_object_tagging(Bucket=bucket, Key="object")
    assert _tags(s3, bucket) == {}, "some are left"


def _tags(s3: Any, bucket: str) -> dict[str, str]:
    return {one["Key"]: one["Value"] for one in s3.get_object_tagging(Bucket=bucket, Key="object")["TagSet"]}


def test_lifecycle_is_kept(s3: Any, bucket: str) -> None:
    """A rule for how long objects are kept is taken and told."""
    rule = {"ID": "old", "Status": "Enabled", "Filter": {"Prefix": "tmp/"}, "Expiration": {"Days": 7}}
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [rule]})
    told = s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"][0]
    assert (told["ID"], told["Expiration"]["Days"]) == ("old", 7), f"told: {told}"


# Who may do what


def test_stranger_lists_nothing(s3: Any, stranger: Any, bucket: str) -> None:
    """A user without rights does not list a bucket."""
    s3.list_objects_v2(Bucket=bucket)
    found = refusal(lambda: stranger.list_objects_v2(Bucket=bucket))
    assert found == (403, "AccessDenied"), f"refused with {found}"


def test_stranger_reads_nothing(s3: Any, stranger: Any, bucket: str) -> None:
    """A user without rights does not read an object, nor learn that there is one."""
    _put(s3, bucket, "object")
    for key in ("object", "absent"):
        found = refusal(lambda key=key: _get(stranger, bucket, key))  # type: ignore[misc]
        assert found == (403, "AccessDenied"), f"{key}: refused with {found}"


def test_stranger_writes_nothing(s3: Any, stranger: Any, bucket: str) -> None:
    """A user without rights does not write."""
    found = refusal(lambda: _put(stranger, bucket, "object"))
    assert found == (403, "AccessDenied"), f"refused with {found}"
    assert refusal(lambda: _get(s3, bucket, "object"))[0] == 404, "it is there all the same"


def test_stranger_deletes_nothing(s3: Any, stranger: Any, bucket: str) -> None:
    """A user without rights does not delete."""
    _put(s3, bucket, "object")
    found = refusal(lambda: stranger.delete_object(Bucket=bucket, Key="object"))
    assert found == (403, "AccessDenied"), f"refused with {found}"
    assert _get(s3, bucket, "object") == b"content", "it is gone all the same"


def test_stranger_makes_no_bucket(stranger: Any) -> None:
    """A user without rights makes no bucket."""
    found = refusal(lambda: stranger.create_bucket(Bucket=f"verify-{secrets.token_hex(6)}"))
    assert found == (403, "AccessDenied"), f"refused with {found}"


def test_stranger_sees_no_buckets(s3: Any, stranger: Any, bucket: str) -> None:
    """A user sees the buckets that are his, and no others."""
    assert bucket in {one["Name"] for one in s3.list_buckets()["Buckets"]}, "its owner does not see it"
    try:
        seen = [one["Name"] for one in stranger.list_buckets()["Buckets"]]
    except ClientError:
        return
    assert not seen, f"seen: {', '.join(seen)}"


def test_rights_end_at_the_name(s3: Any) -> None:
    """A right to some buckets is none to others."""
    found = refusal(lambda: s3.create_bucket(Bucket=f"other-{secrets.token_hex(6)}"))
    assert found == (403, "AccessDenied"), f"refused with {found}"


def test_nobody_gets_nothing(s3: Any, store: Store, bucket: str) -> None:
    """Who has no keys and no signed address gets nothing."""
    _put(s3, bucket, "object")
    status, _ = store.fetch(_signed(s3, "get_object", bucket).partition("?")[0])
    assert status == 403, f"answered with {status}"


def test_wrong_secret(store: Store, bucket: str) -> None:
    """A request that is signed with a wrong secret is refused."""
    client = store.client(VERIFIER, "wrong" * 8)
    found = refusal(lambda: client.list_objects_v2(Bucket=bucket))
    assert found == (403, "SignatureDoesNotMatch"), f"refused with {found}"


def test_unknown_user(store: Store, bucket: str) -> None:
    """A user that there is not is refused."""
    client = store.client(f"nobody-{secrets.token_hex(3)}", "wrong" * 8)
    found = refusal(lambda: client.list_objects_v2(Bucket=bucket))
    assert found == (403, "InvalidAccessKeyId"), f"refused with {found}"


def test_clock_that_is_wrong(store: Store, bucket: str) -> None:
    """A request from a clock that is an hour late is refused: it may have been recorded."""
    client = store.client(VERIFIER)
    late = datetime.now(UTC) - timedelta(hours=1)
    with patch("botocore.auth.get_current_datetime", return_value=late.replace(tzinfo=None)):
        found = refusal(lambda: client.list_objects_v2(Bucket=bucket))
    assert found == (403, "RequestTimeTooSkewed"), f"refused with {found}"


# TLS


def test_without_the_authority(store: Store) -> None:
    """A client that does not trust the site's authority does not connect."""
    if store.authority is None:
        raise DoesNotApply("its certificate is from a public authority")
    client = store.client(VERIFIER, verify=True)
    with pytest.raises(SSLError):
        client.list_buckets()


def test_without_tls(store: Store) -> None:
    """Nothing is answered without TLS."""
    at = urlsplit(store.url)
    with socket.create_connection((str(at.hostname), at.port or 443), 5) as plain:
        plain.sendall(b"GET /minio/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        plain.settimeout(5)
        try:
            said = plain.recv(200)
        except OSError:
            said = b""
    assert b" 200 " not in said.split(b"\r\n")[0], f"answered with {said[:60]!r}"
