"""Models of this installation that another one stands in for while they do not start.

Called by the settings of api, broker and steps, and by what sends jobs to predictors. One word in a job's record says
which model it waits for and which one stands in for it; a caller may forbid that. Pure, once the file is read.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from eventing.job.job import NO_FALLBACK, forbids_fallback, may_use
from eventing.job.pipelines.document import pipelines_error, read_pipelines

NOT_STARTING: Final = "not_starting"
"""Why a job was sent to another model: no attempt of its own began."""
_NOTHING: Final = "-"
_NAME: Final = re.compile(r"[A-Za-z0-9._:/@-]{1,128}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """The model that stands in, and the tenants whose jobs may go there; all for none."""

    model: str
    tenants: frozenset[str] = frozenset()


Fallbacks = Mapping[str, Fallback]
"""What stands in for a model, by its name."""
NO_FALLBACKS: Final[Fallbacks] = {}


def fallback_word(
    fallbacks: Fallbacks,
    model: str,
    tenant: str,
    asked: str = "",
    metadata: Mapping[str, str] | None = None,
) -> str:
    """What the record of a job says that is to wait for `model`: the model and what stands in for it, or `NO_FALLBACK`
    where its caller wants nothing else, `-` where its tenant or its key may not. `asked` is what the record said
    before.
    """
    found, is_refused = fallbacks.get(model), forbids_fallback(asked)
    if found is None:
        return NO_FALLBACK if is_refused else ""
    is_kept = bool(found.tenants) and tenant not in found.tenants
    is_kept = is_kept or not may_use(metadata or {}, found.model)
    return f"{model} {NO_FALLBACK if is_refused else _NOTHING if is_kept else found.model}"


def stand_in(word: str) -> tuple[str, str] | None:
    """The model that a job waits for, and the one that stands in for it; None where none does."""
    model, _, other = word.partition(" ")
    return (model, other) if other and other not in (NO_FALLBACK, _NOTHING) else None


def load_fallbacks(path: Path) -> Fallbacks:
    """The fallbacks in a pipelines file. Raises `BadRequest` naming the field, or that the file cannot be read."""
    return parse_fallbacks(read_pipelines(path))


def parse_fallbacks(document: Any) -> Fallbacks:
    """The fallbacks in a document `{MODEL: {fallback: OTHER}}`, or with `{model: OTHER, tenants: [...]}`.
    Raises `BadRequest` naming the field.
    """
    entries = document if isinstance(document, Mapping) else {}
    return {
        _name(str(model), model): _fallback(f"{model}.fallback", entry["fallback"])
        for model, entry in entries.items()
        if isinstance(entry, Mapping) and "fallback" in entry
    }


def check_fallbacks(fallbacks: Fallbacks, served: Collection[str]) -> None:
    """Raises `BadRequest` for a fallback of or to a model that has no predictor here, or to itself."""
    known = ", ".join(sorted(served))
    for name, fallback in fallbacks.items():
        if name not in served:
            raise pipelines_error(
                name, f"has a fallback and is none of the models that are served: {known}"
            )
        if fallback.model not in served or fallback.model == name:
            where = f"{name}.fallback: {fallback.model}"
            raise pipelines_error(where, f"is none of the other models that are served: {known}")


def _fallback(where: str, entry: Any) -> Fallback:
    record = {"model": entry} if isinstance(entry, str) else entry
    if not isinstance(record, Mapping) or not record.keys() <= {"model", "tenants"}:
        raise pipelines_error(
            where, "must be the name of a model, or an object with model and tenants"
        )
    tenants = record.get("tenants", [])
    if not isinstance(tenants, list) or not all(isinstance(each, str) for each in tenants):
        raise pipelines_error(f"{where}.tenants", "must be a list of tenants")
    model = _name(where, record.get("model"))
    if model in (NO_FALLBACK, _NOTHING):
        raise pipelines_error(
            where, f"must be another name: {NO_FALLBACK} is what callers say who want none"
        )
    return Fallback(model=model, tenants=frozenset(tenants))


def _name(where: str, name: Any) -> str:
    if not isinstance(name, str) or not _NAME.match(name):
        raise pipelines_error(where, "is no name of a model")
    return name
