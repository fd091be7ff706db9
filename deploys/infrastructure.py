"""Days 8–14 (Tage 8–14, Infrastruktur): hardware and software, Kubernetes, Git.

Also a plain pyinfra deploy script: pyinfra inventories/lab/inventory.py deploys/infrastructure.py
"""

from onprem_mlops.plan import Phase, Use, needs, under_pyinfra

PHASE = Phase(
    name="infrastructure",
    days="8–14",
    title="Infrastruktur: hardware and software, Kubernetes, Git",
    uses=(
        # What of a node needs packages waits for the mirror; what the mirror needs of its node does not.
        Use(
            "node",
            steps={
                "packages": needs("mirror.serve"),
                # Nothing waits for automatic updates: nodes of the cluster lay them down while its pods come up.
                "updates": needs(here=("node.packages", "kubernetes.join", "kubernetes.mark", "gateway")),
            },
        ),
        Use("firewall", here=("node.packages",)),
        Use("mirror", here=("node.base",)),
        Use("containerd", after=("mirror",), here=("node.packages",)),
        # The API learns late of a control plane's pods, kube-proxy comes by itself: nodes have better to do meanwhile.
        Use(
            "kubernetes",
            here=("containerd",),
            steps={
                "ready": needs(here=("network.ready", "node.updates")),
                "services": needs(here=("network.connected",)),
            },
        ),
        # Images come while the control plane starts; the network's objects need only its API, no other node.
        Use(
            "network",
            here=("containerd",),
            steps={
                "calico": needs("kubernetes.init", here=("kubernetes.join_control_plane",)),
                "names": needs("kubernetes.init", here=("kubernetes.join_control_plane",)),
                "ready": needs("kubernetes.mark"),
            },
        ),
        # Nobody waits for a GPU node's kernel and modules: they come once it has joined, beside what others still do.
        Use(
            "gpu",
            steps={
                "prepare": needs(here=("node.packages", "kubernetes.join")),
                "cluster": needs("kubernetes.init", here=("kubernetes.join_control_plane",)),
                "driver": needs("kubernetes.mark", "network.ready", here=("network.connected", "kubernetes.services")),
            },
        ),
        # A standby that cannot follow ends the run: not before everybody has the passwords that the server has.
        Use("postgresql", here=("node.packages",), steps={"follow": needs("gitea", "gitea_runner", "mlflow")}),
        Use("object_store", here=("node.packages",)),
        Use("gateway", after=("mirror",), here=("node.packages",)),
        Use("gitea", here=("node.packages",), steps={"serve": needs("postgresql.serve", "object_store")}),
        Use(
            "gitea_runner",
            here=("node.packages",),
            steps={"actions": needs("gitea.people"), "serve": needs("gitea.people", "gateway")},
        ),
        # Its environment is made while the services that it needs come up.
        Use("mlflow", here=("node.packages",), steps={"serve": needs("postgresql.serve", "object_store")}),
    ),
)

if under_pyinfra():
    from onprem_mlops.engine.script import lay_down

    lay_down(PHASE)
