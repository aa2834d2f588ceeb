"""The models that are served, as at OpenAI.

Called by `api.wiring`.
"""

from dataclasses import dataclass

from starlette.responses import Response

from api.auth.principal import Scope
from api.job.catalog import Catalog
from api.routes.jobs import json_response
from api.routes.route import Call, Routes
from api.view.openai import ModelList, ModelView
from eventing.errors import NotFound
from eventing.settings import ModelCard


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDeps:
    """The dependencies of the models' routes."""

    catalog: Catalog


routes: Routes[ModelDeps] = Routes("openai")


@routes.operation("GET", "/v1/models", Scope.JOBS_READ, answers=ModelList)
async def list_models(call: Call[ModelDeps]) -> Response:
    """List the models, running or at zero."""
    cards = call.deps.catalog.cards
    return json_response({"object": "list", "data": [_model(card) for card in cards]})


@routes.operation("GET", "/v1/models/{model:path}", Scope.JOBS_READ, answers=ModelView)
async def retrieve_model(call: Call[ModelDeps]) -> Response:
    """Retrieve a model."""
    name = call.request.path_params["model"]
    card = call.deps.catalog.card(name)
    if card is None:
        path = call.request.url.path
        raise NotFound(
            "no such model here"
            if name
            else f"nothing is served at {path}; did you mean {path.rstrip('/')}?"
        )
    return json_response(_model(card))


def _model(card: ModelCard) -> ModelView:
    return {
        "id": card.name,
        "object": "model",
        "created": 0,
        "owned_by": "torpor",
        "max_model_len": card.context_tokens,
        "capabilities": None if card.capabilities is None else sorted(card.capabilities),
    }
