"""The request of a job's next turn: the caller's, with the turns so far as messages. Pure.

Called by `eventing.job.job.Job.to_run`, so the predictor, the events and the views see the same request.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from eventing.job.tools.call import CallState, ToolCall, Turn
from eventing.job.tools.fence import fenced
from eventing.job.tools.limits import output_tokens

_UNDECIDED: Final = "The call was not run: it was not approved."
"""Of a call that waited for its approval when the caller went on without one."""
OUTPUT_BUDGETS: Final = ("max_completion_tokens", "max_tokens")
"""Limits of a request's output tokens."""


def body_with_turns(body: Mapping[str, Any], turns: Sequence[Turn]) -> Mapping[str, Any]:
    """The chat body after `turns`. A forced choice of a tool is for the first turn only, since it would force calls
    for ever; a limit of output tokens is for all turns together. After a turn that a limit stopped no tool may be
    called; the definitions stay, so that the prompt keeps its beginning.
    """
    if not turns:
        return body
    said = [message for turn in turns for message in turn_messages(turn)]
    changed: dict[str, Any] = {**body, "messages": [*body["messages"], *said]}
    if "tool_choice" in body and body["tool_choice"] not in ("auto", "none"):
        changed["tool_choice"] = "auto"
    if turns[-1].stopped_by:
        changed["tool_choice"] = "none"
    spent = output_tokens(turns)
    for name in OUTPUT_BUDGETS:
        if body.get(name) is not None:
            changed[name] = max(1, int(body[name]) - spent)
    return changed


def turn_messages(turn: Turn) -> list[dict[str, Any]]:
    """What a turn is in the next prompt: what the model said, and the result of each call; that of the caller's own
    function comes from the caller, as does what is said after them.
    """
    results = [
        _result(call, turn.mark) for call in turn.calls if call.state is not CallState.CLIENT
    ]
    return [dict(turn.message), *results, *map(dict, turn.after)]


def _result(call: ToolCall, mark: str) -> dict[str, Any]:
    text = call.output if call.state.is_final else _UNDECIDED
    is_of_caller = call.carried and not call.server
    content = text if is_of_caller else fenced(text, mark)
    return {"role": "tool", "tool_call_id": call.call_id, "content": content}
