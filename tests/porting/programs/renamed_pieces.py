# -*- coding: utf-8 -*-
# Names are imported in every form; the comments stay.

from ray.serve import (
    Deployment,  # for annotations
    HTTPOptions as Where,  # where it listens
    # the functions
    deployment,
    ingress as front,
    run,
)
from ray.serve.api import build as build_app; import os
from ray.serve.deployment import Application
from ray.serve.drivers import DAGDriver; from ray.dag import InputNode


@deployment
def plus(value: int) -> int:  # adds one
    return value + 1


with InputNode() as value: root = DAGDriver.bind(plus.bind(value))
kinds = (Deployment, Application, Where, front, build_app, os)


def main(): return run(root).predict.remote(1).result()

# main() returns 2
