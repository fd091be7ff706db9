#!/bin/sh
# The same programs as the platform's, on the same node and the same PostgreSQL, started by hand: TLS and a login, and
# nothing else. All as user postgres, whom the server knows by its socket.
# Usage: start.sh FOLDER FULL_NAME PYTHON WORKERS; prints what a client needs, as JSON.
set -eu
folder=$1 name=$2 python=$3 workers=$4
cd /
mkdir -m 700 "$folder"
mkdir "$folder"/certs "$folder"/objects "$folder"/gitea "$folder"/artifacts
cp /etc/gitea/chain.pem "$folder/certs/public.crt"
cp /etc/gitea/key.pem "$folder/certs/private.key"
word() { openssl rand -hex 16; }
minio=$(word) gitea=$(word) mlflow=$(word)

for database in bench_gitea bench_mlflow bench_mlflow_auth; do
    runuser -u postgres -- createdb -T template0 -E UTF8 --lc-collate=C.UTF-8 --lc-ctype=C.UTF-8 "$database"
done

cat >"$folder/minio.env" <<END
MINIO_ROOT_USER=bench
MINIO_ROOT_PASSWORD=$minio
MINIO_UPDATE=off
MINIO_BROWSER=off
MINIO_ROOTDRIVE_THRESHOLD_SIZE=1
END
cat >"$folder/app.ini" <<END
RUN_USER = postgres
WORK_PATH = $folder/gitea
[server]
PROTOCOL = https
HTTP_PORT = 13000
ROOT_URL = https://$name:13000/
CERT_FILE = $folder/certs/public.crt
KEY_FILE = $folder/certs/private.key
STATIC_ROOT_PATH = /usr/local/share/gitea
OFFLINE_MODE = true
[database]
DB_TYPE = postgres
HOST = /var/run/postgresql
USER = postgres
NAME = bench_gitea
[security]
INSTALL_LOCK = true
SECRET_KEY = $(word)
INTERNAL_TOKEN = $(word)
[oauth2]
JWT_SECRET = $(openssl rand -base64 32 | tr '+/' '-_' | tr -d '=')
[log]
LEVEL = Info
[cron.update_checker]
ENABLED = false
END
cat >"$folder/mlflow.ini" <<END
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = postgresql+psycopg2:///bench_mlflow_auth?host=/var/run/postgresql
admin_username = bench
admin_password = $mlflow
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 30
END
cat >"$folder/mlflow.env" <<END
MLFLOW_AUTH_CONFIG_PATH=$folder/mlflow.ini
MLFLOW_FLASK_SERVER_SECRET_KEY=$(word)
MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
MLFLOW_SERVER_ALLOWED_HOSTS=*
PYTHONDONTWRITEBYTECODE=1
HOME=$folder
END
chown -R postgres: "$folder"

by_hand() {
    unit=bench-by-hand-$1
    shift
    systemd-run --quiet --collect --unit="$unit" --property=User=postgres --setenv=HOME="$folder" "$@"
}
by_hand minio --property=EnvironmentFile="$folder/minio.env" \
    /usr/local/bin/minio server --quiet --address :19000 --certs-dir "$folder/certs" "$folder/objects"
by_hand gitea /usr/local/bin/gitea web --config "$folder/app.ini"
by_hand mlflow --property=EnvironmentFile="$folder/mlflow.env" "$python" -W ignore -m mlflow server \
    --backend-store-uri "postgresql+psycopg2:///bench_mlflow?host=/var/run/postgresql" \
    --artifacts-destination "$folder/artifacts" --host 0.0.0.0 --port 15000 --workers "$workers" \
    --app-name basic-auth \
    --uvicorn-opts "--ssl-keyfile $folder/certs/private.key --ssl-certfile $folder/certs/public.crt"

end=$(($(date +%s) + 180))
for address in 19000/minio/health/live 13000/api/healthz 15000/health; do
    until curl -fsS -o /dev/null "https://$name:$address" 2>"$folder/said"; do
        if [ "$(date +%s)" -ge $end ]; then
            cat "$folder/said" >&2
            journalctl --no-pager -n 30 -o cat -u 'bench-by-hand-*' >&2
            exit 1
        fi
        sleep 0.5
    done
done
gitea() { runuser -u postgres -- env HOME="$folder" /usr/local/bin/gitea --config "$folder/app.ini" "$@"; }
gitea admin user create --admin --username bench --password "$gitea" --email bench@invalid.test \
    --must-change-password=false >/dev/null
token=$(gitea admin user generate-access-token --username bench --token-name bench --scopes all --raw | tail -1)
cat <<END
{"minio": "$minio", "gitea": "$token", "mlflow": "$mlflow"}
END
