"""The stack as manifests for Kubernetes, and for KEDA where deployments scale with their load."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import urlencode

import yaml

from qserve.stacks.compose import HEALTHZ_PATH, SECRETS
from qserve.stacks.plan import BROKER, DEPLOY, GATEWAY, Plan, Service
from qserve.wire.application import condition_of

FILE = "kubernetes.yaml"
TOKEN = "api_token"
_MOUNTED = "/run/secrets/qserve"
_USER, _REDIS_USER = 10001, 999
_MEMORY_MIB, _GATEWAY_MIB, _BROKER_MIB, _MAXMEMORY = 1024, 768, 1024, "384mb"
_DEPLOY_TIMEOUT_S = "600"
_BESIDE_S = 30
"""How long new workers must have been ready before old ones are stopped: the deploy is done in that time, and requests
that the old version has accepted are finished by it."""
_LONGEST_WINDOW_S = 3600
Manifest = dict[str, Any]

_HEAD = """\
# Written by `{written_by}`; the same command with --check says whether this file is up to date.
#
#   docker build --target worker -t {image}-worker:{tag} . && docker push {image}-worker:{tag}
#   docker build --target gateway -t {image}-gateway:{tag} . && docker push {image}-gateway:{tag}
#   kubectl create secret generic {name} --from-file=secrets      # once{variables}
#   kubectl apply -f {file}
#   kubectl wait --for=condition=complete --timeout=600s job -l app.kubernetes.io/name={name}
#
# A release is a new tag of the images: write this file anew with it, and apply it. New workers start beside the old
# ones, the job deploys, and the old ones end when they have finished what they accepted.
"""


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Writes no anchors, and texts of several lines as they are."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.Node:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _Dumper.represent_text)


def kubernetes_text(plan: Plan, image: str, tag: str, broker: str = "") -> str:
    """Return the manifests.

    Parameters:
      image: The name of the images, with their registry and without ``-worker`` or ``-gateway``.
      broker: The address of a broker that is there already, without its password; "" for one in this stack.
    """
    writer = _Writer(plan, image, tag, broker)
    variables = "".join(f" --from-literal={name}=..." for name, value in plan.own_environment.items() if value is None)
    head = _HEAD.format(
        written_by=plan.written_by,
        image=image,
        tag=tag,
        name=plan.name,
        file=FILE,
        variables=variables and f", with{variables}",
    )
    documents = [
        (f"# {comment}\n" if comment else "")
        + yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
        for comment, manifest in writer.manifests()
    ]
    return "---\n".join([head, *documents])


class _Writer:
    """Makes the manifests of one stack."""

    def __init__(self, plan: Plan, image: str, tag: str, broker: str) -> None:
        self._plan, self._image, self._tag = plan, image, tag
        self._has_broker = not broker
        self._broker = broker or f"redis://{self._name(BROKER)}:6379/0"

    def manifests(self) -> Iterator[tuple[str, Manifest]]:
        """Yield each with a comment."""
        if self._has_broker:
            yield from self._broker_manifests()
        yield from self._gateway_manifests()
        scaled = False
        for service in self._plan.services:
            yield from self._worker_manifests(service)
            scaled = scaled or service.deployment.scaling is not None
        if scaled and self._plan.has_token:
            yield "The token with which KEDA asks the gateway", self._token_manifest()
        yield (
            "Registers the applications; its name changes with the images and with everything above",
            self._deploy_job(),
        )

    # -- the services -----------------------------------------------------------------------------

    def _broker_manifests(self) -> Iterator[tuple[str, Manifest]]:
        script = (
            "umask 077\n"
            f'echo "requirepass $(cat {_MOUNTED}/broker_password)" > /tmp/redis.conf\n'
            "exec redis-server /tmp/redis.conf --dir /data --appendonly yes --appendfsync always --save '' \\\n"
            f"  --maxmemory-policy noeviction --maxmemory {_MAXMEMORY}\n"
        )
        ping = ["sh", "-c", f"REDISCLI_AUTH=$(cat {_MOUNTED}/broker_password) redis-cli -e ping"]
        container = {
            "name": BROKER,
            "image": "redis:7",
            "command": ["sh", "-c", script],
            "ports": [{"name": "redis", "containerPort": 6379}],
            "readinessProbe": {"exec": {"command": ping}, "periodSeconds": 5, "timeoutSeconds": 3},
            "livenessProbe": {"tcpSocket": {"port": "redis"}, "periodSeconds": 10, "failureThreshold": 6},
            **self._limits(_BROKER_MIB),
        }
        pod = self._pod(BROKER, container, stop_s=30, user=_REDIS_USER)
        pod["spec"]["containers"][0]["volumeMounts"].append({"name": "data", "mountPath": "/data"})
        spec = {
            "serviceName": self._name(BROKER),
            "replicas": 1,
            "selector": {"matchLabels": self._labels(BROKER)},
            "template": pod,
            "volumeClaimTemplates": [
                {
                    "metadata": {"name": "data"},
                    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "8Gi"}}},
                }
            ],
        }
        yield (
            "What it has accepted survives its restart: every write is on the volume before it is confirmed",
            (self._manifest("apps/v1", "StatefulSet", BROKER, spec)),
        )
        yield "", self._service(BROKER, 6379, "redis")

    def _gateway_manifests(self) -> Iterator[tuple[str, Manifest]]:
        port = {"name": "http", "containerPort": 8000}
        healthz = {"httpGet": {"path": HEALTHZ_PATH, "port": "http"}, "periodSeconds": 5, "timeoutSeconds": 5}
        container = {
            "name": GATEWAY,
            "image": f"{self._image}-gateway:{self._tag}",
            "env": self._environment(with_token=self._plan.has_token),
            "ports": [port],
            # ready: it serves HTTP, it has read the applications, and the broker responds
            "readinessProbe": healthz,
            # a broker that is away is no reason to restart it
            "livenessProbe": {"tcpSocket": {"port": "http"}, "periodSeconds": 10, "failureThreshold": 3},
            **self._limits(_GATEWAY_MIB),
        }
        spec = {
            "replicas": 2,
            "selector": {"matchLabels": self._labels(GATEWAY)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": self._pod(GATEWAY, container, stop_s=30),
        }
        yield (
            "It has none of your code: it reads its routes from the broker",
            (self._manifest("apps/v1", "Deployment", GATEWAY, spec)),
        )
        yield "", self._service(GATEWAY, 80, "http")
        yield "", self._disruption_budget(GATEWAY)

    def _worker_manifests(self, service: Service) -> Iterator[tuple[str, Manifest]]:
        container = {
            "name": "worker",
            "image": f"{self._image}-worker:{self._tag}",
            "args": _literal(*service.command, *self._plan.from_folder),
            "env": self._environment(own=True),
            # ready: it has a replica. There is no probe of the start: a worker waits for the deploy of its code
            "readinessProbe": {
                "exec": {"command": ["grep", "-q", ".", "/proc/1/task/1/children"]},
                "periodSeconds": 2,
                "timeoutSeconds": 3,
            },
            **self._limits(service.memory_mib or _MEMORY_MIB, service.cpus, service.gpus, service.devices),
        }
        # beside the old ones, or one by one where there may be no second GPU, or no other node
        is_bound = service.gpus or service.devices or service.is_spread
        update = {"maxSurge": 0, "maxUnavailable": 1} if is_bound else {"maxSurge": "100%", "maxUnavailable": 0}
        template = self._pod(service.name, container, stop_s=service.stop_s)
        template["spec"] |= self._affinity(service)
        scaling = service.deployment.scaling
        spec = {
            **({} if scaling or service.is_scaled else {"replicas": service.containers}),
            "selector": {"matchLabels": self._labels(service.name)},
            "minReadySeconds": _BESIDE_S,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": update},
            "template": template,
        }
        where = f"{service.app}/{service.deployment.name}"
        yield where, self._manifest("apps/v1", "Deployment", service.name, spec)
        yield "", self._disruption_budget(service.name)
        if scaling is not None:
            yield f"{where} has as many pods as its calls need; KEDA reads how many wait and run", self._scaled(service)

    def _deploy_job(self) -> Manifest:
        container = {
            "name": DEPLOY,
            "image": f"{self._image}-worker:{self._tag}",
            "args": _literal(*self._plan.deploy, "--timeout-s", _DEPLOY_TIMEOUT_S),
            "env": self._environment(own=True),
            **self._limits(_MEMORY_MIB),
        }
        pod = self._pod(DEPLOY, container, stop_s=30)
        pod["spec"]["restartPolicy"] = "Never"
        spec = {"backoffLimit": 3, "ttlSecondsAfterFinished": 86400, "template": pod}
        basis = [self._image, self._tag, self._plan.target, [service.command for service in self._plan.services], pod]
        digest = hashlib.sha256(json.dumps(basis, sort_keys=True).encode()).hexdigest()[:8]
        return self._manifest("batch/v1", "Job", f"{DEPLOY}-{digest}", spec, labels=self._labels(DEPLOY))

    # -- KEDA -------------------------------------------------------------------------------------

    def _scaled(self, service: Service) -> Manifest:
        scaling = service.deployment.scaling
        assert scaling is not None
        least = max(1, scaling.min_replicas)  # without a pod, a new version could not start
        which = urlencode({"app": service.app, "deployment": service.deployment.name})
        metadata = {
            "url": f"http://{self._name(GATEWAY)}/-/queues?{which}",
            "valueLocation": "ongoing",
            "targetValue": f"{scaling.target_ongoing_requests:g}",
            "activationTargetValue": "0",
            **({"authMode": "bearer"} if self._plan.has_token else {}),
        }
        trigger: Manifest = {"type": "metrics-api", "metricType": "AverageValue", "metadata": metadata}
        if self._plan.has_token:
            trigger["authenticationRef"] = {"name": self._name(GATEWAY)}
        up, down = (
            {"stabilizationWindowSeconds": min(round(delay_s), _LONGEST_WINDOW_S)}
            for delay_s in (scaling.upscale_delay_s, scaling.downscale_delay_s)
        )
        spec = {
            "scaleTargetRef": {"name": self._name(service.name)},
            "pollingInterval": 5,
            "cooldownPeriod": round(scaling.downscale_delay_s),
            "minReplicaCount": least,
            "maxReplicaCount": max(least, scaling.max_replicas),
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": {"scaleUp": up, "scaleDown": down}}},
            "triggers": [trigger],
        }
        return self._manifest("keda.sh/v1alpha1", "ScaledObject", service.name, spec)

    def _token_manifest(self) -> Manifest:
        secret = {"parameter": "token", "name": self._plan.name, "key": TOKEN}
        return self._manifest("keda.sh/v1alpha1", "TriggerAuthentication", GATEWAY, {"secretTargetRef": [secret]})

    # -- parts ------------------------------------------------------------------------------------

    def _name(self, service: str) -> str:
        return f"{self._plan.name}-{service}"

    def _labels(self, service: str) -> dict[str, str]:
        return {"app.kubernetes.io/name": self._plan.name, "app.kubernetes.io/component": service}

    def _manifest(
        self, version: str, kind: str, service: str, spec: Mapping[str, Any], labels: Mapping[str, str] | None = None
    ) -> Manifest:
        metadata = {"name": self._name(service), "labels": dict(labels or self._labels(service))}
        return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": dict(spec)}

    def _service(self, service: str, port: int, target: str) -> Manifest:
        ports = [{"name": target, "port": port, "targetPort": target}]
        return self._manifest("v1", "Service", service, {"selector": self._labels(service), "ports": ports})

    def _disruption_budget(self, service: str) -> Manifest:
        spec = {"maxUnavailable": 1, "selector": {"matchLabels": self._labels(service)}}
        return self._manifest("policy/v1", "PodDisruptionBudget", service, spec)

    def _environment(self, *, own: bool = False, with_token: bool = False) -> list[Manifest]:
        files = {variable: f"{_MOUNTED}/{name}" for name, variable in SECRETS.items()}
        if with_token:
            files["QSERVE_API_TOKEN_FILE"] = f"{_MOUNTED}/{TOKEN}"
        plain = {"QSERVE_BROKER_URL": self._broker, **files, **self._plan.environment}
        found: list[Manifest] = [{"name": name, "value": value} for name, value in plain.items()]
        for name, value in self._plan.own_environment.items() if own else ():
            secret = {"secretKeyRef": {"name": self._plan.name, "key": name}}
            found.append({"name": name, **({"valueFrom": secret} if value is None else {"value": _literal(value)[0]})})
        return found

    def _affinity(self, service: Service) -> Manifest:
        """Return on which nodes the pods of a deployment may be."""
        found: Manifest = {}
        conditions = [(name, *condition_of(wanted)) for name, wanted in service.deployment.resources.labels.items()]
        if conditions:
            matches = [
                {"key": name, "operator": "In" if is_one_of_them else "NotIn", "values": values}
                for name, values, is_one_of_them in conditions
            ]
            terms = {"nodeSelectorTerms": [{"matchExpressions": matches}]}
            found["nodeAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": terms}
        if service.is_spread:
            labels = {"matchLabels": self._labels(service.name)}
            apart = [{"labelSelector": labels, "topologyKey": "kubernetes.io/hostname"}]
            found["podAntiAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": apart}
        return {"affinity": found} if found else {}

    def _limits(
        self, memory_mib: int, cpus: float = 0.0, gpus: int = 0, others: Mapping[str, int] = MappingProxyType({})
    ) -> Manifest:
        memory = {"memory": f"{memory_mib}Mi"}
        devices = {name: str(count) for name, count in others.items()}
        devices |= {"nvidia.com/gpu": str(gpus)} if gpus else {}
        requests = {"cpu": f"{cpus:g}" if cpus else "100m", **memory, **devices}
        limits = {**({"cpu": f"{cpus:g}"} if cpus else {}), **memory, **devices}
        return {"resources": {"requests": requests, "limits": limits}}

    def _pod(self, service: str, container: Manifest, *, stop_s: int, user: int = _USER) -> Manifest:
        names = [*SECRETS, *([TOKEN] if service == GATEWAY and self._plan.has_token else [])]
        names = ["broker_password"] if service == BROKER else names
        mounts = [
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "secrets", "mountPath": _MOUNTED, "readOnly": True},
        ]
        secret = {
            "secretName": self._plan.name,
            "defaultMode": 0o440,
            "items": [{"key": name, "path": name} for name in names],
        }
        return {
            "metadata": {"labels": self._labels(service)},
            "spec": {
                "automountServiceAccountToken": False,
                # no variables for each service: those of one named qserve would be taken for settings
                "enableServiceLinks": False,
                "terminationGracePeriodSeconds": stop_s,
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": user,
                    "runAsGroup": user,
                    "fsGroup": user,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [
                    {
                        **container,
                        "securityContext": {
                            "allowPrivilegeEscalation": False,
                            "readOnlyRootFilesystem": True,
                            "capabilities": {"drop": ["ALL"]},
                        },
                        "volumeMounts": mounts,
                    }
                ],
                "volumes": [
                    {"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
                    {"name": "secrets", "secret": secret},
                ],
            },
        }


def _literal(*words: str) -> list[str]:
    """Return words as Kubernetes passes them on unchanged: it replaces ``$(NAME)`` by a variable."""
    return [word.replace("$(", "$$(") for word in words]
