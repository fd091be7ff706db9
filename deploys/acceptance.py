"""Days 22–30 (Tage 22–30, Test und Optimierung): functional, performance and security tests, feedback, training.

No role belongs to this phase yet; `./mlops deploy acceptance` says so.
"""

from onprem_mlops.plan import Phase

PHASE = Phase(
    name="acceptance", days="22–30", title="Test und Optimierung: tests, feedback, documents, training", uses=()
)
