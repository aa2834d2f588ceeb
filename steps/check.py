"""`python -m steps.check FILE`: whether the steps of a `pipelines.yaml` exist and can have their settings.

Run by `torpor up` before it starts anything: the steps process starts with the first job, too late to be corrected.
Exit status: 0, or 2 with one line about what is wrong.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from eventing.errors import BadRequest
from eventing.job.plan import EMBED_STEP, MODERATE_STEP, ROUTE_STEP, Pipelines, load_pipelines
from eventing.store.conversation.policy import STEP as MEMORY
from eventing.store.conversation.policy import memory_policy
from eventing.store.vector_store.query import RETRIEVE_STEP
from steps.grounding.step import NAME as GROUND
from steps.grounding.step import parse_rule as parse_grounding
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


def main(path: Path) -> int:
    """The exit status; what is wrong goes to stderr."""
    try:
        check_steps(load_pipelines(path))
    except BadRequest as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
