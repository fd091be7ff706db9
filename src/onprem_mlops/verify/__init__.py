"""Verification: testinfra suites over the pinned connections, run by pytest, turned into typed results.

The half that a command needs (``selection``, ``runner``, ``results``, ``display``) imports neither pytest nor
testinfra. The other half runs in a process of its own: ``session`` forks one worker a unit (a node, or a role's checks
of the site as a whole), ``plugin`` is pytest's side, and ``suite`` is all that a suite imports.
"""
