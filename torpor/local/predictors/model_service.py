"""One model of a stack: its activator, predictors and autoscaler. The steps before the predictors are served in the
same way.

Called by the stack. It corresponds to a Knative Service; models share only the launcher.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from eventing.broker.queue.view import QueueView
from eventing.errors import Unavailable
from knative.autoscaling.keda.scaledobject import read_scaled_object
from knative.autoscaling.kpa.annotations import read_knative
from knative.autoscaling.kpa.autoscaler_config import read_autoscaler_config
from torpor.local import manifest
from torpor.local.model import Model
from torpor.local.predictors.activator import Activator
from torpor.local.predictors.autoscaler import KedaLoop, KpaLoop, PolicyClock, Scale
from torpor.local.predictors.fleet import Fleet, PredictorSpec
from torpor.local.predictors.launcher import Launcher
from torpor.local.predictors.places import Places
from torpor.local.predictors.replica import LocalReplica, held
from torpor.local.settings import AutoscalerKind, StackSettings


class ModelService:
    """A model from zero. `settings` are those of this model (`StackSettings.each_model`)."""

    def __init__(
        self,
        settings: StackSettings,
        model: Model,
        launcher: Launcher,
        view: QueueView,
        *,
        argv: Sequence[str],
        env: Mapping[str, str],
        log_dir: Path,
        on_lost: Callable[[str, Mapping[str, str], bytes], Awaitable[None]],
        on_failure: Callable[[str], Awaitable[None]],
        group: asyncio.TaskGroup,
        kind: str = "predictor",
        places: Places | None = None,
    ) -> None:
        self.name = model.name
        self.queue = manifest.requests_queue(model.name)
        self.replicas: dict[str, LocalReplica] = {}
        self._settings = settings
        self._view = view
        self._group = group
        self.activator = Activator(
            self.replicas,
            concurrency=settings.container_concurrency,
            timeout_s=settings.max_job_seconds + 30,
            on_waiting=lambda: self._autoscaler.poke(),
            on_lost=on_lost,
        )
        self.fleet = Fleet(
            PredictorSpec(
                argv=argv,
                env=env,
                drain_grace_s=settings.drain_grace,
                log_dir=log_dir,
                kind=kind,
            ),
            launcher,
            self.replicas,
            on_change=self.activator.changed,
            on_failure=on_failure,
            group=group,
            time_scale=settings.time_scale,
        )
        shared = places.shared(model.name, self.fleet, self.activator) if places else None
        self._autoscaler = self._make_autoscaler(shared or self.fleet)

    def start(self) -> None:
        """Scale from now on."""
        self._scaling = self._group.create_task(self._autoscaler.run())

    async def drain(self) -> None:
        """Stop scaling, refuse requests, and end the predictors within their grace period."""
        self._scaling.cancel()
        await asyncio.wait({self._scaling})
        await self.activator.turn_away()
        await self.fleet.stop()

    def _make_autoscaler(self, scale: Scale) -> KpaLoop | KedaLoop:
        s = self._settings
        clock = PolicyClock(s.time_scale)
        match s.autoscaler:
            case AutoscalerKind.KPA:
                config = read_autoscaler_config(manifest.config_autoscaler(s))
                scaling = read_knative(manifest.service(s, self.name), config)
                return KpaLoop(
                    scaling.spec,
                    scaling.policy,
                    scale=scale,
                    concurrency=lambda: self.activator.concurrency,
                    clock=clock,
                    held=self._held,
                )
            case AutoscalerKind.KEDA:
                spec = read_scaled_object(manifest.scaled_object(s, self.name))
                return KedaLoop(
                    spec,
                    scale=scale,
                    view=self._view,
                    queue=self.queue,
                    clock=clock,
                    held=self._held,
                )

    async def _held(self) -> int:
        """The replicas that are held for jobs whose tools run; none while the store is away."""
        expected: frozenset[str] = frozenset()
        with suppress(Unavailable):
            expected = await self._view.expected(self.queue)
        return held(self.replicas.values(), expected)
