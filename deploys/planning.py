"""Days 1–7 (Tage 1–7, Planung): performance of what is there, room to grow, integration, security review.

No role belongs to this phase yet; `./mlops deploy planning` says so.
"""

from onprem_mlops.plan import Phase

PHASE = Phase(
    name="planning", days="1–7", title="Planung: measure what is there, plan the integration, review security", uses=()
)
