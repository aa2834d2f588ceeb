"""Results of tools that are too large for a record: a folder for each job, which goes with the job.

Written by the steps process; deleted by the api, with the job or by a sweep. Must not know tools.
"""

from collections.abc import Sequence
from typing import Final, Protocol

from eventing.job.job import JobId, JobState
from eventing.store.objects.object_store import ObjectStore

FOLDER: Final = "tool-results"
"""Below the files of the installation: a folder a job, an object a call."""
_AT_ONCE: Final = 500


class JobStates(Protocol):
    """Says which jobs there are (`eventing.job.store.JobReader`)."""

    async def states(self, job_ids: Sequence[JobId]) -> list[JobState | None]: ...


def tool_results(files_url: str) -> ObjectStore:
    """The objects below the files of the installation."""
    return ObjectStore(f"{files_url.rstrip('/')}/{FOLDER}")


async def sweep(objects: ObjectStore, jobs: JobStates) -> int:
    """Delete the results of jobs that are gone; how many jobs that were. A job is recorded before it has results."""
    removed, folders = 0, await objects.names()
    for start in range(0, len(folders), _AT_ONCE):
        some = folders[start : start + _AT_ONCE]
        states = await jobs.states([JobId(each) for each in some])
        for folder, state in zip(some, states, strict=True):
            if state is None:
                await objects.remove(folder)
                removed += 1
    return removed
