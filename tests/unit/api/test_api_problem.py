"""Errors as answers: one tree, two forms."""

import httpx
import orjson
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route

from api.http.errors import ModelNotFound
from api.http.middleware import RequestMiddleware
from api.http.problem import error_response, problem
from api.settings import ApiSettings
from eventing.errors import (
    BrokerUnavailable,
    ContextExceeded,
    InvalidJob,
    NotFound,
    StoreUnavailable,
    TorporError,
    Unauthorized,
    WrongState,
)
from eventing.process.body import BodyTooLarge
from eventing.settings import ModelCard

OPENAI = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("error", "ours", "openais"),
    [
        pytest.param(InvalidJob("x", "body.a"), 422, 400, id="invalid"),
        pytest.param(ContextExceeded("x", "body.a"), 422, 400, id="too long"),
        pytest.param(ModelNotFound("x", "body.model"), 422, 404, id="unknown model"),
        pytest.param(NotFound("x"), 404, 404, id="not found"),
        pytest.param(WrongState("x"), 409, 400, id="wrong state"),
        pytest.param(BodyTooLarge("x", "body"), 413, 413, id="too large"),
        pytest.param(StoreUnavailable("x"), 503, 503, id="store away"),
        pytest.param(TorporError("x"), 500, 500, id="a bug"),
    ],
)
def test_each_error_has_its_status_on_either_side(
    error: TorporError, ours: int, openais: int
) -> None:
    assert error_response("/v1/jobs", error).status_code == ours
    assert error_response(OPENAI, error).status_code == openais


def test_a_problem_names_its_field() -> None:
    body = orjson.loads(error_response("/v1/jobs", InvalidJob("x", "body.model")).body)

    assert (body["field"], body["code"], body["status"]) == ("body.model", "invalid_job", 422)


def test_openai_names_the_parameter_of_its_own_body() -> None:
    body = orjson.loads(error_response(OPENAI, InvalidJob("x", "body.model")).body)

    assert body["error"]["param"] == "model"


def test_nothing_to_blame_in_the_request_names_no_field() -> None:
    assert "field" not in orjson.loads(error_response("/v1/jobs", StoreUnavailable("x")).body)


@pytest.mark.parametrize(("seconds", "header"), [(0.2, "1"), (1.0, "1"), (1.5, "2"), (60.0, "60")])
def test_retry_after_is_whole_seconds_and_never_zero(seconds: float, header: str) -> None:
    answer = error_response("/v1/jobs", BrokerUnavailable("x", seconds))

    assert answer.headers["retry-after"] == header


def test_a_401_says_how_to_authenticate() -> None:
    assert error_response("/v1/jobs", Unauthorized("x")).headers["www-authenticate"] == "Bearer"


def test_a_refused_body_closes_the_connection() -> None:
    assert error_response("/v1/jobs", BodyTooLarge("x", "body")).headers["connection"] == "close"


def test_printed_settings_hide_secrets() -> None:
    settings = ApiSettings(
        redis_url="redis://:hunter2@host/0",  # type: ignore[arg-type]
        broker_token="hunter2",  # type: ignore[arg-type]
        models=(ModelCard(name="m"),),
    )

    assert b"hunter2" not in settings.masked()


@pytest.mark.parametrize(
    ("error", "title"),
    [
        (Unauthorized("x"), "Unauthorized"),
        (BodyTooLarge("x", "body"), "Content Too Large"),
        (InvalidJob("x", "f"), "Unprocessable Content"),
        (StoreUnavailable("x"), "Service Unavailable"),
        (TorporError("x"), "Internal Server Error"),
    ],
)
def test_the_title_of_a_problem_is_the_reason_phrase_of_rfc_9110(
    error: TorporError, title: str
) -> None:
    assert problem(error)["title"] == title


async def test_an_internal_error_names_the_request_and_nothing_of_the_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def broken(_: object) -> None:
        raise ValueError("a piece of a prompt")

    app = Starlette(routes=[Route("/v1/jobs", broken)], middleware=[Middleware(RequestMiddleware)])
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        answer = await http.get("/v1/jobs", headers={"x-request-id": "req-7"})

    assert answer.status_code == 500
    assert answer.json()["detail"] == "internal error; report request id req-7"
    assert "prompt" not in capsys.readouterr().out
