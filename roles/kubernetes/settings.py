"""What the kubernetes role reads of a site file, and what it declares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from typing import Annotated, ClassVar, Literal

from pydantic import Field, StrictFloat, StrictInt

from onprem_mlops.roles import Opening, Problem, RoleSettings, Secret
from onprem_mlops.site import Node, Site

API_PORT = 6443
"""Where each API server listens; the endpoint in front of them has a port of its own."""


EvictionSignal = Literal[
    "memory.available",
    "nodefs.available",
    "nodefs.inodesFree",
    "imagefs.available",
    "imagefs.inodesFree",
    "containerfs.available",
    "containerfs.inodesFree",
    "pid.available",
]


class Settings(RoleSettings):
    """Kubernetes by kubeadm: one or three control planes behind one endpoint, workers, encryption, audit, admission."""

    groups: ClassVar[tuple[str, ...]] = ("control_plane", "worker")
    requires: ClassVar[tuple[str, ...]] = ("node", "containerd")

    endpoint_port: StrictInt = Field(
        default=8443,
        ge=1024,
        le=65535,
        description="Port of the API endpoint api.<domain>, answered by haproxy on every control plane. It is there "
        "with one control plane too, so that growing to three changes nothing for clients.",
    )
    extra_names: tuple[str, ...] = Field(
        default=(), description="More names and addresses that the API server's certificate is to be good for."
    )
    vrrp_id: StrictInt = Field(
        default=51,
        ge=1,
        le=255,
        description="Number of the virtual router that carries the API address; another one on the same network "
        "needs another number.",
    )
    ignored_preflight_errors: tuple[str, ...] = Field(
        default=(),
        description="kubeadm checks that may fail, by name. Empty: each of them has its reason on real hardware.",
    )

    audit_days: StrictInt = Field(default=30, ge=1, description="Days that audit logs are kept (CIS 1.2.18).")
    audit_files: StrictInt = Field(default=10, ge=1, description="Rotated audit logs that are kept (CIS 1.2.19).")
    audit_megabytes: StrictInt = Field(
        default=100, ge=1, description="Size at which an audit log is rotated (CIS 1.2.20); 1 GB in all."
    )

    max_pods: StrictInt = Field(default=110, ge=16, le=250, description="Pods a node; a node has a /24 of addresses.")
    pod_processes: StrictInt = Field(
        default=4096, ge=256, description="Processes a pod may have; a fork bomb stays in its pod."
    )
    eviction_hard: Mapping[EvictionSignal, Annotated[str, Field(pattern=r"^\d+(\.\d+)?([KMGT]i?|%)?$")]] = Field(
        default={
            "memory.available": "500Mi",
            "nodefs.available": "10%",
            "nodefs.inodesFree": "5%",
            "imagefs.available": "10%",
            "imagefs.inodesFree": "5%",
        },
        description="When the kubelet evicts pods, before the kernel kills at random or the disk is full.",
    )
    image_gc_high_percent: StrictInt = Field(
        default=80,
        ge=2,
        le=100,
        description="Disk usage at which unused images go; before eviction starts. 100: never.",
    )
    image_gc_low_percent: StrictInt = Field(
        default=70, ge=1, le=99, description="Disk usage down to which unused images go."
    )
    fail_cgroup_v1: bool = Field(
        default=True, description="Refuse nodes with cgroup v1, which Kubernetes only maintains any more."
    )
    protect_kernel_defaults: bool = Field(
        default=True,
        description="The kubelet refuses to start if kernel parameters differ from what it expects, instead of "
        "changing them behind everybody's back (CIS 4.2.6). The node role sets them.",
    )
    etcd_fsync_p99_ms: StrictFloat = Field(
        default=10,
        gt=0,
        description="Verified: 99 of 100 writes of etcd are on the disk within this many milliseconds. 10 is etcd's "
        "own advice; a slower disk makes it lose its leader under load.",
    )
    conntrack_max_per_core: StrictInt = Field(
        default=32768,
        ge=0,
        description="Connections tracked per core, kube-proxy's own default. 0: leave the kernel's value alone, for "
        "nodes that may not change it.",
    )

    def secrets(self, site: Site) -> Iterable[Secret]:
        """Secrets to generate once for the site."""
        yield Secret("encryption_key", "key32", "encrypts Secret objects in etcd (secretbox)", rotatable=False)

    def names(self, site: Site) -> Mapping[str, IPv4Address]:
        """The endpoint's name, on every node."""
        return {self.endpoint_name(site): site.api_address} if site.in_group("control_plane") else {}

    def endpoint_name(self, site: Site) -> str:
        """The one name that everything in the cluster and outside calls the API by."""
        return f"api.{site.domain}"

    def endpoint(self, site: Site) -> str:
        """`name:port` of the API."""
        return f"{self.endpoint_name(site)}:{self.endpoint_port}"

    def certificate_names(self, site: Site) -> tuple[str, ...]:
        """What the API server's certificate is good for beside kubeadm's own names."""
        planes = site.in_group("control_plane")
        addresses = dict.fromkeys((str(site.api_address), *(str(node.address) for node in planes), "127.0.0.1"))
        names = (self.endpoint_name(site), *(site.full_name(node) for node in planes), "localhost")
        return (*names, *addresses, *self.extra_names)

    def openings(self, site: Site, node: Node) -> Iterable[Opening]:
        """Ports to open on ``node``."""
        if "control_plane" in node.groups:
            everybody = ("control_plane", "worker", "pods", "controller")
            yield Opening(self.endpoint_port, everybody, "Kubernetes API endpoint (haproxy)")
            yield Opening(API_PORT, everybody, "Kubernetes API server")
            if len(site.in_group("control_plane")) > 1:
                yield Opening("2379-2380", ("control_plane",), "etcd: clients and peers")
                yield Opening(None, ("control_plane",), "the API address moves (keepalived)", "vrrp")
        if {"control_plane", "worker"} & set(node.groups):
            yield Opening(10250, ("control_plane",), "kubelet: logs, exec, metrics")

    def artifacts(self) -> Iterable[str]:
        """Names in the artifact catalogue that the role lays down."""
        images = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "etcd", "coredns")
        return ("kubernetes", *(f"image-{name}" for name in images))

    def problems(self, site: Site) -> Iterable[Problem]:
        """Cross-checks of the role's own part."""
        if self.image_gc_low_percent >= self.image_gc_high_percent:
            yield Problem(
                "images would be collected without end; image_gc_low_percent must be below image_gc_high_percent",
                "image_gc_low_percent",
            )
        if self.endpoint_port == API_PORT:
            yield Problem(f"port {API_PORT} is the API servers' own; choose another one, such as 8443", "endpoint_port")
