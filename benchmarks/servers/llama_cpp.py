"""llama.cpp's llama-server with Q4_0 weights, and the two files that it reads a LLaVA from.

Its own converter knows LLaVA with another tower only. SLIMDEPLOY_BENCH_LLAMACPP names the folder with llama-server and
llama-quantize; benchmarks/README.md builds them.
"""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimdeploy.model import Model
from slimdeploy.streaming import load_streamed
from slimdeploy.writing import new_folder

from . import Load, Server
from .gguf import Kind, Tensor, Value, write_gguf

NAME = "llama.cpp"
VARIABLE = "SLIMDEPLOY_BENCH_LLAMACPP"
Q4_0, Q4_0_FLASH = "llama.cpp Q4_0, -fa off", "llama.cpp Q4_0, -fa on"

_LANGUAGE, _VISION, _PROJECTOR = "model.language_model", "model.vision_tower", "model.multi_modal_projector"
_NORMAL, _CONTROL = 1, 3  # kinds of tokens
_MOSTLY_F16, _MOSTLY_BF16 = 1, 32  # kinds of files
_LANGUAGE_PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_VISION_PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
}
_NAMES = {
    "lm_head.weight": "output.weight",
    f"{_LANGUAGE}.embed_tokens.weight": "token_embd.weight",
    f"{_LANGUAGE}.norm.weight": "output_norm.weight",
    f"{_VISION}.embeddings.class_embedding": "v.class_embd",
    f"{_VISION}.embeddings.patch_embedding.weight": "v.patch_embd.weight",
    f"{_VISION}.embeddings.position_embedding.weight": "v.position_embd.weight",
    f"{_VISION}.pre_layrnorm.weight": "v.pre_ln.weight",
    f"{_VISION}.pre_layrnorm.bias": "v.pre_ln.bias",
    f"{_PROJECTOR}.linear_1.weight": "mm.0.weight",
    f"{_PROJECTOR}.linear_1.bias": "mm.0.bias",
    f"{_PROJECTOR}.linear_2.weight": "mm.2.weight",
    f"{_PROJECTOR}.linear_2.bias": "mm.2.bias",
}
_TABLES = ("v.class_embd", "v.position_embd.weight")


def servers(checkpoint: Path, folder: Path, load: Load) -> list[Server]:
    """Without flash attention first: it is on by default, and decoding may be faster without it."""
    tools, made = Path(os.environ[VARIABLE]).absolute(), folder / "llama.cpp"
    if not made.exists():
        with new_folder(made) as new:
            convert(load_streamed(str(checkpoint)), checkpoint, new)
            text = new / "text-f16.gguf"
            subprocess.run([tools / "llama-quantize", text, new / "text.gguf", "Q4_0"], check=True, capture_output=True)
            text.unlink()
    files = ("-m", str(made / "text.gguf"), "--mmproj", str(made / "vision.gguf"))
    # Every place has an equal share of -c.
    sizes = ("-c", str(load.streams * load.context), "-np", str(load.streams), "-t", str(load.threads))
    command = (str(tools / "llama-server"), *files, *sizes, "--no-ui")
    return [
        Server(Q4_0, lambda port: (*command, "-fa", "off", "--port", str(port))),
        Server(Q4_0_FLASH, lambda port: (*command, "-fa", "on", "--port", str(port))),
    ]


def convert(model: Model, checkpoint: Path, folder: Path) -> None:
    names = [name for name, _ in model.module.named_parameters()]
    language = [name for name in names if name.startswith((_LANGUAGE, "lm_head"))]
    vision = [name for name in names if name not in language]
    settings = _language_settings(model.config, checkpoint)
    write_gguf(folder / "text-f16.gguf", settings, list(_tensors(model, language, "f16")))
    write_gguf(
        folder / "vision.gguf", _vision_settings(model.config, checkpoint), list(_tensors(model, vision, "bf16"))
    )


def _tensors(model: Model, names: list[str], matrices: Kind) -> Iterator[Tensor]:
    """matrices: the type of what is multiplied with; the rest is small and stays float32."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.module.named_parameters()}
    for name in names:
        if not (ours := gguf_name(name)):
            continue
        kind: Kind = matrices if len(shapes[name]) > 1 and ours not in _TABLES else "f32"
        if len(shapes[name]) > 2:
            kind = "f16"  # the one convolution takes no bfloat16

        def load(name: str = name) -> NDArray[np.float32]:
            weight: NDArray[np.float32] = np.asarray(model.weight(name), np.float32)
            return _rotated(weight, name, model.config.text_config)

        yield Tensor(ours, shapes[name], kind, load)


def gguf_name(name: str) -> str | None:
    """None for what the features of the last block but one do not need."""
    if found := re.fullmatch(rf"{_LANGUAGE}\.layers\.(\d+)\.(.+)\.weight", name):
        return f"blk.{found[1]}.{_LANGUAGE_PARTS[found[2]]}.weight"
    if found := re.fullmatch(rf"{_VISION}\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name):
        return f"v.blk.{found[1]}.{_VISION_PARTS[found[2]]}.{found[3]}"
    return None if "post_layernorm" in name else _NAMES[name]


def _rotated(weight: NDArray[np.float32], name: str, text: Any) -> NDArray[np.float32]:
    """A head's rows in the order of llama.cpp, whose rotation takes neighbours where others take both halves."""
    if not name.startswith(_LANGUAGE) or not name.endswith(("q_proj.weight", "k_proj.weight")):
        return weight
    heads = text.num_attention_heads if "q_proj" in name else text.num_key_value_heads
    return interleaved(weight, heads)


def interleaved(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """weight: (heads * size, columns)."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _language_settings(config: Any, checkpoint: Path) -> dict[str, Value]:
    text = config.text_config
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    control = {token["content"] for token in tokenizer["added_tokens"] if token["special"]}
    return {
        "general.architecture": "llama",
        "general.file_type": _MOSTLY_F16,
        "llama.block_count": text.num_hidden_layers,
        "llama.context_length": text.max_position_embeddings,
        "llama.embedding_length": text.hidden_size,
        "llama.feed_forward_length": text.intermediate_size,
        "llama.attention.head_count": text.num_attention_heads,
        "llama.attention.head_count_kv": text.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": float(text.rms_norm_eps),
        "llama.rope.dimension_count": text.head_dim,
        "llama.rope.freq_base": float(text.rope_parameters["rope_theta"]),
        "llama.vocab_size": text.vocab_size,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [_CONTROL if token in control else _NORMAL for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in tokenizer["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": text.bos_token_id,
        "tokenizer.ggml.eos_token_id": text.eos_token_id,
        "tokenizer.ggml.padding_token_id": config.pad_token_id,
        "tokenizer.chat_template": (checkpoint / "chat_template.jinja").read_text(),
    }


def _vision_settings(config: Any, checkpoint: Path) -> dict[str, Value]:
    vision = config.vision_config
    pictures = json.loads((checkpoint / "processor_config.json").read_text())["image_processor"]
    return {
        "general.architecture": "clip",
        "general.file_type": _MOSTLY_BF16,
        "clip.has_vision_encoder": True,
        "clip.projector_type": "mlp",
        "clip.use_gelu": False,  # then it takes CLIP's quick approximation
        "clip.vision.image_size": vision.image_size,
        "clip.vision.patch_size": vision.patch_size,
        "clip.vision.embedding_length": vision.hidden_size,
        "clip.vision.feed_forward_length": vision.intermediate_size,
        "clip.vision.block_count": vision.num_hidden_layers,
        "clip.vision.attention.head_count": vision.num_attention_heads,
        "clip.vision.attention.layer_norm_epsilon": float(vision.layer_norm_eps),
        "clip.vision.projection_dim": config.text_config.hidden_size,
        "clip.vision.image_mean": pictures["image_mean"],
        "clip.vision.image_std": pictures["image_std"],
    }
