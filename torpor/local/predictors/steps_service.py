"""The steps process of a stack: started when a job has a step, ended when none had for a while.

Called by the stack. It holds no leases and has a queue for each step, so the KPA scales it, whatever scales the
predictors.
"""

import asyncio
from collections.abc import Mapping
from typing import Final

import structlog

from eventing.broker.queue.view import QueueView
from torpor.local.model import Model
from torpor.local.predictors.launcher import SpawnLauncher
from torpor.local.predictors.lost import LostLeases
from torpor.local.predictors.model_service import ModelService
from torpor.local.settings import AutoscalerKind, StackSettings

_log = structlog.get_logger()
_CONCURRENCY: Final = 64
"""Runs of steps in the process at once."""


def steps_service(
    settings: StackSettings,
    view: QueueView,
    *,
    env: Mapping[str, str],
    lost: LostLeases,
    group: asyncio.TaskGroup,
) -> ModelService:
    """One process, from zero."""
    limits = {
        "max_replicas": 1,
        "min_replicas": 0,
        "autoscaler": AutoscalerKind.KPA,
        "container_concurrency": _CONCURRENCY,
    }
    logs = settings.data_dir / "logs"
    return ModelService(
        settings.model_copy(update=limits),
        Model(name="steps", context_tokens=0),
        SpawnLauncher(logs, "steps"),
        view,
        argv=[],
        env=env,
        log_dir=logs,
        on_lost=lost.release,
        on_failure=_log_failure,
        group=group,
        kind="steps",
    )


async def _log_failure(reason: str) -> None:
    _log.warning("the steps do not start", action="steps", reason=reason)
