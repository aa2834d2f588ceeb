"""The loops that move large results to the object store and delete unreferenced objects.

Called by the api; any number of processes share the work (`eventing.store.archive`). When one dies half-way,
another takes its job within 15 s, and at most an object is left for the sweep.
"""

import asyncio
from typing import Final

import structlog
from prometheus_client import Counter

from eventing.errors import ObjectsUnavailable, Unavailable
from eventing.process.dependency import Dependency
from eventing.store.archive import Archive
from eventing.store.objects import tool_results
from eventing.store.objects.object_store import ObjectStore
from eventing.store.objects.tool_results import JobStates

_AT_ONCE: Final = 4
"""Each is held in memory while it is written."""
_EVERY_S: Final = 1.0
_SWEEP_EVERY_S: Final = 3600.0

_archived = Counter("torpor_results_archived_total", "Jobs whose result went to the object store.")
_log = structlog.get_logger()


async def run(archive: Archive) -> None:
    """Archive until cancelled; while store or object store are unavailable, results stay where they are."""
    objects = Dependency("object store")
    while True:
        try:
            while due := await archive.take_due(_AT_ONCE):
                for job_id in due:
                    if await archive.archive(job_id):
                        _archived.inc()
                        objects.answered()
        except Unavailable as error:
            if isinstance(error, ObjectsUnavailable):
                objects.failed(error.message)
            await asyncio.sleep(error.retry_after_s)
        await asyncio.sleep(_EVERY_S)


async def run_sweep(archive: Archive) -> None:
    """Sweep objects at intervals, until cancelled."""
    while True:
        try:
            if removed := await archive.sweep():
                _log.info("objects removed", action="sweep", count=removed)
        except Unavailable as error:
            _log.debug("objects not swept", action="sweep", reason=error.code)
        await asyncio.sleep(_SWEEP_EVERY_S)


async def run_result_sweep(objects: ObjectStore, jobs: JobStates) -> None:
    """Sweep results of tools at intervals, until cancelled."""
    while True:
        try:
            if removed := await tool_results.sweep(objects, jobs):
                _log.info("results of tools removed", action="sweep", count=removed)
        except Unavailable as error:
            _log.debug("results of tools not swept", action="sweep", reason=error.code)
        await asyncio.sleep(_SWEEP_EVERY_S)
