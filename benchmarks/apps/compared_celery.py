"""The same by hand with Celery: a Flask view over a stock Celery chain on Redis, or over a single task."""

from __future__ import annotations

import os

from celery import Celery, chain
from flask import Flask, request

URL = os.environ["BENCHMARK_BROKER"]
TIMEOUT_S = 30

celery = Celery("benchmark", broker=URL, backend=URL)
celery.conf.update(task_acks_late=True, worker_prefetch_multiplier=16)
app = Flask(__name__)


@celery.task
def add(x: int, amount: int) -> int:
    return x + amount


@celery.task
def subtract_one(x: int) -> int:
    return x - 1


@app.post("/chain")
def run_chain() -> str:
    steps = chain(add.s(request.get_json(), 2).set(queue="a"), subtract_one.s().set(queue="b"), add.s(3).set(queue="c"))
    return str(steps.apply_async().get(timeout=TIMEOUT_S))


@app.post("/single")
def run_single() -> str:
    return str(add.apply_async((request.get_json(), 2), queue="a").get(timeout=TIMEOUT_S))
