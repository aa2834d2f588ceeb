"""OpenAI's `service_tier` as a lane, and which tier an answer says. Pure.

`flex` goes to the batch lane and `priority` to the interactive one. `auto` and `default` go where the call goes anyway:
one that is held open to the interactive lane, one in the background to the default lane.
"""

from collections.abc import Mapping
from typing import Any, Final

from eventing.job.call.rule import FieldRule, check, one_of
from eventing.job.job import Job, Lane

FIELD: Final = "service_tier"
RULE: Final[FieldRule] = one_of("auto", "default", "flex", "priority")
_MARK: Final = "torpor.service_tier"
_LANES: Final = {"flex": Lane.BATCH, "priority": Lane.INTERACTIVE}


def lane_of(tier: Any, usual: Lane, where: str) -> tuple[Lane, Mapping[str, str]]:
    """The lane of a call that asks for `tier`, and the metadata by which its job says so; `usual` and nothing for None.
    Raises `InvalidJob` naming `where`.
    """
    if tier is None:
        return usual, {}
    check("", tier, RULE, where)
    return _LANES.get(tier, usual), {_MARK: tier if tier in _LANES else "default"}


def used_tier(job: Job) -> str | None:
    """The tier that the job has; None when its call asked for none."""
    return job.metadata.get(_MARK)
