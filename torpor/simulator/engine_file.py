"""Reads an engine's speeds from a name or a YAML file.

Called by the command line. It must not know what an engine does with them.
"""

from pathlib import Path

import yaml

from knative.autoscaling.setting import Refusal, RefusedSettingsError
from torpor.simulator.engine import ENGINES, EngineModel

_FIELDS = "prefill_tokens_per_s, decode ({batch: tokens/s}), max_batch, decode_during_prefill"


def read_engine(name_or_path: str) -> EngineModel:
    """The engine of a known name, or of a file with its speeds.

    Raises RefusedSettingsError when it is neither, or when a speed makes no sense.
    """
    if name_or_path in ENGINES:
        return ENGINES[name_or_path]
    path = Path(name_or_path)
    if not path.is_file():
        allowed = f"{', '.join(ENGINES)}, or a YAML file with {_FIELDS}"
        raise RefusedSettingsError((Refusal("engine", name_or_path, allowed),))
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
        return EngineModel(
            prefill_tokens_per_s=float(fields["prefill_tokens_per_s"]),
            decode=tuple(sorted((int(k), float(v)) for k, v in fields["decode"].items())),
            max_batch=int(fields["max_batch"]),
            decode_during_prefill=float(fields.get("decode_during_prefill", 0.5)),
            source=str(path),
        )
    except (KeyError, TypeError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise RefusedSettingsError((Refusal("engine", str(error), _FIELDS),)) from error
