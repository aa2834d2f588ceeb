"""The names of Redis keys. Scripts that build keys themselves (`scripts/_*.lua`) use the same names.

Called by everything that stores data in Redis. Must not know the data.
"""

import re
from typing import Final

from eventing.job.job import JobId, Lane

PREFIX: Final = "torpor"
UNPUBLISHED: Final = f"{PREFIX}:outbox:requests"
"""Jobs whose event an external broker may not have, by the time of their next sweep."""
UNSTARTED: Final = f"{PREFIX}:outbox:awaited"
"""Jobs that have not ended, by the time of their next check by the sweep."""
DEADLINES: Final = f"{PREFIX}:deadlines"
"""Jobs that have not ended, by their deadline."""
LEAVING: Final = f"{PREFIX}:leaving"
"""Ended jobs and the names of their tenants' lists, by when their records expire."""
APPROVALS_DUE: Final = f"{PREFIX}:approvals:due"
"""Tool calls that wait for a person, by when they wait no more: `<job id> <turn>.<place>`."""
APPROVALS_UNTOLD: Final = f"{PREFIX}:approvals:untold"
"""Questions and answers of which no receiver was told yet, by time: `requested|answered JOB TURN.PLACE APPROVAL`."""
UNARCHIVED: Final = f"{PREFIX}:unarchived"
"""Ended jobs whose result and tokens are to go to the object store, by the time of the next try."""
ENDED: Final = f"{PREFIX}:ended"
"""Stream with one entry for each ended job, written by the script that ends it."""
QUEUES: Final = f"{PREFIX}:queues"
"""Set of the names of all queues that ever existed, so that those without a trigger can be found."""
GROUP: Final = "torpor"
"""Consumer group of every queue; KEDA's `consumerGroup`."""
WAKE_GROUP: Final = f"{GROUP}-wake"
"""Group of every queue by which each ticket wakes one of the pumps that wait (docs/adr/0375)."""
READY: Final = tuple(f"ready:{lane}" for lane in Lane)
"""Parts of a queue: the events of each lane that may be claimed."""
ACTIVE_BATCHES: Final = f"{PREFIX}:batches:active"
DUE_WEBHOOKS: Final = f"{PREFIX}:{{webhooks}}:due"
REVISIONS: Final = f"{PREFIX}:cache:revisions"
"""Hash of the weights revision of each model, as its newest predictor reported it."""
LIMITS: Final = f"{PREFIX}:limits"
STORE_METER: Final = f"{PREFIX}:{{ledger}}:store"
"""Hash of the store's own counters as they were last read into the ledger."""
STORE_METER_TURN: Final = f"{PREFIX}:{{ledger}}:store:turn"
UNINDEXED: Final = f"{PREFIX}:vectorstores:unindexed"
"""Files of vector stores whose chunks are not yet as their records say, by the time of the next event about them."""
VECTORS: Final = f"{PREFIX}:{{"
"""Before the id of a vector store or of a batch of its files, and a closing brace: their keys."""

_PLAIN: Final = re.compile(r"[A-Za-z0-9._-]+\Z")
_PLAIN_BYTES: Final = frozenset(byte for byte in range(128) if _PLAIN.match(chr(byte)))
_MODEL: Final = re.compile(r"[A-Za-z0-9._:/@-]+\Z")
_OURS: Final = frozenset({"active"})
"""Last key parts of ours that could be taken for a tenant's name."""


def escape(word: str) -> str:
    """A caller's string as part of a key: an ordinary name is unchanged, any other percent-encoded, so that it can
    neither end its part nor equal a key of ours. Injective.
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


def submitting(job_id: JobId) -> str:
    """Held by the submit that has its turn."""
    return f"{PREFIX}:{{{escape(job_id)}}}:submitting"


def followers(job_id: JobId) -> str:
    """Jobs that will end with this job's answer, oldest first."""
    return f"{PREFIX}:{{{escape(job_id)}}}:followers"


def cache_entry(tenant: str, name: str) -> str:
    """A kept answer: the job that gave it, or will."""
    return f"{PREFIX}:cache:entry:{escape(tenant)}:{escape(name)}"


def cache_epochs(tenant: str) -> str:
    """Counters by model (`*` for all) that void every entry made under an earlier value."""
    return f"{PREFIX}:cache:epochs:{escape(tenant)}"


def semantic_name(job_id: JobId) -> str:
    """The name of the entry that keeps a job's answer for questions of the same meaning."""
    return f"semantic_{job_id.removeprefix('job_')}"


def semantic_vectors(tenant: str, partition: str) -> str:
    """Hash of the vectors of a tenant's answered questions that may share answers, by the entry's name."""
    return f"{PREFIX}:cache:vectors:{escape(tenant)}:{escape(partition)}"


def semantic_entries(tenant: str) -> str:
    """The tenant's partitions and entries, by when they expire."""
    return f"{PREFIX}:cache:semantic:{escape(tenant)}"


def semantic_shadow(tenant: str) -> str:
    """Hash of counts of the tenant's shadow phase, by model, rule and result."""
    return f"{PREFIX}:cache:shadow:{escape(tenant)}"


def semantic_served(tenant: str, digest: str) -> str:
    """The entry that a question was answered with a moment ago, so that a repeated call is a complaint."""
    return f"{PREFIX}:cache:served:{escape(tenant)}:{escape(digest)}"


def semantic_mark(job_id: JobId) -> str:
    """Says that a job's answer was counted in its tenant's shadow phase."""
    return f"{PREFIX}:{{{escape(job_id)}}}:compared"


def jobs_of(tenant: str) -> str:
    return f"{PREFIX}:jobs:{escape(tenant)}"


def approvals_of(tenant: str) -> str:
    """The tenant's tool calls that wait for a person, as in `APPROVALS_DUE`."""
    return f"{PREFIX}:approvals:of:{escape(tenant)}"


def tool_lists_of(tenant: str) -> str:
    """What the tenant's jobs know of the lists of tool servers."""
    return f"{PREFIX}:tool-lists:{escape(tenant)}"


def dead_letters_of(tenant: str) -> str:
    return f"{PREFIX}:dead:{escape(tenant)}"


def completions_of(tenant: str) -> str:
    return f"{PREFIX}:completions:{escape(tenant)}"


def jobs_in_flight_of(tenant: str) -> str:
    return f"{PREFIX}:flight:{escape(tenant)}"


def results_of(tenant: str) -> str:
    return f"{PREFIX}:results:{escape(tenant)}"


def batch(batch_id: str) -> str:
    return f"{PREFIX}:{{{escape(batch_id)}}}"


def batches_of(tenant: str) -> str:
    return f"{PREFIX}:batches:{escape(tenant)}"


def vector_store(store_id: str, part: str = "") -> str:
    """The key `part` of a vector store: none for its hash, `files`, or `file:` before an id."""
    whole = f"{VECTORS}{escape(store_id)}}}"
    return f"{whole}:{part}" if part else whole


def vector_stores_of(tenant: str) -> str:
    return f"{PREFIX}:vectorstores:of:{escape(tenant)}"


def index(tenant: str, name: str, part: str = "") -> str:
    """The key `part` of a tenant's vector index: none for its hash, `chunks`, `changes`, or `chunk:` before an id."""
    whole = f"{PREFIX}:{{index:{escape(tenant)}:{escape(name)}}}"
    return f"{whole}:{part}" if part else whole


def vector_set(tenant: str, name: str, part: str = "") -> str:
    """The key `part` of a tenant's index in vector sets: none for its hash, `vectors`, or `chunk:` and `word:` before
    an id or a word.
    """
    whole = f"{PREFIX}:{{vset:{escape(tenant)}:{escape(name)}}}"
    return f"{whole}:{part}" if part else whole


def conversation(conversation_id: str) -> str:
    return f"{PREFIX}:{{{escape(conversation_id)}}}"


def conversation_items(conversation_id: str) -> str:
    return f"{PREFIX}:{{{escape(conversation_id)}}}:items"


def conversation_order(conversation_id: str) -> str:
    return f"{PREFIX}:{{{escape(conversation_id)}}}:order"


def conversation_vectors(conversation_id: str) -> str:
    return f"{PREFIX}:{{{escape(conversation_id)}}}:vectors"


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
    """The key `part` of a queue; `tickets` is the stream that KEDA watches. A model's name is not escaped: it
    cannot contain braces.
    """
    return f"{PREFIX}:{{{name if _MODEL.match(name) else escape(name)}}}:{part}"


def replicas(model: str) -> str:
    """Hash of the starting and ready replicas of a model (replica id to its phase)."""
    return f"{PREFIX}:replicas:{escape(model)}"


def budget(of: str, name: str) -> str:
    """What a tenant or an API key (`of`) spent this month. One hash slot: a job is held in both at once."""
    return f"{PREFIX}:{{budgets}}:{of}:{escape(name)}"


def usage_of(tenant: str, day: int) -> str:
    """Hash of what a tenant's jobs used that ended on a day (since the epoch, in UTC)."""
    return f"{PREFIX}:usage:{escape(tenant)}:{day}"


def providers() -> str:
    """Hash of the providers that predictors ask: a digest to the model that it serves here, and the endpoint."""
    return f"{PREFIX}:providers"


def cascade(tenant: str, model: str) -> str:
    """Prefix of the sets of a tenant's answers that a better model made of a public name's, one a day."""
    return f"{PREFIX}:cascade:{escape(tenant)}:{escape(model)}"


def starting(model: str) -> str:
    """Whether a model starts that another stands in for. A model's name is not escaped, as in `queue`."""
    return f"{PREFIX}:starting:{model}"


def starting_jobs(model: str) -> str:
    """Its jobs that have a predictor before them, by since when."""
    return f"{PREFIX}:starting:{model}:jobs"


def provider(digest: str) -> str:
    """Hash of a provider's rate limits and circuit breaker (`predictor.engine.upstream.provider`)."""
    return f"{PREFIX}:{{provider:{digest}}}"


def provider_first_tokens(digest: str) -> str:
    """List of a provider's newest times to a first token."""
    return f"{PREFIX}:{{provider:{digest}}}:first"


def provider_answers(digest: str) -> str:
    """List of the lengths of a provider's newest answers."""
    return f"{PREFIX}:{{provider:{digest}}}:answers"


def audit(job_id: JobId) -> str:
    """Hash of the audit of one job."""
    return f"{PREFIX}:{{{escape(job_id)}}}:audit"


def audits_of(tenant: str) -> str:
    """The tenant's audited jobs, by when they were sampled."""
    return f"{PREFIX}:audits:of:{escape(tenant)}"


def audits_waiting(critic: str) -> str:
    """Audits that a critic was not asked for yet, oldest first, and golden rows before them."""
    return f"{PREFIX}:audits:waiting:{escape(critic)}"


def audits_asked(critic: str) -> str:
    """Audits that a critic was asked for and gave no verdict on yet, by when it was asked."""
    return f"{PREFIX}:audits:asked:{escape(critic)}"


def audit_golden(critic_version: str) -> str:
    """Hash of a critic's verdicts on the golden set, by row."""
    return f"{PREFIX}:audits:golden:{critic_version}"


def audit_counts(day: int) -> str:
    """Hash of sums over the audited jobs that ended on a day (since the epoch), by critic version, model and sum."""
    return f"{PREFIX}:audits:counts:{day}"


def audit_spent(day: int) -> str:
    """Hash of the GPU time and the number of audits that ended on a day (since the epoch), by critic."""
    return f"{PREFIX}:audits:spent:{day}"
