"""The 60 operations for plain pyinfra, as its own documentation writes them."""

from io import StringIO

from pyinfra.operations import apt, files, server, systemd

files.directory(name="folder", path="/etc/mlops-bench", user="root", group="root", mode="755")
for number in range(1, 20):
    files.put(
        name=f"file {number}",
        src=StringIO(f"setting {number}\n"),
        dest=f"/etc/mlops-bench/{number}.conf",
        user="root",
        group="root",
        mode="644",
    )
for package in ("ca-certificates", "procps", "iproute2", "kmod", "sudo", "dbus", "systemd", "passwd", "grep", "sed"):
    apt.packages(name=f"package {package}", packages=[package])
for round_ in range(2):
    for unit in ("ssh", "dbus", "systemd-networkd", "systemd-journald"):
        systemd.service(name=f"service {unit} {round_}", service=f"{unit}.service", running=True)
for number in range(10):
    files.line(name=f"line {number}", path="/etc/mlops-bench/lines.conf", line=f"key{number} = {number}")
for number in range(6):
    server.user(name=f"user {number}", user=f"mlopsbench{number}", shell="/usr/sbin/nologin", system=True)
for number in range(6):
    files.directory(name=f"data {number}", path=f"/var/lib/mlops-bench{number}", user=f"mlopsbench{number}", mode="750")
