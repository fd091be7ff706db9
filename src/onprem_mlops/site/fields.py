"""The small types a site file is made of. Each refuses with "what is wrong; what would be right"."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from ipaddress import IPv4Address, IPv4Network
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    PlainSerializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

GENERATED = "generated"
"""What a lab's site file says instead of a key that is made on this machine."""

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
_GROUP = re.compile(r"[a-z][a-z0-9_]*")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_BRIDGE = re.compile(r"[a-z][a-z0-9-]{0,14}")
_DEVICE = re.compile(r"/dev/[A-Za-z0-9/_.:+-]+")
_URL = re.compile(r"https?://[^\s/]+(/\S*)?")


def dns_label(value: str) -> str:
    """One part of a DNS name (RFC 1123): what a node or a site may be called."""
    if _LABEL.fullmatch(value):
        return value
    if _LABEL.fullmatch(value.lower()):
        raise ValueError(f'"{value}" has upper-case letters; write "{value.lower()}"')
    raise ValueError(
        f'"{value}" is not a DNS label; use a-z, 0-9 and inner hyphens, at most 63 characters, such as "cp1"'
    )


def domain(value: str) -> str:
    """A DNS domain of two or more labels, without the final dot."""
    if value != value.lower() and all(_LABEL.fullmatch(part) for part in value.lower().split(".")):
        raise ValueError(f'"{value}" has upper-case letters; write "{value.lower()}"')
    if value.endswith(".") and len(value) > 1:
        raise ValueError(f'"{value}" ends with a dot; write "{value.rstrip(".")}"')
    parts = value.split(".")
    if len(parts) < 2 or len(value) > 200 or not all(_LABEL.fullmatch(part) for part in parts):
        raise ValueError(f'"{value}" is not a domain; write two or more DNS labels, such as "mlops.example.com"')
    return value


def group_name(value: str) -> str:
    """A group of nodes; words joined with underscores."""
    if not _GROUP.fullmatch(value):
        raise ValueError(f'"{value}" is not a group name; use a-z, 0-9 and underscores, such as "control_plane"')
    return value


def user_name(value: str) -> str:
    """A Unix account name as useradd takes it."""
    if not _USER.fullmatch(value):
        raise ValueError(f'"{value}" is not a user name; use a-z, 0-9, hyphen or underscore, such as "mlops"')
    return value


def bridge_name(value: str) -> str:
    """A network interface name, which the kernel limits to 15 characters."""
    if not _BRIDGE.fullmatch(value):
        raise ValueError(f'"{value}" is not a bridge name; use at most 15 of a-z, 0-9 and "-", such as "br-mlops"')
    return value


def device_path(value: str) -> str:
    """A block device by its path; stable names (/dev/disk/by-id/…) survive a reboot."""
    if not _DEVICE.fullmatch(value):
        raise ValueError(f'"{value}" is not a device; write its path, such as "/dev/disk/by-id/nvme-…"')
    return value


def http_url(value: str) -> str:
    """An http or https address."""
    if not _URL.fullmatch(value):
        raise ValueError('not an address of http or https; write one such as "http://proxy.example.com:3128"')
    return value


def label_key(value: str) -> str:
    """A Kubernetes label or taint key: an optional DNS prefix, a slash, a name."""
    prefix, slash, name = value.rpartition("/")
    prefix_is_right = not slash or all(_LABEL.fullmatch(part) for part in prefix.split("."))
    if not name or not _LABEL_VALUE.fullmatch(name) or not prefix_is_right:
        raise ValueError(
            f'"{value}" is not a label key; write a name of at most 63 of a-z, A-Z, 0-9, ".", "_" and "-", '
            f'after an optional "prefix.example.com/"'
        )
    return value


def label_value(value: str) -> str:
    """A Kubernetes label value: empty or at most 63 characters."""
    if not _LABEL_VALUE.fullmatch(value):
        raise ValueError(
            f'"{value}" is not a label value; use at most 63 of a-z, A-Z, 0-9, ".", "_" and "-", '
            f"beginning and ending with a letter or digit"
        )
    return value


def host_key(value: str) -> str:
    """An OpenSSH public host key, ``ssh-ed25519 AAAA…``; a comment after it is dropped."""
    advice = 'write the line that "ssh-keyscan -t ed25519 ADDRESS" gives, without the address: "ssh-ed25519 AAAA…"'
    algorithm, _, rest = value.strip().partition(" ")
    if algorithm != "ssh-ed25519":
        raise ValueError(f'the algorithm is "{algorithm}", and only ssh-ed25519 is pinned; {advice}')
    encoded = rest.split(" ", 1)[0]
    try:
        blob = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        raise ValueError(f"what follows the algorithm is not base64; {advice}") from None
    if len(blob) != 51 or blob[:19] != b"\x00\x00\x00\x0bssh-ed25519" + b"\x00\x00\x00\x20":
        raise ValueError(f"the key is damaged (it does not hold one ed25519 key); {advice}")
    return f"{algorithm} {encoded}"


def fingerprint(key: str) -> str:
    """The fingerprint of a public host key as ``ssh-keygen -l`` shows it (``SHA256:…``)."""
    digest = hashlib.sha256(base64.b64decode(key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


class Taint(BaseModel):
    """What keeps pods that do not tolerate it off a node; in the file ``key=value:Effect``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    value: str
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: object) -> object:
        if not isinstance(value, str):
            raise ValueError('not a taint; write it as text, such as "nvidia.com/gpu=present:NoSchedule"')
        pair, _, effect = value.rpartition(":")
        key, _, content = pair.partition("=")
        if effect not in ("NoSchedule", "PreferNoSchedule", "NoExecute"):
            raise ValueError(
                f'"{value}" is not a taint; write key=value:Effect with one of NoSchedule, PreferNoSchedule, NoExecute'
            )
        return {"key": label_key(key), "value": label_value(content), "effect": effect}

    def __str__(self) -> str:
        return f"{self.key}={self.value}:{self.effect}" if self.value else f"{self.key}:{self.effect}"


def _address_text(value: object) -> object:
    """Only text (or an address already made) is an address: pydantic would read 42 as 0.0.0.42."""
    return value if isinstance(value, (str, IPv4Address, IPv4Network)) else str(value)


def _no_truth_value(value: object) -> object:
    """To Python `true` is a 1, and one byte is nobody's wish."""
    if isinstance(value, bool):
        raise PydanticCustomError("byte_size", "a size is wanted")
    return value


Address = Annotated[IPv4Address, BeforeValidator(_address_text)]
Network = Annotated[IPv4Network, BeforeValidator(_address_text)]
DnsLabel = Annotated[str, AfterValidator(dns_label)]
Domain = Annotated[str, AfterValidator(domain)]
GroupName = Annotated[str, AfterValidator(group_name)]
UserName = Annotated[str, AfterValidator(user_name)]
BridgeName = Annotated[str, AfterValidator(bridge_name)]
DevicePath = Annotated[str, AfterValidator(device_path)]
HttpUrl = Annotated[str, AfterValidator(http_url)]
LabelKey = Annotated[str, AfterValidator(label_key)]
LabelValue = Annotated[str, AfterValidator(label_value)]
Size = Annotated[ByteSize, BeforeValidator(_no_truth_value), PlainSerializer(int)]
MemoryLimit = Annotated[str, Field(pattern=r"^[1-9][0-9]*[MG]$", examples=["2G"])]
"""As systemd's `MemoryMax=` reads it."""
