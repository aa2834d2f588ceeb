"""`python -m steps.check FILE`: whether the steps of a `pipelines.yaml` exist and can have their settings; with
`--installed` also whether what they need is installed here.

Run by `torpor up` before it starts anything: the steps process starts with the first job, too late to be corrected.
Exit status: 0, or 2 with one line about what is wrong.
"""

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from eventing.errors import BadRequest
from eventing.job.plan import (
    EMBED_STEP,
    MODERATE_STEP,
    ROUTE_STEP,
    Pipelines,
    PlannedStep,
    load_pipelines,
)
from eventing.store.conversation.policy import STEP as MEMORY
from eventing.store.conversation.policy import memory_policy
from eventing.store.vector_store.query import RETRIEVE_STEP, SEARCH_STEP
from steps.embedding.model_file import MODEL, TOKENIZER, read_verified
from steps.grounding.step import NAME as GROUND
from steps.grounding.step import parse_rule as parse_grounding
from steps.handler import NotInstalled, not_installed
from steps.retrieval.settings import check_retrieve
from steps.route.tiers import parse_rule
from steps.semantic_cache.settings import NAME as SEMANTIC_CACHE
from steps.semantic_cache.settings import parse_settings
from steps.validation.moderate import parse_moderation
from steps.validation.moderate_input import NAME as MODERATE_INPUT
from steps.validation.moderate_input import parse_input_rule
from steps.validation.step import NAME as VALIDATE_OUTPUT
from steps.validation.step import parse_rule as parse_validation

NO_OPS: Final = ("no-op", "no-op-2", "no-op-3", "no-op-4", "no-op-5")
"""Steps that change nothing; there are several names, since a plan has each step once (`bench/step_overhead.py`)."""


def _takes_none(settings: Mapping[str, Any]) -> None:
    for name in settings:
        raise BadRequest(f"{name} is not supported", name)


def _takes_any(_: Mapping[str, Any]) -> None:
    return


CHECKS: Final[Mapping[str, Callable[[Mapping[str, Any]], object]]] = {
    **dict.fromkeys(NO_OPS, _takes_any),
    EMBED_STEP: _takes_none,
    MEMORY: memory_policy,
    MODERATE_STEP: parse_moderation,
    MODERATE_INPUT: parse_input_rule,
    RETRIEVE_STEP: check_retrieve,
    ROUTE_STEP: parse_rule,
    SEMANTIC_CACHE: parse_settings,
    VALIDATE_OUTPUT: parse_validation,
    GROUND: parse_grounding,
}
"""What judges the settings of each step that a plan may have."""


def check_steps(plans: Pipelines) -> None:
    """Raises `BadRequest` naming the model and the step that does not exist, or whose settings are wrong."""
    for model, plan in plans.items():
        for step in plan.steps:
            where = f"pipelines: {model}.steps: {step.name}"
            if step.name not in CHECKS:
                known = ", ".join(name for name in CHECKS if name not in NO_OPS)
                raise BadRequest(f"{where} is no step; known: {known}", model)
            try:
                CHECKS[step.name](step.settings)
            except BadRequest as error:
                field = error.field or "settings"
                said = error.message.removeprefix(f"{step.name}: ")
                words = said if field in said else f"{field} {said}"
                raise BadRequest(f"{where}: {words}", model) from error


def check_installed(plans: Pipelines) -> None:
    """Raises `BadRequest` naming the model and the step that needs what is not installed here."""
    embeds = not os.environ.get("TORPOR_EMBEDDING_URL")
    in_postgres = os.environ.get("TORPOR_INDEX_URL", "").startswith("postgres")
    for model, plan in plans.items():
        for step in plan.steps:
            needs = missing(step, has_own_embedder=embeds, has_postgres=in_postgres)
            if needs:
                raise BadRequest(
                    f"pipelines: {model}.steps: {step.name}: {'; '.join(needs)}", model
                )


def missing(step: PlannedStep, *, has_own_embedder: bool, has_postgres: bool) -> list[str]:
    """What the step needs and is not installed here, in words. `has_own_embedder` says that texts become vectors in
    this process, `has_postgres` that vector indexes are in PostgreSQL.
    """
    is_search = step.name in (SEARCH_STEP, RETRIEVE_STEP)
    is_recalling = step.name == MEMORY and step.settings.get("recall_k") != 0
    embeds = step.name == EMBED_STEP or (
        has_own_embedder and (is_search or is_recalling or step.name == SEMANTIC_CACHE)
    )
    modules = {
        "numpy": True,
        "onnxruntime": embeds,
        "tokenizers": embeds or step.name == SEMANTIC_CACHE,
        "pypdf": is_search,  # of files that are indexed here
        "asyncpg": is_search and has_postgres,
        "jsonschema": step.name == VALIDATE_OUTPUT,
    }
    said = [
        not_installed(name).message
        for name, is_needed in modules.items()
        if is_needed and find_spec(name) is None
    ]
    for file, is_needed in ((MODEL, embeds), (TOKENIZER, modules["tokenizers"])):
        try:
            if is_needed:
                read_verified(file)
        except NotInstalled as error:
            said.append(error.message)
    return said


def main(path: Path, options: Iterable[str] = ()) -> int:
    """The exit status; what is wrong goes to stderr."""
    try:
        plans = load_pipelines(path)
        check_steps(plans)
        if "--installed" in options:
            check_installed(plans)
    except BadRequest as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
