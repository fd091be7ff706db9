"""All that a suite imports.

A suite is a file ``roles/<role>/verify/test_*.py`` (or ``tests/phases/<phase>/test_*.py``) of functions ``test_*``. A
function that takes ``node`` is made on each node of the role, any other once for the site. Its docstring's first
sentence is the check's name, in words of a platform engineer; further paragraphs say what to do if it does not hold.
Every ``assert`` has a message that tells the node, what was found and what was expected.

Fixtures: ``node`` (NodeHost), ``nodes`` (all by name), ``site``, ``settings`` (of the role), ``controller``
(Controller), ``cluster`` (Cluster), ``versions`` (of the catalogue's artifacts).
``record_property("found", …)`` tells what a check that holds has measured.
Markers: ``on(*groups)``, ``controls(*names)``, ``limit(seconds)``.
"""

from __future__ import annotations

from onprem_mlops.site import Node, Site
from onprem_mlops.verify.backend import NodeHost
from onprem_mlops.verify.browser import Page, browser
from onprem_mlops.verify.cluster import Cluster, Ran, namespace, until
from onprem_mlops.verify.controller import Controller, Response, Served
from onprem_mlops.verify.nodes import Nodes
from onprem_mlops.verify.outcomes import DoesNotApply, NotChecked
from onprem_mlops.verify.ports import Answer, Listener, Target, listener_on, listeners, scan_from, udp_answer_from
from onprem_mlops.verify.proxy import site_proxy
from onprem_mlops.verify.resolving import resolving
from onprem_mlops.verify.rest import SYSTEM_STORE, NodeApi
from onprem_mlops.verify.tls import LEAST_DAYS_LEFT, assert_certificate, assert_old_tls_is_refused

__all__ = [
    "LEAST_DAYS_LEFT",
    "SYSTEM_STORE",
    "Answer",
    "Cluster",
    "Controller",
    "DoesNotApply",
    "Listener",
    "Node",
    "NodeApi",
    "NodeHost",
    "Nodes",
    "NotChecked",
    "Page",
    "Ran",
    "Response",
    "Served",
    "Site",
    "Target",
    "assert_certificate",
    "assert_old_tls_is_refused",
    "browser",
    "listener_on",
    "listeners",
    "namespace",
    "resolving",
    "scan_from",
    "site_proxy",
    "udp_answer_from",
    "until",
]
