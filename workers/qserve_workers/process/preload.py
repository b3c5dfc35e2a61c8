"""What every replica imports sooner or later, imported before the first fork: one copy serves all of them.

Celery imports these by their names while a worker starts, and applications import the last two. In a replica of its
own each copy takes 3 MB, and 20 ms of its start.
"""
# ruff: noqa: F401

from __future__ import annotations

import celery.app.amqp
import celery.app.control
import celery.app.events
import celery.app.routes
import celery.worker.autoscale
import celery.worker.components
import celery.worker.consumer.delayed_delivery
import celery.worker.strategy

import qserve.dag
import qserve.http.builtin_adapters
import qserve_workers.celery.worker
