"""The judge of an attempt's answer.

Called by `predictor.delivery.delivery` when the lease says that the answer is held back by windows.
"""

from eventing.job.job import JobId
from eventing.job.moderation.policy import window_rules
from eventing.job.moderation.rules import Rules
from eventing.job.moderation.window import WindowJudge
from eventing.job.plan import Hold
from eventing.job.store import JobWorker


async def read_judge(store: JobWorker, job_id: JobId, hold: Hold) -> WindowJudge | None:
    """What looks at the answer before its readers do; None where they are shown every token as it comes, or nothing
    before the end. Raises `BadRequest` for rules that are wrong, so that no answer is shown without them.
    """
    if hold is not Hold.WINDOW:
        return None
    job = await store.get(job_id, with_result=False)
    return WindowJudge(window_rules(job.plan if job else None) or Rules())
