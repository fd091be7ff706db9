#!/bin/sh
# Nothing of start.sh is left. Usage: stop.sh FOLDER
set -u
cd /
for service in minio gitea mlflow; do
    systemctl stop "bench-by-hand-$service.service" 2>/dev/null
    systemctl reset-failed "bench-by-hand-$service.service" 2>/dev/null
done
for database in bench_gitea bench_mlflow bench_mlflow_auth; do
    runuser -u postgres -- dropdb --if-exists --force "$database" 2>/dev/null
done
rm -rf "$1"
