"""A step that changes nothing, to measure what a step costs and to try a pipeline."""

from steps.handler import Continue, StepCall, StepOutcome


async def no_op(call: StepCall) -> StepOutcome:
    """The job goes on with the same request; the setting `detail` is shown to its caller."""
    detail = call.settings.get("detail", {})
    return Continue(detail=detail if isinstance(detail, dict) else {})
