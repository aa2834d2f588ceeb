"""How the exact cache served a call, as response headers (RFC 9111 and RFC 9211). Pure.

Called by every route whose answer is a job's.
"""

from eventing.job.job import Job, JobState

CACHE_STATUS = "cache-status"


def cache_headers(job: Job) -> dict[str, str]:
    """`Cache-Status`, and `Age` of a hit; nothing when the cache was not asked."""
    use = job.cache
    if use is None:
        return {}
    if use.is_hit:
        parts = ["hit", f'key="{use.key}"', f"detail={use.kind}"]
        if use.left_s:
            parts.insert(1, f"ttl={use.left_s}")
        if use.similarity is not None:
            parts.append(f"similarity={use.similarity:.3f}")
        return {CACHE_STATUS: "; ".join(["torpor", *parts]), "age": str(use.age_s)}
    parts = [f"fwd={use.fwd or 'miss'}"]
    if use.key and job.state is JobState.COMPLETED:
        parts.append("stored")
    parts.append(f'key="{use.key}"' if use.key else f"detail={use.reason}")
    return {CACHE_STATUS: "; ".join(["torpor", *parts])}


def job_headers(job: Job) -> dict[str, str]:
    """The headers of a response that is a job's answer."""
    return {"torpor-job-id": job.id} | cache_headers(job)
