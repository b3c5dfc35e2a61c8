"""The chain of three on qserve."""

from __future__ import annotations

import asyncio
from typing import Any

import ledger  # type: ignore[import-not-found]

import qserve
from qserve.dag import InputNode
from qserve.drivers import DAGDriver
from qserve.http_adapters import json_request

Item = dict[str, Any]


async def work(step: str, item: Item) -> Item:
    ledger.begin(step, item)
    await asyncio.sleep(ledger.STEP_S)
    result: Item = ledger.finish(step, item)
    return result


@qserve.deployment(num_replicas=2)
async def first(item: Item) -> Item:
    return await work("first", item)


@qserve.deployment(num_replicas=2)
async def middle(item: Item) -> Item:
    return await work("middle", item)


@qserve.deployment(num_replicas=2)
async def last(item: Item) -> Item:
    return await work("last", item)


with InputNode() as sent:
    output = last.bind(middle.bind(first.bind(sent)))
graph = DAGDriver.bind(output, http_adapter=json_request)
