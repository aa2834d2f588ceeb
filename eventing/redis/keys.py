"""The names of our keys. Scripts that find a key by themselves (`scripts/_lib.lua`) know it too.

Called by whoever keeps something in Redis. Must not know what is kept.
"""

import re
from typing import Final

from eventing.job.job import JobId

PREFIX: Final = "torpor"
UNPUBLISHED: Final = f"{PREFIX}:outbox:requests"
"""Jobs whose event a broker that is not ours may not have, by when the sweep looks at them."""
UNSTARTED: Final = f"{PREFIX}:outbox:awaited"
"""Jobs that have not ended, by when somebody looks whether they are still on their way."""
DEADLINES: Final = f"{PREFIX}:deadlines"
"""Jobs that have not ended, by their deadline."""
ENDED: Final = f"{PREFIX}:ended"
"""Stream of ends, one entry each, written by the scripts that end a job."""
QUEUES: Final = f"{PREFIX}:queues"
"""Set of the names of all queues that ever were: so those that no trigger names are found."""
GROUP: Final = "torpor"
"""Consumer group of every queue; KEDA's `consumerGroup`."""
ACTIVE_BATCHES: Final = f"{PREFIX}:batches:active"
DUE_WEBHOOKS: Final = f"{PREFIX}:{{webhooks}}:due"
LIMITS: Final = f"{PREFIX}:limits"

_PLAIN: Final = re.compile(r"[A-Za-z0-9._-]+\Z")
_PLAIN_BYTES: Final = frozenset(byte for byte in range(128) if _PLAIN.match(chr(byte)))
_MODEL: Final = re.compile(r"[A-Za-z0-9._:/@-]+\Z")
_OURS: Final = frozenset({"active"})
"""Last parts of keys of ours that stand where a tenant's name may."""


def escape(word: str) -> str:
    """A caller's word as part of a key: an ordinary name as it is, anything else percent-encoded, so
    that it can neither end its part nor spell a name of ours. Two words never give the same.
    """
    if word in _OURS:
        return f"%{ord(word[0]):02X}{word[1:]}"
    if _PLAIN.match(word):
        return word
    raw = word.encode("utf-8", "surrogatepass")
    return "".join(chr(b) if b in _PLAIN_BYTES else f"%{b:02X}" for b in raw) or "%"


def job(job_id: JobId) -> str:
    return f"{PREFIX}:{{{escape(job_id)}}}"


def tokens(job_id: JobId) -> str:
    return f"{PREFIX}:{{{escape(job_id)}}}:tokens"


def jobs_of(tenant: str) -> str:
    return f"{PREFIX}:jobs:{escape(tenant)}"


def dead_letters_of(tenant: str) -> str:
    return f"{PREFIX}:dead:{escape(tenant)}"


def jobs_in_flight_of(tenant: str) -> str:
    return f"{PREFIX}:flight:{escape(tenant)}"


def results_of(tenant: str) -> str:
    return f"{PREFIX}:results:{escape(tenant)}"


def batch(batch_id: str) -> str:
    return f"{PREFIX}:{{{escape(batch_id)}}}"


def batches_of(tenant: str) -> str:
    return f"{PREFIX}:batches:{escape(tenant)}"


def webhook_endpoints_of(tenant: str) -> str:
    return f"{PREFIX}:{{webhooks}}:endpoints:{escape(tenant)}"


def webhook_delivery(delivery_id: str) -> str:
    return f"{PREFIX}:{{webhooks}}:delivery:{escape(delivery_id)}"


def webhook_log_of(tenant: str) -> str:
    return f"{PREFIX}:{{webhooks}}:log:{escape(tenant)}"


def webhooks_about(tenant: str, subject: str) -> str:
    return f"{PREFIX}:{{webhooks}}:of:{escape(tenant)}:{escape(subject)}"


def replay(digest: str) -> str:
    return f"{PREFIX}:replay:{digest}"


def queue(name: str, part: str) -> str:
    """`part` of a queue; `tickets` is the stream that KEDA watches. A model's name is plain here: it
    cannot end the braces.
    """
    return f"{PREFIX}:{{{name if _MODEL.match(name) else escape(name)}}}:{part}"


def replicas(model: str) -> str:
    """Hash of the replicas of a model that are waking or ready (replica id to its phase)."""
    return f"{PREFIX}:replicas:{escape(model)}"
