"""Converts a llama-family GGUF file to safetensors, config.json and a Hugging Face tokenizer.

Called by `predictor.model_files.weights` once per model. Needs `gguf`, `safetensors`, `transformers`. Knows nothing
of caches.

llama.cpp stores the rows of the q and k projections in the order of its rotary embedding (interleaved pairs);
Hugging Face wants the two halves apart, so the rows are reordered (the inverse of llama.cpp's
`convert_hf_to_gguf.py`, `LlamaModel.permute`).
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from gguf import GGUFReader, dequantize
from numpy.typing import NDArray
from safetensors.numpy import save_file

Floats = NDArray[np.float32]

_TOP_LEVEL: Final = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER: Final = re.compile(r"blk\.(\d+)\.(\w+)\.weight")


def hugging_face_name(gguf_name: str) -> str:
    """The Hugging Face name of a llama tensor. Raises ValueError for any other."""
    if top := _TOP_LEVEL.get(gguf_name):
        return top
    match = _LAYER.fullmatch(gguf_name)
    if match is None or match[2] not in _IN_LAYER:
        raise ValueError(f"unknown tensor {gguf_name}")
    return f"model.layers.{match[1]}.{_IN_LAYER[match[2]]}.weight"


def undo_rotary_permutation(weight: Floats, heads: int) -> Floats:
    """Rows of a q or k projection (heads x head size, hidden) in Hugging Face's order."""
    rows, columns = weight.shape
    half = rows // heads // 2
    return weight.reshape(heads, half, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_weights(source: Path, folder: Path) -> Mapping[str, Any]:
    """Write model.safetensors (float32); gives the scalar fields for `write_config`."""
    reader = GGUFReader(str(source))
    fields = _scalar_fields(reader)
    if fields["general.architecture"] != "llama":
        raise ValueError(f"only llama-family models, not {fields['general.architecture']}")
    heads = {
        "attn_q": int(fields["llama.attention.head_count"]),
        "attn_k": int(fields["llama.attention.head_count_kv"]),
    }
    tensors: dict[str, Floats] = {}
    for tensor in reader.tensors:
        values = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        match = _LAYER.fullmatch(tensor.name)
        if match is not None and match[2] in heads:
            values = undo_rotary_permutation(values, heads[match[2]])
        tensors[hugging_face_name(tensor.name)] = np.ascontiguousarray(values)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return {**fields, "tied": "lm_head.weight" not in tensors}


def write_config(fields: Mapping[str, Any], folder: Path) -> None:
    """Write config.json and generation_config.json from the GGUF fields."""
    tokens = {
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": round(fields["llama.attention.layer_norm_rms_epsilon"], 12),
        "rope_theta": fields["llama.rope.freq_base"],
        "vocab_size": fields["llama.vocab_size"],
        "tie_word_embeddings": fields["tied"],
        "torch_dtype": "float32",
        **tokens,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "generation_config.json").write_text(json.dumps(tokens, indent=1))


def write_tokenizer(source: Path, folder: Path) -> None:
    """Write the tokenizer's files, chat template included."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    tokenizer.save_pretrained(str(folder))


def _scalar_fields(reader: GGUFReader) -> dict[str, Any]:
    """Every field that is one number or one string (not the vocabulary, which is long)."""
    return {name: field.contents() for name, field in reader.fields.items() if len(field.data) == 1}
