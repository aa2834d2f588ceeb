"""Marks response types whose fields have a description below them, and reads these descriptions.

Used for the OpenAPI document. pydantic can read such descriptions too, but parses the module again for each class:
three quarters of a second for ours, in which the event loop would be blocked.
"""

import ast
import sys
from functools import cache
from inspect import cleandoc, getsource
from typing import Final, TypeVar

_T = TypeVar("_T", bound=type)

DESCRIBED: Final[list[type]] = []


def described(kind: _T) -> _T:
    """Marks `kind`."""
    DESCRIBED.append(kind)
    return kind


def field_texts(kind: type) -> dict[str, str]:
    """The text below each field of `kind` and of its bases."""
    texts: dict[str, str] = {}
    for base in getattr(kind, "__orig_bases__", ()):
        if base in DESCRIBED:
            texts |= field_texts(base)
    return texts | _texts_of(kind.__module__).get(kind.__name__, {})


@cache
def _texts_of(module: str) -> dict[str, dict[str, str]]:
    """By class and field."""
    classes = ast.parse(getsource(sys.modules[module])).body
    return {
        node.name: {
            field.target.id: cleandoc(str(text.value.value))
            for field, text in zip(node.body, node.body[1:], strict=False)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        }
        for node in classes
        if isinstance(node, ast.ClassDef)
    }
