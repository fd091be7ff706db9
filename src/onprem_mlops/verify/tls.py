"""What every service with TLS is asked, whichever it is: its certificate, and that it speaks no old TLS."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from functools import partial

from cryptography import x509

from onprem_mlops.verify.backend import NodeHost
from onprem_mlops.verify.controller import Controller, StartTLS

LEAST_DAYS_LEFT = 30
"""A deploy renews when a third of a certificate's life is left; with less than this, none has run for long."""

_ALERTS = ("TLSV1_ALERT_PROTOCOL_VERSION", "SSLV3_ALERT_HANDSHAKE_FAILURE")
_SILENCE = "UNEXPECTED_EOF_WHILE_READING"


def assert_certificate(
    controller: Controller, host: NodeHost, port: int, *names: str, starttls: StartTLS | None = None
) -> None:
    """What a node serves at a port is signed by the site's authority, has each of the names, and is good for weeks."""
    for name in names:
        try:
            served = controller.handshake(host.address, port, name, starttls=starttls)
        except ssl.SSLError as error:
            raise AssertionError(
                f"{host.name}: a client that trusts the site's authority refuses {name} on port {port}: {error}"
            ) from None
        found = served.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert name in found.get_values_for_type(x509.DNSName), (
            f"{host.name}: the certificate on port {port} is not for {name}"
        )
        left = served.certificate.not_valid_after_utc - datetime.now(UTC)
        assert left > timedelta(days=LEAST_DAYS_LEFT), (
            f"{host.name}: the certificate for {name} on port {port} ends in {left.days} days"
        )


def assert_old_tls_is_refused(
    controller: Controller,
    host: NodeHost,
    port: int,
    name: str,
    *,
    starttls: StartTLS | None = None,
    silently: bool = False,
) -> None:
    """TLS 1.1 and older is refused by what a node serves at a port, in its own words.

    ``silently``: a server that ends an old handshake without a word is right, too, as long as it speaks TLS 1.2.
    """
    handshake = partial(controller.handshake, host.address, port, name, starttls=starttls)
    if silently:
        # The control: a server that is down says nothing as well.
        handshake(highest=ssl.TLSVersion.TLSv1_2)
    try:
        served = handshake(highest=ssl.TLSVersion.TLSv1_1)
    except ssl.SSLError as error:
        # A refusal by this side would prove nothing.
        assert error.reason in (*_ALERTS, *((_SILENCE,) if silently else ())), (
            f"{host.name}: TLS 1.1 failed, but not because the server on port {port} refused it: {error}"
        )
    else:
        raise AssertionError(f"{host.name}: the server on port {port} speaks {served.version}")
