"""Real clients of the object store: boto3 as one of its users, and somebody who has no keys at all."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError

from onprem_mlops.site import Secrets
from onprem_mlops.site.material import authority_file
from onprem_mlops.verify.suite import Site, resolving
from roles.object_store.settings import Settings


@dataclass(frozen=True)
class Store:
    """The object store at one address, and the authority that its certificate must be signed by."""

    site: Site
    settings: Settings
    url: str
    authority: Path | None
    """None: those that this machine trusts anyway."""

    def client(self, user: str, secret: str | None = None, **options: Any) -> Any:
        """A client with a user's key: the one that the site's secrets hold, or another one."""
        secret = secret or self._secret(user)
        return self._client(aws_access_key_id=user, aws_secret_access_key=secret, **options)

    def anonymous(self) -> Any:
        """A client without keys."""
        return self._client(signature=UNSIGNED)

    def _secret(self, user: str) -> str:
        role, name = self.settings.secret_of_user(self.site, user)
        return Secrets.of(self.site).get(role, name).reveal()

    # Presigned addresses would else be signed in the old way, which newer engines do not know.
    def _client(self, signature: Any = "s3v4", **options: Any) -> Any:
        config = Config(
            s3={"addressing_style": "path"},
            signature_version=signature,
            connect_timeout=5,
            read_timeout=30,
            retries={"max_attempts": 1},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            max_pool_connections=16,
        )
        given = {"verify": str(self.authority) if self.authority else True, **options}
        return boto3.client("s3", endpoint_url=self.url, region_name="us-east-1", config=config, **given)

    def fetch(self, url: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Ask as somebody without keys, with nothing but an address; a body is put."""
        trusted = ssl.create_default_context(cafile=str(self.authority) if self.authority else None)
        request = urllib.request.Request(url, data=body, method="GET" if body is None else "PUT")
        request.add_header("Content-Type", "application/octet-stream")
        try:
            with urllib.request.urlopen(request, context=trusted, timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


@contextmanager
def opened(site: Site, settings: Settings, url: str, folder: Path) -> Iterator[Store]:
    """The object store at a URL. Names of the site lead to the addresses that the site file gives them.

    Args:
        site: the site.
        settings: the role's settings.
        url: where the object store answers.
        folder: takes the certificate of an external store's authority, if it has one of its own.
    """
    authority: Path | None = authority_file(site)
    if settings.engine == "external":
        authority = None
        if settings.authority is not None:
            authority = folder / "authority.pem"
            authority.write_text(settings.authority)
    with resolving(site):
        yield Store(site, settings, url, authority)


def refusal(call: Callable[[], Any], what: str = "the call") -> tuple[int, str]:
    """HTTP status and code with which a call is refused. AssertionError if it is not."""
    try:
        call()
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Code"]
    raise AssertionError(f"{what} was answered and not refused")


def emptied(s3: Any, bucket: str) -> None:
    """Remove a bucket with all that is in it, also what is locked where the user may."""
    for upload in s3.list_multipart_uploads(Bucket=bucket).get("Uploads", ()):
        s3.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket):
        for one in (*page.get("Versions", ()), *page.get("DeleteMarkers", ())):
            s3.delete_object(Bucket=bucket, Key=one["Key"], VersionId=one["VersionId"], BypassGovernanceRetention=True)
    s3.delete_bucket(Bucket=bucket)
