"""The whole stack on one machine, from `up` until the last process has ended.

Called by `torpor up` and `torpor demo`. Starts store, model, broker, api, activator and autoscaler in this order
and stops them in reverse. Parts are configured by `TORPOR_*` variables, as on a cluster. A part that crashes is
started again; one that keeps crashing ends the stack.
"""

import asyncio
import os
import secrets
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import orjson
import structlog
import yaml

from eventing.broker.queue.view import QueueView
from eventing.errors import Unavailable
from eventing.process.http_server import listen
from eventing.redis.connection import connect
from eventing.replica import ReplicaDirectory
from eventing.store.redis_store import RedisStore
from torpor.local import manifest
from torpor.local.child import Child, free_port, python_module
from torpor.local.data_dir import Addresses, locked, private_files, record_addresses
from torpor.local.embedded_store import embedded_store
from torpor.local.engine_kind import EngineKind
from torpor.local.environment import broker_token
from torpor.local.errors import StackError
from torpor.local.model import CONTEXT_TOKENS, PROVIDER_TOKENS, Model, prepare_model
from torpor.local.predictors.autoscaler import PolicyClock
from torpor.local.predictors.launcher import ForkLauncher, SpawnLauncher
from torpor.local.predictors.lost import LostLeases
from torpor.local.predictors.model_service import ModelService
from torpor.local.predictors.places import Places
from torpor.local.predictors.replica import LocalReplica
from torpor.local.predictors.steps_service import steps_service
from torpor.local.prometheus_files import write_prometheus_files
from torpor.local.settings import StackSettings
from torpor.local.startup import require_free, wait_for_answer, wait_for_store
from torpor.local.status import STEPS_PATH, events_path, status_app

_log = structlog.get_logger()
_STOP_GRACE_S: Final = 5.0
_CRASHES_ALLOWED: Final = 5
_CRASH_WINDOW_S: Final = 60.0


class Stack:
    """One local stack. `report` is called with each step in words."""

    def __init__(self, settings: StackSettings, report: Callable[[str], None]) -> None:
        self.settings = settings
        self.services: dict[str, ModelService] = {}
        self.steps: ModelService | None = None
        self._report = report
        self._data = settings.data_dir
        self._logs = settings.data_dir / "logs"
        self._token = secrets.token_hex(24)
        self._stopping = asyncio.Event()
        self._hurried = asyncio.Event()
        self._drained = asyncio.Event()
        self.up = asyncio.Event()
        self.addresses = Addresses()

    @property
    def replicas(self) -> list[LocalReplica]:
        """The predictors of all models."""
        return [one for service in self.services.values() for one in service.replicas.values()]

    @property
    def ready(self) -> int:
        """How many of them can serve."""
        return sum(service.fleet.ready for service in self.services.values())

    def stop(self) -> None:
        """Stop in order: drain the predictors, then the rest. A second call skips draining: jobs then continue from
        their last checkpoint at the next start.
        """
        if self._stopping.is_set():
            self._hurried.set()
        self._stopping.set()

    async def run(self) -> None:
        """Run until `stop`. Raises `StackError` when a part cannot run; every process has ended either way."""
        async with AsyncExitStack() as exits:
            exits.enter_context(private_files())
            exits.enter_context(locked(self._data))
            record_addresses(self._data, None)  # one that was killed left its own
            try:
                async with asyncio.TaskGroup() as group:
                    starting = group.create_task(self._start(group, exits))
                    await self._stopping.wait()
                    starting.cancel()  # a conversion that is no longer wanted is not waited for
                    await asyncio.wait({starting})
                    if self.up.is_set():
                        await self._stop(group)
                    raise _Stopped
            except* _Stopped:
                pass

    async def _start(self, group: asyncio.TaskGroup, exits: AsyncExitStack) -> None:
        s = self.settings
        self._broker_token = broker_token(os.environ) or self._token
        redis_url = await self._start_store(group, exits)
        models = await self._prepare_models()
        ports = self._choose_ports()
        self.addresses = Addresses(
            api=f"http://{s.host}:{ports.api}",
            broker=f"http://{s.host}:{ports.broker}",
            activator=f"http://127.0.0.1:{ports.activator}",
            redis=redis_url,
        )
        self._base_env = self._environment(redis_url, models)
        self._write_triggers({one.model.name: one.settings for one in models})
        await self._start_part(group, exits, "broker", "eventing.broker", ports.broker)
        await self._start_part(group, exits, "api", "api", ports.api)
        await self._start_predictors(group, exits, models, redis_url, ports.activator)
        if s.metrics:
            write_prometheus_files(self._data / "metrics", self.addresses)
        record_addresses(self._data, self.addresses)
        exits.callback(record_addresses, self._data, None)
        self.up.set()

    async def _start_store(self, group: asyncio.TaskGroup, exits: AsyncExitStack) -> str:
        if self.settings.redis_url is not None:
            url = self.settings.redis_url.get_secret_value()
            await wait_for_store(url, "cannot reach the Redis of TORPOR_REDIS_URL")
            return url
        self._report("starting the embedded Valkey")
        child, url = embedded_store(self._data / "store", dict(os.environ), self._logs)
        await child.start()
        exits.push_async_callback(child.stop, _STOP_GRACE_S)
        await wait_for_store(url, "the embedded Valkey did not start", child)
        group.create_task(self._supervise(child))
        return url

    async def _prepare_models(self) -> list["_Prepared"]:
        prepared: list[_Prepared] = []
        for settings in self.settings.each_model():
            model = await self._prepare_model(settings)
            if any(one.model.name == model.name for one in prepared):
                raise StackError(f"two models have the name {model.name}; give each one of its own")
            prepared.append(_Prepared(settings, model))
        return prepared

    async def _prepare_model(self, settings: StackSettings) -> Model:
        (source,), wanted = settings.model, settings.context_tokens
        if settings.engine is EngineKind.SEEDED:
            made = Model(name=source, context_tokens=wanted or CONTEXT_TOKENS)
        elif settings.engine is EngineKind.UPSTREAM:
            made = Model(name=source, source=source, context_tokens=wanted or PROVIDER_TOKENS)
        else:
            made = await prepare_model(
                source, settings.models_dir, self._report, context_tokens=wanted
            )
        return replace(made, name=settings.model_name or made.name)

    def _choose_ports(self) -> "_Ports":
        s = self.settings
        return _Ports(
            api=s.port or free_port(), broker=s.broker_port or free_port(), activator=free_port()
        )

    def _environment(self, redis_url: str, models: Sequence["_Prepared"]) -> dict[str, str]:
        """The variables of every part; `os.environ` gives proxies, paths and the user's own `TORPOR_*`."""
        s = self.settings
        cards = [one.model.card(one.argv) for one in models]
        return dict(os.environ) | {
            "TORPOR_HOST": s.host,
            "TORPOR_REDIS_URL": redis_url,
            "TORPOR_BROKER_URL": self.addresses.broker + "/",
            "TORPOR_TRIGGERS_FILE": str(self._data / "triggers.yaml"),
            "TORPOR_QUEUE_TRIGGERS_FILE": str(self._data / "triggers.yaml"),
            "TORPOR_DELIVERY_TOKEN": self._token,
            "TORPOR_ANONYMOUS_ACCESS": os.environ.get("TORPOR_ANONYMOUS_ACCESS", "loopback"),
            "TORPOR_INGRESS_TOKEN": self._broker_token,
            "TORPOR_BROKER_TOKEN": self._broker_token,
            "TORPOR_MODELS": orjson.dumps(cards).decode(),
            "TORPOR_GUARD_URL": os.environ.get("TORPOR_GUARD_URL") or f"{self.addresses.api}/v1",
            "TORPOR_FILES_URL": (self._data / "files").resolve().as_uri(),
            "TORPOR_PREDICTOR_HOST": "127.0.0.1",
            "TORPOR_LEASE_S": str(s.lease),
            "TORPOR_DRAIN_GRACE_S": str(s.drain_grace),
            "TORPOR_LOG_LEVEL": s.log_level,
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            **(
                {"TORPOR_PIPELINES_FILE": str(file.resolve())} if (file := s.pipelines_file) else {}
            ),
            **({"TORPOR_TOOLS_FILE": str(file.resolve())} if (file := s.tools_file) else {}),
        }

    def _write_triggers(self, models: Mapping[str, StackSettings]) -> None:
        documents = manifest.triggers(
            models,
            activator_url=lambda model: self.addresses.activator + events_path(model),
            api_url=self.addresses.api + "/internal/events",
            pipelines=self.settings.plans,
            steps_url=self.addresses.activator + STEPS_PATH,
            tools=self.settings.tools,
        )
        (self._data / "triggers.yaml").write_text(yaml.safe_dump_all(documents, sort_keys=False))

    async def _start_part(
        self, group: asyncio.TaskGroup, exits: AsyncExitStack, name: str, module: str, port: int
    ) -> None:
        """Start a part that serves HTTP and wait until it answers."""
        self._report(f"starting the {name}")
        require_free(self.settings.host, port, name)
        env = self._base_env | {"TORPOR_PORT": str(port)}
        child = Child(name, python_module(module), env=env, log_dir=self._logs)
        await child.start()
        exits.push_async_callback(child.stop, _STOP_GRACE_S)
        await wait_for_answer(f"http://{self.settings.host}:{port}/healthz", child)
        group.create_task(self._supervise(child))

    async def _start_predictors(
        self,
        group: asyncio.TaskGroup,
        exits: AsyncExitStack,
        models: Sequence["_Prepared"],
        redis_url: str,
        port: int,
    ) -> None:
        """Activator, autoscaler and an empty fleet for each model."""
        redis = connect(redis_url)
        exits.push_async_callback(redis.aclose)
        directory, view = ReplicaDirectory(redis), QueueView(redis)
        lost = LostLeases(RedisStore(redis))
        forking = await self._fork_launcher(group, exits, models)
        s = self.settings
        clock = PolicyClock(s.time_scale)
        places = Places(s.most_running, s.window, clock) if s.most_running else None
        for one in models:
            is_vllm = one.settings.engine is EngineKind.VLLM
            self.services[one.model.name] = service = ModelService(
                one.settings,
                one.model,
                forking if forking and is_vllm else SpawnLauncher(self._logs),
                view,
                argv=one.argv,
                env=self._base_env | one.env,
                log_dir=self._logs,
                on_lost=lost.release,
                on_failure=partial(_report_failure, directory, one.model.name),
                group=group,
                places=places,
            )
            exits.push_async_callback(service.activator.close)
        self.steps = steps_service(self.settings, view, env=self._base_env, lost=lost, group=group)
        exits.push_async_callback(self.steps.activator.close)
        app = status_app(self.addresses, self.services, view, self.steps)
        serving = listen(app, host="127.0.0.1", port=port, stopping=self._drained, grace_s=1)
        group.create_task(serving)
        for service in self._all_services():
            service.start()

    def _all_services(self) -> list[ModelService]:
        return [*self.services.values(), *([self.steps] if self.steps else [])]

    async def _fork_launcher(
        self, group: asyncio.TaskGroup, exits: AsyncExitStack, models: Sequence["_Prepared"]
    ) -> ForkLauncher | None:
        """The warm parent of every model that vLLM serves; None where there is to be none."""
        real = [one for one in models if one.settings.engine is EngineKind.VLLM]
        if not real or not self.settings.warm_parent:
            return None
        self._report("warming the parent: importing vLLM once, predictors will fork from it")
        socket_path = self._data / "parent.sock"
        preload = {
            "models": [
                {
                    "model": one.model.location,
                    "served_model_name": one.model.name,
                    "vllm_args": one.argv,
                }
                for one in real
            ]
        }
        argv = ["--socket", str(socket_path), "--preload"]
        argv.append("predictor.engine.vllm.preload:preload=" + orjson.dumps(preload).decode())
        command = python_module("predictor.process.parent", *argv)
        parent = Child("parent", command, env=self._base_env, log_dir=self._logs)
        launcher = ForkLauncher(parent, socket_path, self._logs)
        group.create_task(launcher.run())
        exits.push_async_callback(launcher.stop, _STOP_GRACE_S)
        await launcher.warm.wait()
        return launcher

    async def _supervise(self, child: Child) -> None:
        """Start the part again when it ends by itself; give up when it keeps ending."""
        ends: list[float] = []
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            status = await child.wait()
            if self._stopping.is_set():
                return
            ends = [t for t in ends if loop.time() - t < _CRASH_WINDOW_S] + [loop.time()]
            if len(ends) >= _CRASHES_ALLOWED:
                raise StackError(
                    f"the {child.name} keeps ending (status {status})\n{child.log_tail()}"
                )
            _log.warning(
                "part ended, starting it again", action="restart", child=child.name, status=status
            )
            await asyncio.sleep(0.2 * len(ends))
            await child.start()

    async def _stop(self, group: asyncio.TaskGroup) -> None:
        """Predictors first: their jobs are finished or handed over while store and broker still run."""
        grace = f", up to {self.settings.drain_grace:g} s; Ctrl-C again does not wait"
        self._report(f"draining the predictors{grace}" if self.replicas else "stopping")
        draining = group.create_task(self._drain())
        hurried = group.create_task(self._hurried.wait())
        await asyncio.wait({draining, hurried}, return_when=asyncio.FIRST_COMPLETED)
        self._drained.set()

    async def _drain(self) -> None:
        await asyncio.gather(*(service.drain() for service in self._all_services()))


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A model that can be started, with the settings of its own."""

    settings: StackSettings
    model: Model

    @property
    def argv(self) -> list[str]:
        """vLLM's arguments; ours travel as variables."""
        s = self.settings
        if s.engine is not EngineKind.VLLM:
            return []
        limits = ("--max-model-len", str(self.model.context_tokens))
        batch = ("--max-num-seqs", str(s.container_concurrency))
        return [*limits, *batch, *shlex.split(s.engine_args)]

    @property
    def env(self) -> dict[str, str]:
        """The environment of its predictors, beyond that of every process of the stack."""
        url, _, there = self.model.source.partition("#")
        is_provider = self.settings.engine is EngineKind.UPSTREAM
        provider = {
            "TORPOR_UPSTREAM_URL": url,
            "TORPOR_UPSTREAM_MODEL": there,
            "TORPOR_UPSTREAM_MAX_CONCURRENCY": str(self.settings.container_concurrency),
            "TORPOR_UPSTREAM_CONTEXT_TOKENS": str(self.model.context_tokens),
        }
        return (provider if is_provider else {}) | {
            "TORPOR_ENGINE": self.settings.engine,
            "TORPOR_MODEL": self.model.location,
            "TORPOR_MODEL_NAME": self.model.name,
            "TORPOR_SEEDED_MAX_CONCURRENCY": str(self.settings.container_concurrency),
        }


@dataclass(frozen=True, slots=True)
class _Ports:
    api: int
    broker: int
    activator: int


class _Stopped(Exception):
    """Ends the task group, whose other tasks never end by themselves."""


async def _report_failure(directory: ReplicaDirectory, model: str, reason: str) -> None:
    """Report the failure to callers that wait for the model. With the store unavailable only the report is lost."""
    with suppress(Unavailable):
        await directory.report_failure(model, reason)
