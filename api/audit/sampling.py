"""Which ended jobs are audited: by a hash of the job's id, so that every process chooses the same. Pure.

Called by `api.audit.audits`.
"""

import hashlib

from eventing.job.job import JobId


def is_sampled(job_id: JobId, share: float) -> bool:
    """True for this share of job ids; a job that is chosen at a share is also chosen at every larger one."""
    digest = hashlib.sha256(f"audit {job_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
