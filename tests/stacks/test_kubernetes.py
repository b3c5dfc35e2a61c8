"""The manifests for Kubernetes and KEDA: what they have for which application."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from applications import APPLICATIONS, plan_for

from qserve.stacks.kubernetes import kubernetes_text

Manifest = dict[str, Any]


def manifests(app: str, *, tag: str = "v1", broker: str = "", **changes: Any) -> dict[tuple[str, str], Manifest]:
    """Return the manifests of the stack of an application, by kind and name."""
    text = kubernetes_text(plan_for(app, spreads_gpus=True, **changes), "registry/shop", tag, broker)
    return {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(text) if one}


def container_of(manifest: Manifest) -> Manifest:
    (found,) = manifest["spec"]["template"]["spec"]["containers"]
    return dict(found)


def job_of(found: dict[tuple[str, str], Manifest]) -> str:
    (name,) = (name for kind, name in found if kind == "Job")
    return name


def test_each_deployment_has_pods_that_start_beside_the_old_ones() -> None:
    found = manifests("graph")

    spec = found["Deployment", "shop-spanish-responder"]["spec"]
    assert (spec["replicas"], spec["minReadySeconds"]) == (2, 30)
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": "100%", "maxUnavailable": 0}
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] == 30
    worker = container_of(found["Deployment", "shop-spanish-responder"])
    assert worker["image"] == "registry/shop-worker:v1"
    assert worker["args"] == ["worker", "--name", "default", "--deployment", "SpanishResponder", "--replicas", "1"]
    assert container_of(found["Deployment", "shop-gateway"])["readinessProbe"]["httpGet"]["path"] == "/-/healthz"
    assert ("PodDisruptionBudget", "shop-spanish-responder") in found


def test_every_pod_finds_itself_by_its_labels_and_may_do_nothing_else() -> None:
    for (kind, name), manifest in manifests("two").items():
        spec = manifest["spec"]
        if kind in ("Deployment", "StatefulSet"):
            assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"], name
        if "template" in spec:
            pod, container = spec["template"]["spec"], container_of(manifest)
            assert pod["automountServiceAccountToken"] is pod["enableServiceLinks"] is False
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]


def test_a_new_image_is_deployed_by_a_new_job_and_the_same_one_by_the_same() -> None:
    assert job_of(manifests("graph")) == job_of(manifests("graph"))
    assert job_of(manifests("graph")) != job_of(manifests("graph", tag="v2"))
    assert container_of(manifests("graph")["Job", job_of(manifests("graph"))])["args"][:2] == ["deploy", "shop:app"]


def test_what_scales_with_its_load_is_scaled_by_keda_on_the_calls_that_wait_and_run() -> None:
    found = manifests("autoscaled")

    spec = found["ScaledObject", "shop-model"]["spec"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"], spec["cooldownPeriod"]) == (1, 8, 60)
    (trigger,) = spec["triggers"]
    assert trigger["metadata"] == {
        "url": "http://shop-gateway/-/queues?app=default&deployment=Model",
        "valueLocation": "ongoing",
        "targetValue": "3",
        "activationTargetValue": "0",
    }
    assert "replicas" not in found["Deployment", "shop-model"]["spec"]  # or each `apply` would undo what KEDA did
    assert ("ScaledObject", "shop-front") not in found


def test_keda_shows_the_gateway_its_token() -> None:
    found = manifests("autoscaled", has_token=True)

    (trigger,) = found["ScaledObject", "shop-model"]["spec"]["triggers"]
    assert trigger["metadata"]["authMode"] == "bearer"
    assert ("TriggerAuthentication", trigger["authenticationRef"]["name"]) in found
    environment = {one["name"]: one.get("value") for one in container_of(found["Deployment", "shop-gateway"])["env"]}
    assert environment["QSERVE_API_TOKEN_FILE"] == "/run/secrets/qserve/api_token"
    worker = container_of(found["Deployment", "shop-model"])
    assert "QSERVE_API_TOKEN_FILE" not in {one["name"] for one in worker["env"]}


def test_a_pod_has_gpus_of_its_own_and_as_many_replicas_as_they_have_room_for() -> None:
    manifest = manifests("gpu")["Deployment", "shop-model"]

    container = container_of(manifest)
    assert manifest["spec"]["replicas"] == 2
    assert container["args"][-2:] == ["--replicas", "2"]
    limits = {"cpu": "8", "memory": f"{2 * 1024 + 128}Mi", "nvidia.com/gpu": "1"}
    assert container["resources"]["limits"] == limits
    assert manifest["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def test_pods_are_on_the_nodes_that_the_code_asks_for_and_apart_where_it_says_so() -> None:
    spec = manifests("nodes")["Deployment", "shop-model"]["spec"]
    affinity = spec["template"]["spec"]["affinity"]

    (term,) = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [
        {"key": "zone", "operator": "In", "values": ["a", "b"]},
        {"key": "kind", "operator": "NotIn", "values": ["spot"]},
    ]
    (apart,) = affinity["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert apart == {"labelSelector": spec["selector"], "topologyKey": "kubernetes.io/hostname"}
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}, "there may be no other node"
    assert container_of(manifests("nodes")["Deployment", "shop-model"])["resources"]["limits"] == {
        "memory": "1024Mi", "example.com/licence": "1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("in_cluster", "names"),
    [
        (True, ["resources (slot)"]),
        (
            False,
            ["label_selector or accelerator_type", "resources (example.com/licence, slot)", "max_replicas_per_node"],
        ),
    ],
)
def test_what_no_stack_can_obey_is_named(in_cluster: bool, names: list[str]) -> None:
    (service,) = plan_for("nodes", spreads_gpus=in_cluster).services

    assert service.ignored(in_cluster=in_cluster) == names


def test_variables_come_from_the_file_or_from_the_secret() -> None:
    worker = container_of(manifests("environment")["Deployment", "shop-model"])

    variables = {one["name"]: one for one in worker["env"]}
    assert variables["PRICE"]["value"] == "5$ 'each': \"\u00e4\" $$(HOME)"
    assert variables["TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "shop", "key": "TOKEN"}


def test_a_broker_that_is_there_already_is_used() -> None:
    found = manifests("graph", broker="rediss://redis.example:6380/0")

    assert not [name for _, name in found if "broker" in name]
    variables = {one["name"]: one.get("value") for one in container_of(found["Deployment", "shop-gateway"])["env"]}
    assert variables["QSERVE_BROKER_URL"] == "rediss://redis.example:6380/0"


@pytest.mark.long
@pytest.mark.parametrize("app", APPLICATIONS)
def test_they_are_what_the_published_schemas_say(app: str) -> None:
    import kubernetes_validate
    from cloudcoil.models.keda import v1alpha1

    for (kind, _), manifest in manifests(app, has_token=True).items():
        if manifest["apiVersion"].startswith("keda.sh/"):
            getattr(v1alpha1, kind).model_validate(manifest)
        else:
            kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.long
def test_the_published_schemas_notice_a_mistake() -> None:
    import kubernetes_validate
    from cloudcoil.models.keda import v1alpha1
    from pydantic import ValidationError

    found = manifests("autoscaled")
    found["Deployment", "shop-model"]["spec"]["replica"] = 1
    found["ScaledObject", "shop-model"]["spec"]["triggers"] = "metrics-api"

    with pytest.raises(kubernetes_validate.ValidationError):
        version = kubernetes_validate.latest_version()
        kubernetes_validate.validate(found["Deployment", "shop-model"], version, strict=True)
    with pytest.raises(ValidationError):
        v1alpha1.ScaledObject.model_validate(found["ScaledObject", "shop-model"])
