"""The saga on Temporal: a workflow of four activities; worker and client share a process, so that both can start eagerly."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import uvloop
from google.protobuf.duration_pb2 import Duration
from temporalio import activity, workflow
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import PollerBehaviorAutoscaling, UnsandboxedWorkflowRunner, Worker

from benchmarks.peers.inside.serving import One, Steps, payload, serve

READY_SECONDS_MAX = 50.0
RETRY_SECONDS = 0.5
NAMESPACE = "bench"
QUEUE = "bench"
STEP_TIMEOUT = timedelta(seconds=60)
Payload = dict[str, str]


@activity.defn
async def step_0(given: Payload) -> Payload:
    Steps.done += 1
    return given


@activity.defn
async def step_1(given: Payload) -> Payload:
    Steps.done += 1
    return given


@activity.defn
async def step_2(given: Payload) -> Payload:
    Steps.done += 1
    return given


@activity.defn
async def step_3(given: Payload) -> Payload:
    Steps.done += 1
    return given


STEPS = [step_0, step_1, step_2, step_3]


@workflow.defn
class Saga:
    @workflow.run
    async def run(self, given: Payload) -> Payload:
        for step in STEPS:
            given = await workflow.execute_activity(step, given, start_to_close_timeout=STEP_TIMEOUT)
        return given


@asynccontextmanager
async def peer(arguments: dict[str, Any]) -> AsyncIterator[One]:
    given = payload(arguments["payload_bytes"])
    in_flight = arguments["in_flight"]
    client = await _connected(arguments["address"])
    worker = Worker(
        client,
        task_queue=QUEUE,
        workflows=[Saga],
        activities=STEPS,
        # Faster than the sandbox, which only guards against mistakes in the workflow's code.
        workflow_runner=UnsandboxedWorkflowRunner(),
        # As many as there may be: none waits for a free slot, and none is folded again for having left the cache.
        max_cached_workflows=2 * in_flight,
        max_concurrent_workflow_tasks=max(100, in_flight),
        max_concurrent_activities=max(100, in_flight),
        workflow_task_poller_behavior=PollerBehaviorAutoscaling(),
        activity_task_poller_behavior=PollerBehaviorAutoscaling(),
    )

    async def one() -> None:
        found = await client.execute_workflow(
            Saga.run, given, id=str(uuid.uuid4()), task_queue=QUEUE, request_eager_start=True
        )
        if found != given:
            raise RuntimeError("a workflow gave something else than it was given")

    async with worker:
        await _first(one)
        yield one


async def _connected(address: str) -> Client:
    """With the namespace made, by whichever process comes first."""
    client = await Client.connect(address, namespace=NAMESPACE)
    kept = Duration(seconds=24 * 3600)
    try:
        await client.workflow_service.register_namespace(
            RegisterNamespaceRequest(namespace=NAMESPACE, workflow_execution_retention_period=kept)
        )
    except RPCError as error:
        if error.status is not RPCStatusCode.ALREADY_EXISTS:
            raise
    return client


async def _first(one: One) -> None:
    """A workflow that ends: the services learn of a new namespace one after the other, within seconds."""
    until = time.monotonic() + READY_SECONDS_MAX
    while True:
        try:
            return await one()
        except RPCError:
            if time.monotonic() > until:
                raise
        await asyncio.sleep(RETRY_SECONDS)


if __name__ == "__main__":
    uvloop.run(serve(peer(json.loads(sys.argv[1]))))
