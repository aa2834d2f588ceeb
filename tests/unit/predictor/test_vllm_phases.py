"""The start phases that vLLM's worker reports, and their receiver."""

import asyncio
from importlib import import_module

from predictor.engine.engine import ColdStartPhase
from predictor.engine.vllm.phases import forward_only, heard, timed


class Worker:
    """A worker of vLLM's, as far as its start goes."""

    def load_model(self) -> str:
        return "loaded"

    def determine_available_memory(self) -> int:
        return 7

    def initialize_from_config(self, config: str) -> str:
        return config


def resolved(name: str) -> type[Worker]:
    """As vLLM finds a worker class by its name."""
    module, _, attribute = name.rpartition(".")
    worker: type[Worker] = getattr(import_module(module), attribute)
    return worker


TIMED = timed("tests.unit.predictor.test_vllm_phases.Worker")


async def test_a_worker_is_heard_as_it_goes_through_its_start() -> None:
    seen: list[ColdStartPhase] = []
    worker = resolved(TIMED)()
    with heard(seen.append):
        await asyncio.to_thread(worker.load_model)
        await asyncio.to_thread(worker.determine_available_memory)
        while len(seen) < 2:
            await asyncio.sleep(0.001)
        worker.initialize_from_config("told at the very end")

    assert seen == [ColdStartPhase.WEIGHTS, ColdStartPhase.COMPILE, ColdStartPhase.WARM_UP]


def test_a_timed_worker_does_what_vllms_own_does() -> None:
    worker = resolved(TIMED)()

    assert worker.load_model() == "loaded"  # with nobody listening, too
    assert worker.determine_available_memory() == 7
    assert worker.initialize_from_config("it") == "it"


def test_a_phase_is_reported_once_and_never_after_a_later_one() -> None:
    seen: list[ColdStartPhase] = []
    report = forward_only(seen.append)
    for phase in ("import", "weights", "weights", "warm_up", "compile", "ready"):
        report(ColdStartPhase(phase))

    assert seen == ["import", "weights", "warm_up", "ready"]
