"""`python -m predictor [--engine vllm|upstream|seeded] [vLLM's own arguments]`: one predictor process.

Also called as `main(argv)` in a child that a pre-imported parent has forked (`predictor.process.parent`), so
importing this module has no effects, and the event loop is made inside `main`. Everything that is not a flag is a
`TORPOR_*` variable (`predictor.settings`).
"""

import os
import signal

if __name__ == "__main__":
    # Before the imports, which take a second: as PID 1 a process ignores what it does not handle.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

import argparse
import socket
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

from eventing.process.egress import allow_list
from eventing.process.setting import WrongSetting, read
from predictor.engine.engine import Engine
from predictor.process.gc import gc_disabled
from predictor.settings import EngineKind, PredictorSettings

_FLAGS = {
    "--engine": "vllm (default), upstream (a provider's endpoint), or seeded, the test engine",
    "--model": "what vLLM loads: a packaged model, a folder, or a name on a hub",
    "--model_name": "name that requests use (also --served-model-name)",
    "--host": "address to bind",
    "--http_port": "HTTP port (also --port)",
    "--grpc_port": "gRPC port of the v2 protocol; gRPC is off without it",
    "--grpc_host": "address that gRPC binds; loopback without it",
    "--replica-id": "our name in leases and in the list of replicas",
}
_ALIASES = {
    "--http_port": ("--http-port", "--port"),
    "--model_name": ("--model-name", "--served-model-name"),
    "--grpc_port": ("--grpc-port",),
    "--grpc_host": ("--grpc-host",),
}
_FIELDS = {
    "http_port": "predictor_port",
    "host": "predictor_host",
}


def main(argv: list[str]) -> int:
    """Run a predictor until it is stopped; exit code 0 after a clean end, 1 for a failure, 2 for invalid
    settings.
    """
    started_s = time.monotonic() - _age_s()
    signal.signal(signal.SIGTERM, _leave_early)
    try:
        settings, show, engine_args = _settings(argv)
        if show:
            _say(settings.model_dump_json(indent=1))
            return 0

        from eventing.telemetry import log, trace

        log.configure("predictor", level=settings.log_level)
        trace.configure("predictor")
    except WrongSetting as error:
        _say(f"torpor predictor: {error}")
        return 2
    warnings.filterwarnings("ignore", message="ORJSONResponse is deprecated")  # KServe's
    listener = _bind(settings.predictor_host, settings.predictor_port, "--http_port")
    if listener is None:
        return 1
    if settings.grpc_port:
        if (grpc_listener := _bind(settings.grpc_host, settings.grpc_port, "--grpc_port")) is None:
            return 1
        grpc_listener.close()  # gRPC takes an address, not a socket
    engine, prepare = _build_engine(settings, engine_args)

    with gc_disabled():
        from predictor.server import Predictor

    exit_code = Predictor(settings, engine, listener, started_s=started_s, prepare=prepare).run()
    trace.close()
    return exit_code


def _settings(argv: list[str]) -> tuple[PredictorSettings, bool, list[str]]:
    """Settings, whether only to print them, and the arguments for vLLM."""
    parser = argparse.ArgumentParser(
        prog="python -m predictor",
        allow_abbrev=False,
        description="Everything else is passed to vLLM as it is; settings: TORPOR_* variables.",
    )
    for flag, text in _FLAGS.items():
        parser.add_argument(flag, *_ALIASES.get(flag, ()), help=text, default=argparse.SUPPRESS)
    parser.add_argument("--print-settings", action="store_true", help="show them and exit")
    known, rest = parser.parse_known_args(argv)
    given: dict[str, Any] = vars(known)
    show = given.pop("print_settings")
    fields = {_FIELDS.get(name, name): value for name, value in given.items()}
    return read(PredictorSettings, **fields), show, rest


def _build_engine(
    settings: PredictorSettings, engine_args: list[str]
) -> tuple[Engine, Callable[[], object]]:
    """The engine, not started, and what must be prepared before it can start."""
    match settings.engine:
        case EngineKind.SEEDED:
            from predictor.engine.seeded_engine import SeededEngine, SeededSettings

            engine = SeededEngine(
                SeededSettings(
                    model_names=(settings.served_name,),
                    tokens_per_s=settings.seeded_tokens_per_s,
                    prefill_tokens_per_s=settings.seeded_prefill_tokens_per_s,
                    start_up_s=settings.seeded_start_up_s,
                    max_concurrency=settings.seeded_max_concurrency,
                    max_model_len=settings.seeded_max_model_len,
                )
            )
            return engine, lambda: None
        case EngineKind.UPSTREAM:
            return _upstream_engine(settings), lambda: None
        case EngineKind.VLLM:
            from predictor.engine.vllm.engine import VllmEngine, VllmSettings
            from predictor.model_files.weights import PACKAGED, ensure_model

            is_packaged = settings.model in PACKAGED
            place = str(settings.models_dir / settings.model) if is_packaged else settings.model
            vllm = VllmSettings(
                model=place,
                served_model_name=settings.served_name,
                vllm_args=tuple(engine_args),
            )
            return VllmEngine(vllm), lambda: ensure_model(settings.model, settings.models_dir, _say)


def _upstream_engine(settings: PredictorSettings) -> Engine:
    """The engine that asks a provider, and those that stand in for it."""
    from predictor.engine.upstream.engine import UpstreamEngine, UpstreamSettings
    from predictor.engine.upstream.provider import shared_state
    from predictor.engine.upstream.target import Endpoint

    first = Endpoint(
        url=settings.upstream_url,
        model=settings.upstream_model or settings.served_name,
        key_file=settings.upstream_key_file,
        cache_salt=settings.upstream_cache_salt,
    )
    others = (Endpoint(**dict(each)) for each in settings.upstream_fallbacks)
    upstream = UpstreamSettings(
        model_name=settings.served_name,
        endpoints=(first, *others),
        tenants=frozenset(settings.upstream_tenants),
        allowed=allow_list(settings.upstream_allow),
        max_concurrency=settings.upstream_max_concurrency,
        max_model_len=settings.upstream_context_tokens,
        stall_s=settings.stall_s,
        hedges=settings.upstream_hedges,
    )
    url = settings.redis_url.get_secret_value()
    return UpstreamEngine(upstream, shared_state(url, settings.store_wait_s))


def _bind(host: str, port: int, flag: str) -> socket.socket | None:
    """The listening socket, so that a taken port is reported before the model is loaded; None, and a line that says
    so, when it cannot be bound.
    """
    try:
        return socket.create_server((host, port), backlog=2048, reuse_port=False)
    except OSError as error:
        _say(f"cannot listen on {host}:{port}: {error.strerror} ({flag})")
        return None


def _age_s() -> float:
    """Seconds since this process was started, or forked."""
    import psutil  # type: ignore[import-untyped]

    return max(0.0, time.time() - float(psutil.Process().create_time()))


def _leave_early(*_: object) -> None:
    """SIGTERM before there is anything to drain or to stop."""
    os._exit(0)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is settled and stopped. Taking torch and vLLM down module by module would burn 6 to
    # 8 s of CPU more on two cores, which the next predictor needs.
    os._exit(exit_code)
