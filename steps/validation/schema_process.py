"""`python -m steps.validation.schema_process`: applies a JSON schema that may be hostile, and ends.

Started by `steps.validation.format_rules`. Reads `{schema, value}` from stdin and writes a JSON list of what is wrong.
References that lead elsewhere are not followed. Exit status: 0, 3 when jsonschema is not installed, or another when the
schema is none.
"""

import resource
import sys
from typing import Final

import orjson

NO_VALIDATOR: Final = 3
"""Exit status."""
_CPU_S: Final = 2
_MEMORY_BYTES: Final = 1024**3
_MOST_PROBLEMS: Final = 5
_CHARACTERS: Final = 400


def main() -> int:
    """The exit status."""
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    try:
        from jsonschema import Draft202012Validator, SchemaError
        from referencing import Registry
        from referencing.exceptions import Unresolvable
    except ModuleNotFoundError:
        return NO_VALIDATOR

    asked = orjson.loads(sys.stdin.buffer.read())
    problems: list[str] = []
    try:
        Draft202012Validator.check_schema(asked["schema"])
        validator = Draft202012Validator(asked["schema"], registry=Registry())
        for error in validator.iter_errors(asked["value"]):
            problems.append(f"{error.json_path}: {error.message}"[:_CHARACTERS])
            if len(problems) == _MOST_PROBLEMS:
                break
    except (SchemaError, Unresolvable):
        return 1
    sys.stdout.buffer.write(orjson.dumps(problems))
    return 0


if __name__ == "__main__":
    sys.exit(main())
