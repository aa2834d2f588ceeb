"""Tools that are part of the product: `torpor__read`, which reads a part of a result that was too large to show."""

from typing import Final

from eventing.job.tools.call import EffectClass
from eventing.job.tools.server import BUILT_IN, SEPARATOR, Approval
from eventing.job.tools.tool_list import PinnedServer, PinnedTool

READ: Final = "read"
READ_TOOL: Final = PinnedTool(
    name=f"{BUILT_IN}{SEPARATOR}{READ}",
    tool=READ,
    description=(
        "Reads a part of an earlier tool result that was too large to be shown whole. "
        "`ref` is the reference that the result names; `offset` and `length` are in bytes."
    ),
    input_schema={
        "type": "object",
        "properties": {
            "ref": {"type": "string"},
            "offset": {"type": "integer", "minimum": 0},
            "length": {"type": "integer", "minimum": 1, "maximum": 32 * 1024},
        },
        "required": ["ref"],
        "additionalProperties": False,
    },
    digest=READ,
    effect=EffectClass.READ,
)
BUILT_IN_SERVER: Final = PinnedServer(
    server_label=BUILT_IN,
    digest=BUILT_IN,
    trusted=True,
    approval=Approval.NEVER,
    tools=(READ_TOOL,),
)
