"""The names of our keys. Everything of one job, and of one queue, shares a hash tag, so that its
scripts run on a Redis Cluster.

Called by whoever keeps something in Redis. Must not know what is kept.
"""

from typing import Final

from eventing.job.job import JobId

PREFIX: Final = "torpor"
UNPUBLISHED: Final = f"{PREFIX}:outbox:requests"
UNSTARTED: Final = f"{PREFIX}:outbox:awaited"
UNANNOUNCED: Final = f"{PREFIX}:outbox:results"
ENDED: Final = f"{PREFIX}:ended"
"""Channel on which the scripts that end a job say its key. They know the name themselves."""
GROUP: Final = "torpor"
"""Consumer group of every queue; KEDA's `consumerGroup`."""


def job(job_id: JobId) -> str:
    return f"{PREFIX}:{{{job_id}}}"


def tokens(job_id: JobId) -> str:
    return f"{PREFIX}:{{{job_id}}}:tokens"


def jobs_of(tenant: str) -> str:
    return f"{PREFIX}:jobs:{tenant}"


def dead_letters_of(tenant: str) -> str:
    return f"{PREFIX}:dead:{tenant}"


def queue(name: str, part: str) -> str:
    """`part` of a queue; `tickets` is the stream that KEDA watches."""
    return f"{PREFIX}:{{{name}}}:{part}"


def replicas(model: str) -> str:
    """Hash of the replicas of a model that are waking or ready (replica id to its phase)."""
    return f"{PREFIX}:replicas:{model}"
