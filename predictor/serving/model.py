"""The predictor as KServe sees it: a `Model` for v1 `:predict`, v2 `/infer` and the probes.

Called by KServe's data plane. Must not know jobs or events.

v1: each instance is a prompt (its prediction is the text) or the body of an OpenAI call (its prediction is that
call's body: `messages` makes it a chat, `input` an embedding, `prompt` a completion). A `parameters` object beside
`instances` holds what all of them share (`max_tokens`, ...). v2: one BYTES tensor of prompts in, BYTES tensors
`text` and `finish_reason` out; the request's `parameters` are shared likewise. Its `id` is optional, and so are
`outputs`, which choose among the two.
"""

import asyncio
import struct
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final

from kserve import InferOutput, InferRequest, InferResponse, Model
from kserve.errors import InvalidInput

from eventing.errors import first_of
from predictor.serving.direct_call import DirectCalls

Body = dict[str, Any]
_OUTPUTS: Final = ("text", "finish_reason")


class PredictorModel(Model):  # type: ignore[misc]  # kserve is untyped
    """One model of the server; LoRA names are further models, served by the same engine."""

    def __init__(
        self,
        name: str,
        calls: DirectCalls,
        *,
        is_ready: Callable[[], bool],
        live: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(name)
        self.engine = True
        self.ready = True  # KServe refuses to start without; the real state is `healthy`
        self._calls = calls
        self._is_ready = is_ready
        self._run_replica = live

    async def healthy(self) -> bool:
        """For the probes: true while the engine can serve and no shutdown has begun."""
        return self._is_ready()

    async def start_engine(self) -> None:
        """KServe runs this beside its HTTP server; it is the predictor's whole life."""
        await self._run_replica()

    async def predict(
        self,
        payload: Body | InferRequest,
        headers: Mapping[str, str] | None = None,
        response_headers: Mapping[str, str] | None = None,
    ) -> Body | InferResponse:
        """Answer every instance; they run concurrently as far as there are slots. The first failure ends all, since
        KServe has no response for partial results.
        """
        if isinstance(payload, InferRequest):
            return await self._infer(payload)
        if not isinstance(payload, Mapping) or not isinstance(payload.get("instances"), list):
            raise InvalidInput('the body needs a list "instances"')
        shared = payload.get("parameters", {})
        if not isinstance(shared, Mapping):
            raise InvalidInput('"parameters" must be an object')
        calls = [self._instance(each, dict(shared)) for each in payload["instances"]]
        return {"predictions": await self._all(calls)}

    async def _instance(self, instance: Any, shared: Body) -> Any:
        if isinstance(instance, str):
            whole = await self._call("/v1/completions", {**shared, "prompt": instance})
            return whole["choices"][0]["text"]
        if not isinstance(instance, Mapping):
            raise InvalidInput("an instance must be a prompt or the body of an OpenAI call")
        url = "/v1/completions"
        if "messages" in instance:
            url = "/v1/chat/completions"
        elif "input" in instance:
            url = "/v1/embeddings"
        return await self._call(url, {**shared, **instance})

    async def _infer(self, request: InferRequest) -> InferResponse:
        if len(request.inputs) != 1 or request.inputs[0].datatype != "BYTES":
            raise InvalidInput("send one tensor of datatype BYTES: the prompts")
        for wanted in request.request_outputs or ():
            if wanted.name not in _OUTPUTS:
                raise InvalidInput(
                    f"no output {wanted.name!r:.100}; there is {', '.join(_OUTPUTS)}"
                )
        prompts = _prompts(request.inputs[0])
        shared = {name: _plain(value) for name, value in (request.parameters or {}).items()}
        shared.pop("binary_data_output", None)
        answers = await self._all(
            [self._call("/v1/completions", {**shared, "prompt": prompt}) for prompt in prompts]
        )
        choices = [answer["choices"][0] for answer in answers]
        return InferResponse(
            response_id=request.id or str(uuid.uuid4()),
            model_name=request.model_name,
            infer_outputs=[
                _tensor("text", [choice["text"] for choice in choices]),
                _tensor("finish_reason", [choice["finish_reason"] or "" for choice in choices]),
            ],
            use_binary_outputs=request.use_binary_outputs,
            requested_outputs=request.request_outputs,
        )

    def get_input_types(self) -> list[Body]:
        """For the metadata of v2."""
        return [{"name": "prompt", "datatype": "BYTES", "shape": [-1]}]

    def get_output_types(self) -> list[Body]:
        """For the metadata of v2."""
        return [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in _OUTPUTS]

    async def _call(self, url: str, body: Body) -> Body:
        return await self._calls.answer(url, {"model": self.name, **body})

    async def _all(self, calls: list[Coroutine[Any, Any, Any]]) -> list[Any]:
        """Every result in order, using half of the slots at most. The first failure cancels the others and is
        raised unchanged.
        """
        slots = asyncio.Semaphore(max(1, self._calls.engine.max_concurrency // 2))

        async def in_turn(call: Coroutine[Any, Any, Any]) -> Any:
            async with slots:
                return await call

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(in_turn(call)) for call in calls]
        except ExceptionGroup as failures:
            for call in calls:
                call.close()  # those that never started
            raise first_of(failures) from None
        return [task.result() for task in tasks]


def _prompts(tensor: Any) -> list[str]:
    """The texts of a BYTES tensor. Raises `InvalidInput` when shape and data do not agree."""
    try:
        return [_text(value) for value in tensor.as_numpy().flatten()]
    except (ValueError, TypeError, struct.error, IndexError) as error:
        raise InvalidInput("the tensor's data do not fit its shape and datatype") from error


def _plain(value: Any) -> Any:
    """A parameter of a v2 request: plain JSON, or the value inside gRPC's wrapper."""
    chosen = getattr(value, "WhichOneof", None)
    return getattr(value, chosen("parameter_choice")) if chosen else value


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _tensor(name: str, texts: list[str]) -> InferOutput:
    output = InferOutput(name=name, shape=[len(texts)], datatype="BYTES")
    output.set_data_from_numpy(_as_bytes(texts), binary_data=False)
    return output


def _as_bytes(texts: list[str]) -> Any:
    import numpy as np

    return np.array([text.encode() for text in texts], dtype=object)
