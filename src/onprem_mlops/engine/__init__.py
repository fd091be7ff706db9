"""The only package that imports pyinfra: inventory, connector, operations, facts, and the run of a plan's graph."""
