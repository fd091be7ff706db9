"""The gateway as its clients find it: names, TLS, limits, its log; and that it is nobody."""

from __future__ import annotations

import secrets
import socket
import ssl

import pytest

from onprem_mlops.roles import Route
from onprem_mlops.verify.suite import (
    Controller,
    DoesNotApply,
    NodeHost,
    Nodes,
    Response,
    Site,
    assert_certificate,
    assert_old_tls_is_refused,
    listeners,
    until,
)
from roles.gateway.settings import HTTPS, Settings

UNIT = "onprem-gateway.service"
STRANGER = "127.0.0.99"
"""Address on the gateway's own loopback whose requests are counted apart from everybody else's."""


@pytest.fixture(scope="module")
def gateways(site: Site, settings: Settings, nodes: Nodes) -> list[NodeHost]:
    """Nodes that the gateway runs on; names lead to the first."""
    return [nodes[node.name] for node in settings.hosts(site)]


@pytest.fixture(scope="module")
def web(site: Site, settings: Settings) -> dict[str, Route]:
    """Routes that are HTTPS, by full name."""
    return {f"{route.name}.{site.domain}": route for route in settings.web(site)}


@pytest.fixture(scope="module")
def name(web: dict[str, Route]) -> str:
    """One of the names."""
    return next(iter(web))


def test_certificate(web: dict[str, Route], controller: Controller, gateways: list[NodeHost]) -> None:
    """Every name has a certificate of the site's authority that is good for weeks, on every gateway.

    `./mlops deploy --role gateway` renews what is due.
    """
    for gateway in gateways:
        assert_certificate(controller, gateway, HTTPS, *web)


def test_old_tls_is_refused(name: str, controller: Controller, gateways: list[NodeHost]) -> None:
    """TLS 1.1 and older is refused."""
    for gateway in gateways:
        assert_old_tls_is_refused(controller, gateway, HTTPS, name)


def test_version_of_http(name: str, settings: Settings, controller: Controller, gateways: list[NodeHost]) -> None:
    """The gateway offers HTTP/2 only where the site says so: uploads by the clients of Debian 12 break over it."""
    wanted = "h2" if settings.http2 else "http/1.1"
    context = controller.context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    for gateway in gateways:
        with (
            socket.create_connection((gateway.address, HTTPS), 10) as plain,
            context.wrap_socket(plain, server_hostname=name) as wrapped,
        ):
            chosen = wrapped.selected_alpn_protocol()
        assert chosen == wanted, f"{gateway.name}: for {name} it chose {chosen}, not {wanted}"


def test_every_service_answers(web: dict[str, Route], controller: Controller) -> None:
    """Every name leads to its service, which is well.

    A 503 says that the gateway finds none of the service's nodes healthy: see its log (`journalctl -u
    onprem-gateway`) on the gateway, then the service's own.
    """
    ill: dict[str, Response] = {}
    for name, route in web.items():
        answer = controller.get(f"https://{name}{route.health}")
        if answer.status != 200:
            ill[name] = answer
    assert not ill, "; ".join(f"{name}: HTTP {answer.status} {answer.text[:80]!r}" for name, answer in ill.items())


def test_strict_transport_security(web: dict[str, Route], controller: Controller) -> None:
    """Browsers are told to use no name of the gateway without TLS, whatever the answer is."""
    without = []
    for name, route in web.items():
        for path in (route.health, f"/verify-{secrets.token_hex(4)}"):
            answer = controller.get(f"https://{name}{path}")
            age = answer.headers.get("strict-transport-security", "")
            if "max-age=31536000" not in age.replace(" ", ""):
                without.append(f"https://{name}{path} (HTTP {answer.status}): {age or 'nothing'}")
    assert not without, "; ".join(without)


def test_names_resolve_on_every_node(
    web: dict[str, Route], site: Site, settings: Settings, gateways: list[NodeHost], nodes: Nodes
) -> None:
    """Every node finds every name at the gateway, by itself and with the certificates that the system trusts.

    `./mlops deploy --role node` writes the names.
    """
    wanted = gateways[0].address
    for node in nodes.values():
        for name in web:
            found = node.run("getent ahostsv4 %s", name).stdout.split()
            assert found and found[0] == wanted, f"{node.name}: {name} is {found[:1] or 'unknown'}, not {wanted}"
    for node in nodes.values():
        for name, route in web.items():
            command = (
                "openssl s_client -connect %s:443 -servername %s -verify_hostname %s -verify_return_error </dev/null"
            )
            said = node.run(command, name, name, name)
            assert said.rc == 0, f"{node.name}: https://{name}{route.health}: {said.stderr.strip()[-200:]}"


def test_unknown_names_get_no_handshake(site: Site, controller: Controller, gateways: list[NodeHost]) -> None:
    """Who asks for a name that is not the site's, or for none, is refused before anything is said."""
    context = controller.context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for gateway in gateways:
        for asked in (f"verify-{secrets.token_hex(4)}.{site.domain}", None):
            with socket.create_connection((gateway.address, HTTPS), 10) as plain:
                try:
                    context.wrap_socket(plain, server_hostname=asked).close()
                except ssl.SSLError:
                    continue
            raise AssertionError(f"{gateway.name}: a client that asks for {asked or 'no name'} gets a handshake")


def test_another_host_is_refused(name: str, site: Site, controller: Controller) -> None:
    """A request for another host over a connection to one of the names is refused with 421."""
    for other in ("evil.example", f"verify.{site.domain}", f"{name}.evil.example"):
        answer = controller.request("GET", f"https://{name}/", headers={"Host": other})
        assert answer.status == 421, f"Host {other}: HTTP {answer.status} {answer.text[:100]!r}"


def test_no_plain_http(controller: Controller, gateways: list[NodeHost]) -> None:
    """Nothing answers on port 80, where a password would travel in the clear."""
    for gateway in gateways:
        found = controller.scan([(gateway.address, 80), (gateway.address, HTTPS)])
        # The control: where not even 443 answers, silence proves nothing.
        assert found[gateway.address, HTTPS] == "open", f"{gateway.name}: 443 is {found[gateway.address, HTTPS]}"
        assert found[gateway.address, 80] != "open", f"{gateway.name}: port 80 is open"


def test_passed_through(site: Site, settings: Settings, controller: Controller, gateways: list[NodeHost]) -> None:
    """What is passed through as TCP reaches a service that speaks or waits, and is not cut off."""
    routes = settings.passed_through(site)
    if not routes:
        raise DoesNotApply("no service is passed through")
    for gateway in gateways:
        for route in routes:
            with socket.create_connection((gateway.address, route.public_port), 10) as plain:
                plain.settimeout(2)
                try:
                    heard = plain.recv(64)
                except TimeoutError:
                    continue
            assert heard, f"{gateway.name}: {route.name} on {route.public_port} is closed at once: no service behind it"


def test_too_large_is_refused(name: str, settings: Settings, controller: Controller) -> None:
    """A request that says it is larger than the site takes is refused before it is sent."""
    length = str(settings.largest_body_gib * 1024**3 + 1)
    context = controller.context()
    with (
        socket.create_connection((controller.addresses_of(name)[0], HTTPS), 10) as plain,
        context.wrap_socket(plain, server_hostname=name) as wrapped,
    ):
        wrapped.sendall(f"PUT /verify HTTP/1.1\r\nHost: {name}\r\nContent-Length: {length}\r\n\r\n".encode())
        said = wrapped.recv(512)
    assert said.startswith(b"HTTP/1.1 413"), f"{name}: {length} bytes announced, and it says {said[:80]!r}"


@pytest.mark.limit(90)
def test_too_many_requests_are_refused(name: str, settings: Settings, gateways: list[NodeHost]) -> None:
    """A client that makes more requests than it may is answered with 429, and others are served meanwhile."""
    gateway, allowed = gateways[0], settings.requests_per_second * 10
    if settings.requests_per_second > 1000:
        raise DoesNotApply(f"{settings.requests_per_second} requests a second are more than a check should make")
    # Asked of no service: a host that is none of ours, from an address that nobody else has. All in one connection, as
    # a busy node could not make as many in time.
    ask = "GET / HTTP/1.1\\r\\nHost: verify.invalid\\r\\n"
    requests = f'"{ask}\\r\\n" x {allowed + 199}, "{ask}Connection: close\\r\\n\\r\\n"'
    client = f"openssl s_client -quiet -bind %s -connect {gateway.address}:443 -servername {name} 2>/dev/null"
    flood = f"perl -e 'print {requests}' | {client} | grep -ao '^HTTP/1.1 [0-9]*' | sort | uniq -c"
    counted = gateway.check_output(flood, f"{STRANGER}:0", timeout=60)
    answers = {line.split()[2]: int(line.split()[0]) for line in counted.splitlines()}
    found = ", ".join(f"{count} times {code}" for code, count in answers.items())
    assert answers.get("421"), f"{gateway.name}: the first requests were not looked at: {found}"
    assert answers.get("429"), f"{gateway.name}: {allowed + 200} requests at once were answered: {found}"
    asked = f"curl -s -o /dev/null -w '%%{{http_code}}' -H 'Host: verify.invalid' --resolve %s:443:%s https://{name}/"
    other = gateway.check_output(asked, name, gateway.address)
    assert other == "421", f"{gateway.name}: another client is answered with {other} meanwhile"


def test_log_has_no_secret(name: str, web: dict[str, Route], controller: Controller, gateways: list[NodeHost]) -> None:
    """The access log has the path of a request, and neither what follows its `?` nor any header.

    Signed addresses of objects and tokens of sessions are there.
    """
    mark, secret = f"verify-{secrets.token_hex(6)}", f"secret{secrets.token_hex(12)}"
    url = f"https://{name}/{mark}?X-Amz-Signature={secret}&token={secret}"
    controller.request("GET", url, headers={"Authorization": f"Bearer {secret}", "Cookie": f"session={secret}"})
    read = f"journalctl -u {UNIT} --since=-5min -o cat --no-pager"
    logged = until(lambda: gateways[0].run(f"{read} | grep -F %s", mark).rc == 0, 10, every=0.5)
    assert logged, f"{gateways[0].name}: the request for /{mark} is not in the log"
    told = gateways[0].run(f"{read} | grep -cF %s", secret).stdout.strip()
    assert told == "0", f"{gateways[0].name}: {told} lines of the log hold what followed the ? or a header"


def test_runs_as_its_own_user(gateways: list[NodeHost]) -> None:
    """The gateway runs as an account of its own, which can write none of its files and has no other privilege."""
    for gateway in gateways:
        pid = gateway.check_output(f"systemctl show -p MainPID --value {UNIT}")
        users = set(gateway.lines("ps -o user:32= -p %s --ppid %s | tr -d ' '", pid, pid))
        assert users == {"onprem-gateway"}, f"{gateway.name}: it runs as {', '.join(users) or 'nobody'}"
        writable = gateway.lines(
            "setpriv --reuid=onprem-gateway --regid=onprem-gateway --clear-groups "
            "find -L /etc/onprem-gateway /usr/sbin/haproxy -writable 2>/dev/null"
        )
        assert not writable, f"{gateway.name}: it can write {', '.join(writable)}"
        bounds = gateway.check_output("grep CapBnd /proc/%s/status", pid).split()[1]
        # CAP_NET_BIND_SERVICE is bit 10.
        assert int(bounds, 16) == 1 << 10, f"{gateway.name}: its capabilities are bounded by {bounds}"


def test_key_is_private(gateways: list[NodeHost]) -> None:
    """The gateway's private key can be read by its own account only."""
    for gateway in gateways:
        said = gateway.lines("find /etc/onprem-gateway -name '*key*' -printf '%p %m %u %g\\n'")
        assert said, f"{gateway.name}: no key in /etc/onprem-gateway"
        wrong = [one for one in said if one.split()[1:] != ["400", "onprem-gateway", "root"]]
        assert not wrong, f"{gateway.name}: {'; '.join(wrong)}"


def test_ports(site: Site, settings: Settings, gateways: list[NodeHost]) -> None:
    """The gateway listens on the node's address for its names, on the loopback for its health, and nowhere else."""
    for gateway in gateways:
        pid = gateway.check_output(f"systemctl show -p MainPID --value {UNIT}")
        family = {int(one) for one in gateway.lines("ps -o pid= -p %s --ppid %s", pid, pid)}
        found = {(one.address, one.port) for one in listeners(gateway) if one.pid in family}
        ports = {HTTPS, *(route.public_port for route in settings.passed_through(site))}
        wanted = {(gateway.address, port) for port in ports} | {("127.0.0.1", settings.metrics_port)}
        assert found == wanted, f"{gateway.name}: it listens on {sorted(found)}, not on {sorted(wanted)}"


def test_health_and_figures(settings: Settings, gateways: list[NodeHost]) -> None:
    """The gateway runs with the configuration that lies on its node, and says what it counts."""
    for gateway in gateways:
        base = f"http://127.0.0.1:{settings.metrics_port}"
        running = gateway.check_output(f"curl -fsS --max-time 5 {base}/healthz")
        written = gateway.check_output("cat /etc/onprem-gateway/haproxy.cfg")
        assert running and running in written, f"{gateway.name}: it runs with another configuration than it was given"
        counted = gateway.check_output(f"curl -fsS --max-time 5 {base}/metrics | grep -c ^haproxy_")
        assert int(counted) > 100, f"{gateway.name}: /metrics holds {counted} figures"
