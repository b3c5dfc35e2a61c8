# -*- coding: utf-8 -*-
# Names are imported in every form; the comments stay.

from qserve import (
    Deployment,  # for annotations
    deployment,
    ingress as front,
    run,
)
from qserve.config import (
    HTTPOptions as Where,  # where it listens
    # the functions
)
from qserve import build as build_app; import os
from qserve import Application
from qserve.drivers import DAGDriver; from qserve.dag import InputNode


@deployment
def plus(value: int) -> int:  # adds one
    return value + 1


with InputNode() as value: root = DAGDriver.bind(plus.bind(value))
kinds = (Deployment, Application, Where, front, build_app, os)


def main(): return run(root).predict.remote(1).result()

# main() returns 2
