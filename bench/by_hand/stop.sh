#!/bin/sh
# Nothing of start.sh is left. Usage: stop.sh FOLDER
set -u
cd /
for service in minio gitea mlflow postgresql; do
    systemctl stop "bench-by-hand-$service.service" 2>/dev/null
    systemctl reset-failed "bench-by-hand-$service.service" 2>/dev/null
done
rm -rf "$1"
