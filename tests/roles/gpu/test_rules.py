"""Who may have a GPU, as the API server is told. What it makes of it only a cluster shows: roles/gpu/verify."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jinja2
import pytest
from ruamel.yaml import YAML

from onprem_mlops.paths import REPOSITORY
from onprem_mlops.verify.cluster import PLATFORM_LABEL
from roles.gpu.settings import Settings


@pytest.fixture
def spec() -> dict[str, Any]:
    """The policy of a site with one GPU node and one team."""
    template = (REPOSITORY / "roles/gpu/templates/rules.yaml.j2").read_text()
    settings = SimpleNamespace(resource=Settings.resource, nodes=lambda site: [SimpleNamespace(name="g1")])
    text = jinja2.Template(template, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True).render(
        site=None, settings=settings, namespaces='["vision"]'
    )
    policy, binding = YAML(typ="safe").load_all(text)
    assert binding["spec"]["policyName"] == policy["metadata"]["name"]
    found: dict[str, Any] = policy["spec"]
    return found


def test_namespaces_of_checks_are_left_out(spec: dict[str, Any]) -> None:
    left_out = spec["matchConstraints"]["namespaceSelector"]["matchExpressions"]
    assert {"key": PLATFORM_LABEL, "operator": "DoesNotExist"} in left_out


def test_a_message_is_one_line(spec: dict[str, Any]) -> None:
    """The API server shows no other."""
    for rule in spec["validations"]:
        assert "\n" not in rule.get("message", "") + rule.get("messageExpression", "") + rule["expression"]


def test_nodes_and_namespaces_are_those_of_the_site(spec: dict[str, Any]) -> None:
    rules = " ".join(rule["expression"] for rule in spec["validations"])
    assert 'request.namespace in ["vision"]' in rules
    assert "nodeName.orValue('') in [\"g1\"]" in rules
