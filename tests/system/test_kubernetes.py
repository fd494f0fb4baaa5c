"""The manifest for Kubernetes: valid by its schemas, and of one piece with the image, the command and itself."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from diastole.cli.main import load
from diastole.experiments.experiment import Experiment

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS: list[dict[str, Any]] = list(
    YAML(typ="safe", pure=True).load_all((ROOT / "packaging/kubernetes/diastole.yaml").read_text())
)
PODS = {each["metadata"]["name"]: each["spec"]["template"] for each in DOCUMENTS if each["kind"] == "StatefulSet"}


def named(kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in DOCUMENTS if each["kind"] == kind}


def container(name: str) -> dict[str, Any]:
    (found,) = PODS[name]["spec"]["containers"]
    return dict(found)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda each: f"{each['kind']}/{each['metadata']['name']}")
def test_every_part_is_valid_by_the_schemas_of_kubernetes(document: dict[str, Any]) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    validate.validate(document, "1.33", strict=True)


def test_schemas_find_what_is_wrong() -> None:
    validate = pytest.importorskip("kubernetes_validate")
    wrong = named("Service")["diastole-devices"] | {"spec": {"ports": [{"port": "many"}]}}
    with pytest.raises(validate.ValidationError):
        validate.validate(wrong, "1.33", strict=True)


def test_the_coordinator_is_given_what_its_command_takes() -> None:
    service = container("diastole-coordinator")
    name, *words = service["args"]
    params = load(name).make_context(name, words).params
    assert [str(path) for path in params["experiments"]] == ["/config/federation.toml"]
    assert not params["insecure"]
    ports = {port["name"]: port["containerPort"] for port in service["ports"]}
    assert (params["listen"], params["web"]) == (f"0.0.0.0:{ports['devices']}", f"0.0.0.0:{ports['web']}")
    assert ports["enroll"] == ports["devices"] + 2
    assert params["web_name"] == ("diastole-coordinator",)
    assert params["web_name"][0] in named("Service")
    assert Path(params["state"]).is_relative_to("/state")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        _, *path = service[probe]["exec"]["command"]
        assert path == ["admin", "health"]
    text = named("ConfigMap")["diastole-experiment"]["data"]["federation.toml"]
    assert Experiment.parse(tomllib.loads(text), "the manifest").devices == 6


def test_the_database_is_the_one_that_is_beside_it() -> None:
    url = re.fullmatch(
        r"postgresql\+psycopg://(\w+):\$\((\w+)\)@([\w-]+):(\d+)/(\w+)",
        next(arg for arg in container("diastole-coordinator")["args"] if arg.startswith("--database=")).partition("=")[
            2
        ],
    )
    assert url
    user, password, host, port, database = url.groups()
    coordinator = {each["name"]: each for each in container("diastole-coordinator")["env"]}
    postgres = {each["name"]: each for each in container("diastole-postgres")["env"]}
    assert (postgres["POSTGRES_USER"]["value"], postgres["POSTGRES_DB"]["value"]) == (user, database)
    assert coordinator[password]["valueFrom"] == postgres["POSTGRES_PASSWORD"]["valueFrom"]
    assert named("Service")[host]["spec"]["ports"][0]["port"] == int(port)


def test_pods_may_do_little() -> None:
    for name, pod in PODS.items():
        spec, own = pod["spec"], container(name)["securityContext"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not spec["automountServiceAccountToken"]
        assert (own["allowPrivilegeEscalation"], own["readOnlyRootFilesystem"]) == (False, True)
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert re.search(r":\d+\.\d+", container(name)["image"])
        assert "memory" in container(name)["resources"]["limits"]
    user = re.search(r"--uid (\d+)", (ROOT / "Dockerfile").read_text())
    assert user
    assert PODS["diastole-coordinator"]["spec"]["securityContext"]["runAsUser"] == int(user[1])


def test_selectors_ports_and_volumes_lead_somewhere() -> None:
    labels = {name: pod["metadata"]["labels"] for name, pod in PODS.items()}
    for each in named("StatefulSet").values():
        spec = each["spec"]
        assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
        assert spec["serviceName"] in named("Service")
        own = {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
        own |= {claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]}
        (inside,) = spec["template"]["spec"]["containers"]
        assert {mount["name"] for mount in inside["volumeMounts"]} == own
    for service in named("Service").values():
        (pod,) = (name for name, found in labels.items() if service["spec"]["selector"].items() <= found.items())
        there = {port["name"] for port in container(pod)["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= there
    for name, policy in named("NetworkPolicy").items():
        assert policy["spec"]["podSelector"]["matchLabels"] == labels[name]
        allowed = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
        assert allowed == {port["containerPort"] for port in container(name)["ports"]}
    assert named("NetworkPolicy")["diastole-postgres"]["spec"]["egress"] == []
