"""The names of the objects that hold the texts of vector stores' files. Pure.

Called by the steps, which write them, and by the api, which shows them.
"""

from typing import Final

FOLDER: Final = "texts"
"""Beside the folders of tenants' files and of large results."""
PIECE_CHARACTERS: Final = 8192


def text_object_name(store_id: str, file_id: str, generation: str) -> str:
    return f"{store_id}/{file_id}.{generation}.txt"
