"""Prepares a pre-imported parent for its forks: imports vLLM and KServe, and makes the model's configuration.

Called by `python -m predictor.process.parent --preload predictor.engine.vllm.preload:preload=JSON`, where the JSON
has `models`, a list of fields of `VllmSettings`, or is empty to import only. Must leave no thread behind.
"""

from collections.abc import Mapping
from typing import Any

from predictor.engine.vllm.start import (
    VllmSettings,
    is_cpu_build,
    prepare_environment,
    share_configuration,
)
from predictor.errors import EngineStartError


def preload(options: Mapping[str, Any]) -> None:
    """Import everything that a predictor needs; with models, make the configuration of each too.

    Raises `EngineStartError` on a GPU build: a process that has used CUDA must not be forked.
    """
    if not is_cpu_build():
        raise EngineStartError("a forking parent is for CPU only: set TORPOR_WARM_PARENT=false")
    models = [
        VllmSettings(**{**model, "vllm_args": tuple(model.get("vllm_args", ()))})
        for model in options.get("models", ())
    ]
    prepare_environment(models[0] if models else VllmSettings(model="", served_model_name=""))
    _import_all()
    for model in models:
        share_configuration(model)


def _import_all() -> None:
    # The order matters: vLLM's modules import each other in circles unless this one comes first.
    import vllm.engine.arg_utils
    import vllm.v1.engine.async_llm
    import vllm.v1.engine.core
    import vllm.v1.worker.cpu_worker  # noqa: F401
