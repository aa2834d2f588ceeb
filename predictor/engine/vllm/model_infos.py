"""What each of vLLM's model classes can do, learnt when an image is built instead of at each start.

vLLM asks a second interpreter, which imports all of it again, and keeps the answers under `VLLM_CACHE_ROOT`: empty in
a new pod. `python -m predictor.engine.vllm.model_infos` writes them beside the interpreter when the GPU image is built;
a start on a GPU build puts them into the cache. vLLM takes none whose class has changed since: it compares a hash.
"""

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

KEPT: Final = Path(sys.prefix, "share", "torpor", "vllm")
"""A cache root as vLLM has it, in the image; absent in a checkout."""
_FOLDER: Final = "modelinfos"


def share(kept: Path = KEPT) -> int:
    """Copy what was kept to where vLLM looks, but for what is there; the number of files. Must not fail a start."""
    import vllm.envs

    place = Path(vllm.envs.VLLM_CACHE_ROOT, _FOLDER)
    copied = 0
    with suppress(OSError):
        for source in kept.joinpath(_FOLDER).glob("*.json"):
            if not (target := place / source.name).exists():
                place.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
                copied += 1
    return copied


def keep(root: Path = KEPT) -> int:
    """Have vLLM write what it says of every class that imports here; the number of classes. For the others, those that
    need a package or a driver that the build lacks, the second interpreter is asked as before.
    """
    os.environ["VLLM_CACHE_ROOT"] = str(root)

    import vllm.engine.arg_utils  # noqa: F401  (first: vLLM's circular imports)
    from vllm.model_executor.models import registry

    # Nothing here is hurt by CUDA in this process, which is why vLLM takes another.
    registry._run_in_subprocess = lambda ask: ask()
    known = 0
    for model in registry.ModelRegistry.models.values():
        with suppress(Exception):
            model.inspect_model_cls()
            known += 1
    for each in root.joinpath(_FOLDER).glob("*.json"):
        each.chmod(0o644)  # vLLM makes them for itself alone; the image's user is another
    return known


if __name__ == "__main__":
    sys.stdout.write(f"{keep()} classes in {KEPT}\n")
