"""`python -m steps.retrieval.pdf`: a PDF on stdin, its text as UTF-8 on stdout; exit status 1 when it has none,
3 when pypdf is not installed.

Started by `steps.retrieval.text` for each PDF, and bounded: two minutes of CPU, 2 GiB of memory.
"""

import io
import resource
import sys
from typing import Final

NO_READER: Final = 3
"""Exit status."""
_CPU_S: Final = 120
_MEMORY_BYTES: Final = 2 * 1024**3


def main() -> int:
    """Read, extract, write."""
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ModuleNotFoundError:
        return NO_READER

    try:
        reader = PdfReader(io.BytesIO(sys.stdin.buffer.read()))
        pages = [page.extract_text() for page in reader.pages]
    except (PyPdfError, ValueError, KeyError, TypeError, IndexError, AttributeError, OSError):
        return 1  # what a malformed file makes of a parser
    except (RecursionError, MemoryError):
        return 1
    sys.stdout.buffer.write("\n\n".join(pages).encode("utf-8", "replace"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
