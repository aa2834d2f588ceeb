"""Whether a call needs a person's decision: the operator's word, the request's, and what the job has read. Pure.

Called by the decision. The strictest wins: a request may ask for more approvals than the operator, never for fewer.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from eventing.job.tools.call import CallState, EffectClass, Turn
from eventing.job.tools.server import BUILT_IN, Approval
from eventing.job.tools.tool_list import PinnedServer, PinnedTool

REQUIRED: Final = "approval"
TAINTED: Final = "tainted"
"""Why a call waits: it always does, or because of what the job has read."""


def reason_to_ask(
    server: PinnedServer,
    tool: PinnedTool,
    require_approval: Any,
    taints: frozenset[str],
) -> str:
    """Why a person is asked; empty where none is. `require_approval` is the request's, None for a server that the
    operator bound; `taints` are the origins whose text the job has read without trusting it.
    """
    if server.approval is Approval.ALWAYS or asks(require_approval, tool):
        return REQUIRED
    if taints and (tool.effect is not EffectClass.READ or taints != {server.origin}):
        return TAINTED
    return ""


def asks(require_approval: Any, tool: PinnedTool) -> bool:
    """What the request's `require_approval` says of the tool: `always`, `never`, or filters for either; what no
    filter names is asked for.
    """
    if require_approval is None:
        return False
    if not isinstance(require_approval, Mapping):
        return bool(require_approval != Approval.NEVER)
    if _matches(require_approval.get(Approval.ALWAYS), tool):
        return True
    return not _matches(require_approval.get(Approval.NEVER), tool)


def _matches(given: Any, tool: PinnedTool) -> bool:
    """True where every part of the filter names the tool. An empty one names none. What is read-only is said by the
    effect class, not by the server.
    """
    if not isinstance(given, Mapping):
        return False
    names, read_only = given.get("tool_names"), given.get("read_only")
    said = []
    if isinstance(names, Sequence) and not isinstance(names, str):
        said.append(tool.tool in names)
    if isinstance(read_only, bool):
        said.append((tool.effect is EffectClass.READ) is read_only)
    return bool(said) and all(said)


def tainting_origins(
    turns: Sequence[Turn], servers: Mapping[str, PinnedServer], read_before: Iterable[str] = ()
) -> frozenset[str]:
    """The origins of untrusted servers whose results the job's next prompt has. A server that is in no list any more
    is not trusted. `read_before` are the labels of those whose results came with the request.
    """
    read = {
        call.server
        for turn in turns
        for call in turn.calls
        if call.server and call.state is CallState.RETURNED
    }
    found = set()
    for label in (read | set(read_before)) - {BUILT_IN}:
        server = servers.get(label)
        if not (server and server.trusted):
            found.add(server.origin if server else label)
    return frozenset(found)
