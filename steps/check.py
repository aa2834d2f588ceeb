"""`python -m steps.check FILE`: whether the steps of a `pipelines.yaml` exist and can have their settings; with
`--installed` also whether what they need is installed here.

Run by `torpor up` before it starts anything: the steps process starts with the first job, too late to be corrected.
Exit status: 0, or 2 with one line about what is wrong.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from eventing.errors import BadRequest
from eventing.job.pipelines.document import load_pipelines
from eventing.job.plan import (
    EMBED_STEP,
    LIST_TOOLS_STEP,
    MODERATE_STEP,
    ROUTE_STEP,
    TOOLS_STEP,
    Pipelines,
    PlannedStep,
)
from eventing.store.conversation.policy import STEP as MEMORY
from eventing.store.conversation.policy import memory_policy
from eventing.store.vector_store.query import RETRIEVE_STEP, SEARCH_STEP
from steps.embedding.model_file import MODEL, TOKENIZER, PackagedFile, read_verified
from steps.grounding.step import NAME as GROUND
from steps.grounding.step import parse_rule as parse_grounding
from steps.handler import NotInstalled, not_installed
from steps.retrieval.settings import check_retrieve
from steps.route.tiers import parse_rule
from steps.semantic_cache.settings import NAME as SEMANTIC_CACHE
from steps.semantic_cache.settings import parse_settings
from steps.tools.settings import parse_list_settings, parse_tool_settings
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
    LIST_TOOLS_STEP: parse_list_settings,
    TOOLS_STEP: parse_tool_settings,
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
    urls = [os.environ.get(f"TORPOR_{name}_URL", "") for name in ("EMBEDDING", "INDEX")]
    for model, plan in plans.items():
        for name, needs in missing(plan.steps, *urls).items():
            raise BadRequest(f"pipelines: {model}.steps: {name}: {'; '.join(needs)}", model)


def missing(
    steps: Iterable[PlannedStep], embedding_url: str, index_url: str
) -> dict[str, list[str]]:
    """What steps need and is not installed here, in words: each once, under the first step that needs it. The
    addresses are those of the settings: what is elsewhere is not needed here.
    """
    needs: dict[str | PackagedFile, str] = {}
    for step in steps:
        for need in _needs(step, embedding_url, index_url):
            needs.setdefault(need, step.name)
    found: dict[str, list[str]] = {}
    for need, name in needs.items():
        if (words := _why_not(need)) is not None:
            found.setdefault(name, []).append(words)
    return found


def _needs(step: PlannedStep, embedding_url: str, index_url: str) -> Iterator[str | PackagedFile]:
    """The modules and files that a step needs."""
    is_search = step.name in (SEARCH_STEP, RETRIEVE_STEP)
    is_recalling = step.name == MEMORY and step.settings.get("recall_k") != 0
    is_cache = step.name == SEMANTIC_CACHE
    embeds = not embedding_url and (is_search or is_recalling or is_cache)
    yield "numpy"
    if embeds or step.name == EMBED_STEP:
        yield from ("onnxruntime", "tokenizers", MODEL, TOKENIZER)
    if is_cache:
        yield from ("tokenizers", TOKENIZER)
    if is_search:
        yield "pypdf"  # of files that are indexed here
    if is_search and index_url.startswith("postgres"):
        yield "asyncpg"
    if step.name == VALIDATE_OUTPUT:
        yield "jsonschema"
    if step.name == LIST_TOOLS_STEP:
        yield "mcp"


def _why_not(need: str | PackagedFile) -> str | None:
    if isinstance(need, str):
        return None if find_spec(need) else not_installed(need).message
    try:
        read_verified(need)
    except NotInstalled as error:
        return error.message
    return None


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
