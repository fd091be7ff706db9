#!/usr/bin/env bash
# The floor: the same four nodes laid down by hand, as fast as one shell script that knows everything can be.
#
#   floor.sh FOLDER KUBECONFIG
#
# FOLDER was prepared before the clock started (bench/floor/prepare.py): the configuration files of each node as they
# lie on nodes that our own deploy has laid down, certificates and secrets among them, one archive a node; the mirror's
# tree as two archives; lists of what each node downloads and pulls. The script works nothing out, reads no state,
# compares nothing, checks no checksum and cannot be run a second time. All nodes run side by side over one multiplexed
# SSH connection each; waits stand where this very site needs them. What it leaves passes `./mlops verify`.
set -euo pipefail
folder=$1 kubeconfig=$2
# shellcheck source=/dev/null
. "$folder/site.env" # mirror_url, endpoint (URL as nodes know the API), api_address (as this machine does), api_name
trap end EXIT
began=$(date +%s%N)

run() { # node command...
    local node=$1
    shift
    ssh -F "$folder/ssh_config" "$node" sudo -n "$@"
}
script() { # node <script; it is read to its end first, so that no command in it takes it for its own input
    # shellcheck disable=SC2016
    ssh -F "$folder/ssh_config" "$1" 'sudo -n bash -euo pipefail -c "$(cat)" </dev/null'
}
unpacked() { run "$1" tar -xp --numeric-owner -C "$3" <"$folder/$2"; } # node archive where
done_at() { printf '%6.1f s  %s\n' "$((($(date +%s%N) - began) / 100000000))e-1" "$*"; }
until_there() { while [ ! -e "$folder/done/$1" ]; do sleep 0.05; done; }
is_there() { : >"$folder/done/$1"; }
end() {
    jobs -p | xargs -r kill 2>/dev/null || true
    for node in cp1 w1 s1 b1; do ssh -F "$folder/ssh_config" -O exit "$node" 2>/dev/null || true; done
}
APT='DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Options::=--force-confold'

# --- every node: names, trust, kernel, journal, SSH, sudo

base() {
    unpacked "$1" "$1.tar" /
    script "$1" <<'END'
for one in /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources; do
    [ ! -e $one ] || mv $one $one.onprem-mlops-saved
done
sysctl -q -p /etc/sysctl.d/90-onprem-mlops.conf
swapoff -a
systemctl daemon-reload
systemctl restart systemd-journald ssh
END
    done_at "$1: base"
}

# --- s1: the mirror. Packages and the registry come first, so that the other nodes can begin; images follow.

mirror() {
    script s1 <<'END'
for one in onprem-mirror onprem-registry; do
    useradd --system --no-create-home --user-group --shell /usr/sbin/nologin $one
done
mkdir -p /srv/mirror
END
    unpacked s1 mirror-packages.tar /srv/mirror
    base s1
    {
        unpacked s1 mirror-rest.tar /srv/mirror
        is_there tree
        done_at "s1: whole mirror tree"
    } &
    local rest=$!
    script s1 <<END
chgrp onprem-mirror /etc/onprem-mirror/key.pem
mv /etc/apt/sources.list.d/onprem-mlops.sources /root/
$APT update
$APT --no-install-recommends install nginx curl >/dev/null
mv /root/onprem-mlops.sources /etc/apt/sources.list.d/
cp --no-preserve=all /srv/mirror/current/files/registry/*/registry /usr/local/bin/registry
chmod 755 /usr/local/bin/registry
systemctl enable -q --now onprem-registry onprem-mirror
until curl -fs --cacert /usr/local/share/ca-certificates/onprem-mlops.crt $mirror_url/healthz >/dev/null; do
    sleep 0.1
done
END
    is_there mirror
    done_at 's1: mirror serves'
    packages s1
    wait $rest
}

# --- every node: packages in one go, time, updates, packet filter

packages() { # node package...
    local node=$1
    shift
    until_there mirror
    script "$node" <<END
$APT update
$APT --no-install-recommends install ca-certificates chrony curl nftables unattended-upgrades $* >/dev/null
update-ca-certificates >/dev/null 2>&1
systemctl enable -q --now nftables
END
    done_at "$node: packages"
}

# --- cp1 and w1: container runtime, kubelet, images

member() { # node package...
    local node=$1
    base "$node"
    packages "$node" runc conntrack ethtool iptables socat "${@:2}"
    until_there tree
    script "$node" <<END
apt-mark hold runc ${*:2} >/dev/null
cd /
curl -fsS --no-progress-meter --parallel --create-dirs --cacert /usr/local/share/ca-certificates/onprem-mlops.crt \
    --config - <<'LIST'
$(cat "$folder/$node.downloads")
LIST
chmod 755 /usr/local/bin/* /opt/cni/bin/*
systemctl enable -q --now containerd
systemctl enable -q kubelet
for one in $(cat "$folder/$node.images"); do crictl pull \$one >/dev/null 2>&1 </dev/null & done
END
    done_at "$node: ready for the cluster"
}

# --- the cluster

control_plane() {
    member cp1 haproxy
    script cp1 >"$folder/discovery.conf" <<END
systemctl enable -q --now approve-kubelet-certificates.timer
kubeadm init --config /etc/kubernetes/kubeadm.yaml --skip-token-print >/var/log/kubeadm-init.log 2>&1
cat <<CONF
apiVersion: v1
kind: Config
clusters: [{name: site, cluster: {server: "$endpoint", certificate-authority-data: \$(base64 -w0 /etc/kubernetes/pki/ca.crt)}}]
users: [{name: joining, user: {token: \$(kubeadm token create --kubeconfig /etc/kubernetes/admin.conf --ttl 30m)}}]
contexts: [{name: joining, context: {cluster: site, user: joining}}]
current-context: joining
CONF
END
    done_at 'cp1: kubeadm init'
    is_there discovery
    script cp1 >"$kubeconfig" <<END
sed 's|^ *server: .*|    server: $api_address\n    tls-server-name: $api_name|' /etc/kubernetes/admin.conf
END
    script cp1 <<END
export KUBECONFIG=/etc/kubernetes/admin.conf
apply() { kubectl apply --server-side --force-conflicts --field-manager=onprem-mlops "\$@" >/dev/null; }
apply -k /etc/kubernetes/addons/calico
apply -f - <<'OBJECTS'
$(cat "$folder/objects.yaml")
OBJECTS
END
    done_at 'cp1: Calico and names applied'
    until_there joined
    script cp1 <<'END'
export KUBECONFIG=/etc/kubernetes/admin.conf
approve-kubelet-certificates 60 cp1 w1 >/dev/null
kubectl apply --server-side --field-manager=onprem-mlops -f - >/dev/null <<'NODES'
{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "cp1", "annotations": {"onprem-mlops/taints": ""}}}
---
{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "w1", "annotations": {"onprem-mlops/taints": ""},
 "labels": {"node-role.kubernetes.io/worker": ""}}}
NODES
kubectl wait --for=condition=Ready --timeout=180s node/cp1 node/w1 >/dev/null
for one in daemonset/calico-node daemonset/kube-proxy deployment/calico-kube-controllers deployment/coredns; do
    kubectl -n kube-system rollout status --timeout=180s $one >/dev/null
done
END
    done_at 'the cluster is ready'
}

worker() {
    member w1
    until_there discovery
    script w1 <<END
umask 077
mkdir -p /run/kubeadm-join
cat >/run/kubeadm-join/discovery.conf <<'CONF'
$(cat "$folder/discovery.conf")
CONF
umask 022
kubeadm join --config /etc/kubernetes/kubeadm.yaml >/var/log/kubeadm-join.log 2>&1
rm -rf /run/kubeadm-join
END
    is_there joined
    done_at 'w1: joined'
}

backup() {
    base b1
    packages b1
}

umask 077
mkdir "$folder/done"
for part in mirror control_plane worker backup; do $part & done
for _ in 1 2 3 4; do
    wait -n || { echo 'a part of the script failed' >&2; exit 1; }
done
