"""The chain of three as people write it by hand: a Flask view over a Celery chain on Redis."""

from __future__ import annotations

import os
import time
from typing import Any

import ledger  # type: ignore[import-not-found]
from celery import Celery, chain
from flask import Flask, Response, jsonify, request

Item = dict[str, Any]
URL = os.environ["KILLS_BROKER"]
TIMEOUT_S = 30

celery = Celery("kills", broker=URL, backend=URL)
if os.environ.get("KILLS_ACKS_LATE"):
    celery.conf.update(task_acks_late=True, task_reject_on_worker_lost=True)
app = Flask(__name__)


def work(step: str, item: Item) -> Item:
    ledger.begin(step, item)
    time.sleep(ledger.STEP_S)
    result: Item = ledger.finish(step, item)
    return result


@celery.task
def first(item: Item) -> Item:
    return work("first", item)


@celery.task
def middle(item: Item) -> Item:
    return work("middle", item)


@celery.task
def last(item: Item) -> Item:
    return work("last", item)


@app.post("/")
def run_chain() -> Response:
    steps = chain(
        first.s(request.get_json()).set(queue="first"),
        middle.s().set(queue="middle"),
        last.s().set(queue="last"),
    )
    return jsonify(steps.apply_async().get(timeout=TIMEOUT_S))
