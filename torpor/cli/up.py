"""`torpor up`: the embedded stack until Ctrl-C."""

import asyncio
import signal
from typing import Any

from rich.text import Text

from eventing.telemetry import log, trace
from torpor.cli.flags import build, with_flags
from torpor.cli.view.screen import stderr, step
from torpor.local.settings import StackSettings
from torpor.local.stack import Stack


@with_flags(StackSettings)
def up(**flags: Any) -> None:
    """Run api, broker, store and predictors (from zero) on this machine until Ctrl-C."""
    settings = build(StackSettings, **flags)
    log.configure("stack", level=settings.log_level)
    trace.configure("stack")
    asyncio.run(_run(settings))
    trace.close()


async def _run(settings: StackSettings) -> None:
    stack = Stack(settings, step)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stack.stop)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(stack.run())
        ready = group.create_task(stack.up.wait())
        await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED)
        if stack.up.is_set():
            _announce(stack)
        ready.cancel()
    stderr.print(f"stopped; state is kept in {settings.data_dir}")


def _announce(stack: Stack) -> None:
    at, most = stack.addresses, stack.settings.max_replicas
    stderr.print(Text.assemble(("Torpor is up", "bold green"), f", 0 of {most} predictors awake"))
    stderr.print(f"  api     {at.api}     (docs at {at.api}/docs)")
    stderr.print(f"  broker  {at.broker}/    (CloudEvents in)")
    stderr.print('  try     torpor submit --wait "Why is the sky blue?"')
    stderr.print("Ctrl-C ends it; state and models stay. A development stack: no keys.")
