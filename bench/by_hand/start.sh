#!/bin/sh
# The same programs as the platform's on the same node, started by hand: TLS and a login everywhere, to their database
# too, objects encrypted, teams kept apart, and all else as the programs have it by default. All as user postgres.
# Usage: start.sh FOLDER FULL_NAME PYTHON WORKERS; prints what a client needs, as JSON.
set -eu
umask 077
folder=$1 name=$2 python=$3 workers=$4
cd /
mkdir -m 700 "$folder"
mkdir "$folder"/certs "$folder"/objects "$folder"/gitea "$folder"/artifacts
cp /etc/gitea/chain.pem "$folder/certs/public.crt"
cp /etc/gitea/key.pem "$folder/certs/private.key"
word() { openssl rand -hex 16; }
minio=$(word) gitea=$(word) mlflow=$(word) database=$(word)
postgres=$(ls -d /usr/lib/postgresql/*/bin | tail -1)
tls="sslmode=verify-full&sslrootcert=/etc/ssl/certs/ca-certificates.crt"

cat >"$folder/minio.env" <<END
MINIO_ROOT_USER=bench
MINIO_ROOT_PASSWORD=$minio
MINIO_UPDATE=off
MINIO_BROWSER=off
MINIO_ROOTDRIVE_THRESHOLD_SIZE=1
MINIO_KMS_SECRET_KEY=bench:$(openssl rand -base64 32)
MINIO_KMS_AUTO_ENCRYPTION=on
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
HOST = $name:15432
USER = postgres
PASSWD = $database
SSL_MODE = verify-full
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
database_uri = postgresql+psycopg2://postgres:$database@$name:15432/bench_mlflow_auth?$tls
admin_username = bench
admin_password = $mlflow
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 30
END
cat >"$folder/mlflow.env" <<END
MLFLOW_BACKEND_STORE_URI=postgresql+psycopg2://postgres:$database@$name:15432/bench_mlflow?$tls
MLFLOW_AUTH_CONFIG_PATH=$folder/mlflow.ini
MLFLOW_FLASK_SERVER_SECRET_KEY=$(word)
MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
MLFLOW_ENABLE_WORKSPACES=true
MLFLOW_SERVER_ALLOWED_HOSTS=*
PYTHONDONTWRITEBYTECODE=1
HOME=$folder
END
echo "$database" >"$folder/password"
chown -R postgres: "$folder"
runuser -u postgres -- "$postgres/initdb" -D "$folder/database" -k -E UTF8 --locale=C.UTF-8 \
    -A scram-sha-256 --pwfile="$folder/password" >/dev/null
echo "hostssl all postgres samehost scram-sha-256" >>"$folder/database/pg_hba.conf"

by_hand() {
    unit=bench-by-hand-$1
    shift
    systemd-run --quiet --collect --unit="$unit" --property=User=postgres --setenv=HOME="$folder" "$@"
}
by_hand postgresql "$postgres/postgres" -D "$folder/database" -c port=15432 -c listen_addresses="$name" \
    -c unix_socket_directories="$folder" -c ssl=on -c ssl_cert_file="$folder/certs/public.crt" \
    -c ssl_key_file="$folder/certs/private.key"
database() { runuser -u postgres -- env PGPASSFILE="$folder/pgpass" "$@" -h "$folder" -p 15432; }
echo "*:*:*:postgres:$database" >"$folder/pgpass"
chown postgres: "$folder/pgpass"
timeout 60 sh -c "until '$postgres/pg_isready' -q -h '$folder' -p 15432; do sleep 0.2; done" || {
    journalctl --no-pager -n 10 -o cat -u bench-by-hand-postgresql >&2
    exit 1
}
for one in bench_gitea bench_mlflow bench_mlflow_auth; do
    database createdb "$one"
done
by_hand minio --property=EnvironmentFile="$folder/minio.env" \
    /usr/local/bin/minio server --quiet --address :19000 --certs-dir "$folder/certs" "$folder/objects"
by_hand gitea /usr/local/bin/gitea web --config "$folder/app.ini"
by_hand mlflow --property=EnvironmentFile="$folder/mlflow.env" "$python" -W ignore -m mlflow server \
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
