"""The steps of `torpor demo`: the stack, one job, and the number of replicas."""

import asyncio
import signal
import time
from pathlib import Path
from typing import Any, Final

import typer
from rich.text import Text

from eventing.telemetry import log
from torpor.cli.errors import UserError
from torpor.cli.flags import build
from torpor.cli.view.screen import JobScreen, stderr, step
from torpor.cli.view.timeline import full_timeline, timeline_lines
from torpor.client import AsyncClient
from torpor.local.engine_kind import EngineKind
from torpor.local.settings import StackSettings
from torpor.local.stack import Stack

_BACK_TO_ZERO_S: Final = 60.0


def show(prompt: str, max_tokens: int, engine: EngineKind, folder: Path) -> None:
    """Run the demo on a folder of its own. Raises `UserError` when the job is not completed."""
    # Knative's real policy, its clock ten times as fast: the default window of 60 s passes in 6.
    settings = build(
        StackSettings,
        port=0,
        broker_port=0,
        data_dir=folder,
        engine=engine,
        time_scale=10,
        log_level="ERROR",
    )
    log.configure("stack", level=settings.log_level)
    asyncio.run(_run(Stack(settings, step), prompt, max_tokens))


async def _run(stack: Stack, prompt: str, max_tokens: int) -> None:
    loop = asyncio.get_running_loop()
    interrupted = asyncio.Event()

    def interrupt() -> None:
        if interrupted.is_set():
            stack.stop()  # the second time: at once
        interrupted.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(stack.run())
        stopping = group.create_task(interrupted.wait())
        story = group.create_task(_story(stack, prompt, max_tokens))
        await asyncio.wait({running, stopping, story}, return_when=asyncio.FIRST_COMPLETED)
        # Stop watching before the stack stops, which would be reported as a lost api.
        for task in (story, stopping):
            task.cancel()
        stack.stop()
    where = stack.settings.data_dir
    if interrupted.is_set():
        stderr.print(f"stopped: no process is left; what was asked is kept in {where}")
        raise typer.Exit(130)
    words = f": no process is left; the model and the data stay in {where}"
    stderr.print(Text.assemble(("done", "green"), words))


async def _story(stack: Stack, prompt: str, max_tokens: int) -> None:
    """The job, once the stack is up, with the number of replicas."""
    await stack.up.wait()
    screen = JobScreen()
    seen = _Replicas(stack, screen)
    counting = asyncio.create_task(seen.count())
    try:
        seen.say("no jobs, no predictor running")
        async with AsyncClient(stack.addresses.api) as api:
            body = {"max_tokens": max_tokens, "temperature": 0}
            job = await api.submit(prompt, body=body)
            screen.line(f"202 accepted, {job.id}")
            end = await screen.follow(api.stream(job.id))
            screen.life(timeline_lines(await full_timeline(api, job.id)))
        _require_completed(end)
        step("waiting for the stable window to pass (at ten times Knative's speed)")
        await seen.wait_for_zero()
    finally:
        counting.cancel()


def _require_completed(job: dict[str, Any]) -> None:
    if job.get("state") != "completed":
        reason = (job.get("error") or {}).get("message", "no reason given")
        raise UserError(f"the job ended as {job.get('state')}: {reason}")


class _Replicas:
    """Prints changes of the number of ready predictors."""

    def __init__(self, stack: Stack, screen: JobScreen) -> None:
        self._stack = stack
        self._screen = screen
        self._last = 0
        self._was_awake = False

    @property
    def ready(self) -> int:
        return self._stack.ready

    def say(self, why: str) -> None:
        self._screen.remark(Text.assemble((f"replicas: {self.ready}", "bold"), f"  {why}"))

    async def count(self) -> None:
        while True:
            if self.ready != self._last:
                self._last = self.ready
                self._was_awake = self._was_awake or self.ready > 0
                self.say("awake" if self.ready else "asleep again")
            await asyncio.sleep(0.05)

    async def wait_for_zero(self) -> None:
        deadline = time.monotonic() + _BACK_TO_ZERO_S
        while self._stack.replicas:
            if time.monotonic() > deadline:
                raise UserError(
                    f"still {self.ready} predictors after {_BACK_TO_ZERO_S:.0f} s; see the logs"
                )
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.1)  # let the counter say it
