"""Logs of every Torpor process: one event a line, JSON for machines, colours on a terminal.

Called once by each `__main__`. Lines carry `action` and, where they apply, `job_id`, `attempt`,
`duration_ms`; never a prompt, an output, a query string or a secret.
"""

import logging
import sys
from typing import Final

import orjson
import structlog

from eventing.trace import mark_line

# Without local variables: those hold prompts, headers and passwords.
_TRACEBACKS = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)
_AS_BYTES: Final = structlog.processors.JSONRenderer(serializer=orjson.dumps)
"""Half the price of a line that the standard library writes as text."""
_AS_TEXT: Final = structlog.processors.JSONRenderer()


def configure(service: str, *, level: str = "INFO") -> None:
    """Send structlog, and the standard library's loggers through it, to standard error."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        mark_line,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    is_read_by_people = sys.stderr.isatty()
    text = [structlog.dev.ConsoleRenderer()] if is_read_by_people else [_TRACEBACKS, _AS_TEXT]
    structlog.configure(
        processors=[*shared, *(text if is_read_by_people else [_TRACEBACKS, _AS_BYTES])],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=(
            structlog.PrintLoggerFactory(sys.stderr)
            if is_read_by_people
            else structlog.BytesLoggerFactory(sys.stderr.buffer)
        ),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *text],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
