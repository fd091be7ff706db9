"""Days 15–21 (Tage 15–21, Umsetzung und Integration): MLOps processes, interfaces for data and serving, security.

No role belongs to this phase yet; `./mlops deploy integration` says so.
"""

from onprem_mlops.plan import Phase

PHASE = Phase(
    name="integration",
    days="15–21",
    title="Umsetzung und Integration: MLOps processes, interfaces, all security measures",
    uses=(),
)
