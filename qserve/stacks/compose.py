"""The stack as a file for docker compose."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from qserve.stacks.files import SECRETS_FOLDER
from qserve.stacks.plan import Plan, Service

FILE = "docker-compose.yml"
SECRETS = {"qserve_key": "QSERVE_SECRET_KEY_FILE", "broker_password": "QSERVE_BROKER_PASSWORD_FILE"}
"""Files in the folder ``secrets``, and the variable that says where a container has each of them."""
HEALTHZ_PATH = "/-/healthz"
_HEALTHZ = f"import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000{HEALTHZ_PATH}', timeout=4)"
_MOUNTED = "/run/secrets"

_HEAD = """\
# Written by `{written_by}`; the same command with --check says whether this file is up to date.
#
#   docker compose up -d --build                       # start it
#   docker compose logs -f deploy                      # what became of the deploy
#   docker compose up -d --no-deps --scale {first}=3 {first}
#   docker compose down                                # stop it; with -v also delete what the broker stores
#
# Settings, from the environment or from a file named .env beside this one:
#   QSERVE_PORT              the port at which the gateway is published ({port})
#   QSERVE_TAG               the tag of both images (latest)
#   QSERVE_BROKER_MEMORY, QSERVE_WORKER_MEMORY, QSERVE_GATEWAY_MEMORY
#                            the memory limit of a container (1g, 1g, 768m), where the code does not say one
#   QSERVE_BROKER_MAXMEMORY  the memory limit of the broker's data (384mb): less than half of its container's limit
#
# The key that signs all messages and the broker's password are in the folder secrets/: keep it out of repositories.

x-hardened: &hardened
  read_only: true
  # in memory, and counted towards the memory limit; remove noexec if a library compiles code into its cache
  tmpfs: ["/tmp:size=64m,mode=1777,noexec,nosuid,nodev"]
  cap_drop: [ALL]
  security_opt: ["no-new-privileges:true"]
  # processes and threads: user code that starts too many must not take down the host
  pids_limit: 512
  restart: unless-stopped

x-environment: &environment
  QSERVE_BROKER_URL: redis://broker:6379/0
{environment}
# No ports and no container_name, so that `--scale` can add more containers.
x-worker: &worker
  <<: *hardened
  image: {name}-worker:${{QSERVE_TAG:-latest}}
  # the service deploy builds it; remove this line if the image comes from a registry
  pull_policy: never
  mem_limit: ${{QSERVE_WORKER_MEMORY:-1g}}
  environment:
    <<: *environment
{own_environment}  secrets: {secret_names}
  depends_on: [broker]
  # a worker is healthy when it has a replica: not before the first deploy
  healthcheck:
    test: [CMD, grep, -q, ., /proc/1/task/1/children]
    interval: 10s
    timeout: 3s
    start_period: 30s
    retries: 3

services:
  broker:
    <<: *hardened
    image: redis:7
    # more than twice --maxmemory: rewriting the file forks the server, and the fork may end up copying all data
    mem_limit: ${{QSERVE_BROKER_MEMORY:-1g}}
    # not root, so that it needs no capabilities; its data folder is the volume below
    user: redis
    secrets: [broker_password]
    # appendonly: accepted requests survive a restart. always: they also survive a kill of the server at any
    # moment and a crash of the host; everysec is faster and may lose the last second. noeviction: a full
    # broker refuses new requests instead of deleting accepted ones. The password is in no command line.
    command:
      - sh
      - -c
      - |
        umask 077
        echo "requirepass $$(cat {mounted}/broker_password)" > /tmp/redis.conf
        exec redis-server /tmp/redis.conf --dir /data --appendonly yes --appendfsync always --save '' \\
          --maxmemory-policy noeviction --maxmemory ${{QSERVE_BROKER_MAXMEMORY:-384mb}}
    volumes: ["broker-data:/data"]
    healthcheck:
      test: [CMD-SHELL, "REDISCLI_AUTH=$$(cat {mounted}/broker_password) redis-cli -e ping"]
      interval: 5s
      timeout: 3s
      retries: 5
    stop_grace_period: 30s

  # Registers the applications, waits until every deployment has its replicas, and ends. A deploy of code that has
  # not changed replaces nothing but the replicas.
  deploy:
    <<: *worker
    build: {{context: ., target: worker}}
    command: {deploy}
    restart: on-failure
    # as process 1 it would have to handle signals, which it does not
    init: true
    healthcheck: {{disable: true}}

  gateway:
    <<: *hardened
    image: {name}-gateway:${{QSERVE_TAG:-latest}}
    build: {{context: ., target: gateway}}
    mem_limit: ${{QSERVE_GATEWAY_MEMORY:-768m}}
    environment: *environment
    secrets: {secret_names}
    depends_on: [broker]
    ports: ["{published}:8000"]
    healthcheck:
      # it serves HTTP, it has read the applications, and the broker responds
      test: {healthz}
      interval: 10s
      timeout: 5s
      start_period: 15s
      retries: 3
    stop_grace_period: 15s
{services}
volumes:
  broker-data:

secrets:
{secrets}"""

_SERVICE = """
  {name}:
    <<: *worker
    command: {command}
    # longer than the graceful shutdown time of the deployment, in which calls finish
    stop_grace_period: {stop_s}s
"""


def compose_text(plan: Plan) -> str:
    """Return the file for docker compose."""
    host, _, port = plan.port.rpartition(":")
    published = f"${{QSERVE_PORT:-{port}}}"
    own = "".join(f"    {name}: {_value(name, value)}\n" for name, value in plan.own_environment.items())
    return _HEAD.format(
        written_by=plan.written_by,
        name=plan.name,
        first=plan.services[0].name if plan.services else "NAME",
        port=port,
        published=f"{host}:{published}" if host else published,
        environment=_lines({**_files(), **plan.environment}),
        own_environment=own,
        secret_names=_list(SECRETS),
        mounted=_MOUNTED,
        healthz=_list(["CMD", "python", "-c", _HEALTHZ]),
        deploy=_list(plan.deploy),
        services="".join(_service(plan, service) for service in plan.services),
        secrets="".join(f"  {name}: {{file: ./{SECRETS_FOLDER}/{name}}}\n" for name in SECRETS),
    )


def _files() -> dict[str, str]:
    return {variable: f"{_MOUNTED}/{name}" for name, variable in SECRETS.items()}


def _service(plan: Plan, service: Service) -> str:
    command = _list((*service.command, *plan.from_folder))
    return _SERVICE.format(name=service.name, command=command, stop_s=service.stop_s) + "".join(
        f"    {line}\n" for line in _own_lines(service)
    )


def _own_lines(service: Service) -> Iterator[str]:
    """Yield what is said of one service alone."""
    if service.is_scaled:
        yield "# external_scaler_enabled: the number of containers is that of your scaler"
    if service.containers != 1:
        yield f"scale: {service.containers}"
    if service.memory_mib:
        yield f"mem_limit: {service.memory_mib}m"
    if service.cpus:
        yield f"cpus: {service.cpus:g}"
    if service.gpus:
        device = {"driver": "nvidia", "count": service.gpus, "capabilities": ["gpu"]}
        yield f"deploy: {_flow({'resources': {'reservations': {'devices': [device]}}})}"


def _lines(values: Mapping[str, str]) -> str:
    return "".join(f"  {name}: {_flow(value)}\n" for name, value in values.items())


def _value(name: str, value: str | None) -> str:
    return f'"${{{name}:-}}"' if value is None else _flow(value.replace("$", "$$"))


def _list(words: Any) -> str:
    return _flow([word.replace("$", "$$") for word in words])


def _flow(value: Any) -> str:
    """Return a value in YAML on one line; JSON is YAML."""
    return json.dumps(value, ensure_ascii=False)
