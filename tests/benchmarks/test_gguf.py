"""What llama.cpp is given of a checkpoint: a file as its format says, every weight by its name there."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def read_text(data: memoryview, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, at)
    return bytes(data[at + 8 : at + 8 + length]).decode(), at + 8 + length


def read_value(data: memoryview, at: int, kind: int) -> tuple[Any, int]:
    formats = {4: "<I", 5: "<i", 6: "<f", 7: "<?"}
    if kind == 8:
        return read_text(data, at)
    if kind == 9:
        kind, count = struct.unpack_from("<iQ", data, at)
        values, at = [], at + 12
        for _ in range(count):
            value, at = read_value(data, at, kind)
            values.append(value)
        return values, at
    (value,) = struct.unpack_from(formats[kind], data, at)
    return value, at + struct.calcsize(formats[kind])


def read_gguf(file: Path) -> tuple[dict[str, Any], dict[str, tuple[tuple[int, ...], int, bytes]]]:
    """Settings; and of each tensor its dimensions as they are stored, its type and its bytes to the next one."""
    data = memoryview(file.read_bytes())
    assert bytes(data[:4]) == b"GGUF"
    version, tensor_count, setting_count = struct.unpack_from("<Iqq", data, 4)
    assert version == 3
    at, settings, heads = 24, {}, []
    for _ in range(setting_count):
        key, at = read_text(data, at)
        (kind,) = struct.unpack_from("<i", data, at)
        settings[key], at = read_value(data, at + 4, kind)
    for _ in range(tensor_count):
        name, at = read_text(data, at)
        (rank,) = struct.unpack_from("<I", data, at)
        dimensions = struct.unpack_from(f"<{rank}q", data, at + 4)
        kind, offset = struct.unpack_from("<iQ", data, at + 4 + 8 * rank)
        heads.append((name, dimensions, kind, offset))
        at += 4 + 8 * rank + 12
    start = -(-at // 32) * 32
    ends = [start + head[3] for head in heads[1:]] + [len(data)]
    tensors = {
        name: (dimensions, kind, bytes(data[start + offset : end]))
        for (name, dimensions, kind, offset), end in zip(heads, ends, strict=True)
    }
    return settings, tensors


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    from servers.gguf import Tensor, write_gguf

    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensors = [
        Tensor("whole", (2, 3), "f32", lambda: values),
        Tensor("half", (2, 3), "f16", lambda: values),
        Tensor("brain", (2, 3), "bf16", lambda: values),
    ]
    settings = {"a": True, "b": 7, "c": 0.5, "d": "word", "e": ["x", "yz"], "f": [1, 3], "g": [0.5, 2.0], "h": []}
    write_gguf(tmp_path / "file.gguf", settings, tensors)
    found, read = read_gguf(tmp_path / "file.gguf")
    assert found == settings
    assert [(dimensions, kind) for dimensions, kind, _ in read.values()] == [((3, 2), 0), ((3, 2), 1), ((3, 2), 30)]
    assert np.array_equal(np.frombuffer(read["whole"][2][:24], "<f4"), values.ravel())
    assert np.array_equal(np.frombuffer(read["half"][2][:12], "<f2"), values.ravel())
    brain = np.frombuffer(read["brain"][2][:12], "<u2").astype("<u4") << 16
    assert np.array_equal(brain.view("<f4"), values.ravel())


def test_a_checkpoint_becomes_two_files_that_hold_every_weight_the_answer_needs(tmp_path: Path) -> None:
    from onnx_exports import TINY
    from random_llava import write_checkpoint
    from servers.llama_cpp import convert, interleaved

    from slimdeploy.streaming import load_streamed

    checkpoint = write_checkpoint(tmp_path / "dense", TINY, visible=True)
    model = load_streamed(str(checkpoint))
    convert(model, checkpoint, tmp_path)
    settings, language = read_gguf(tmp_path / "text-f16.gguf")
    _, vision = read_gguf(tmp_path / "vision.gguf")
    unused = {name for name, _ in model.module.named_parameters() if "post_layernorm" in name}
    assert len(language) + len(vision) == len(list(model.module.named_parameters())) - len(unused)
    assert len(settings["tokenizer.ggml.tokens"]) == TINY.vocabulary
    query = model.weight("model.language_model.layers.1.self_attn.q_proj.weight")
    stored = np.frombuffer(language["blk.1.attn_q.weight"][2], "<f2").reshape(query.shape)
    assert np.array_equal(stored, interleaved(query, TINY.language.heads).astype(np.float16))


def test_a_rotated_pair_lies_side_by_side() -> None:
    from servers.llama_cpp import interleaved

    rows = np.arange(8, dtype=np.float32)[:, None]
    assert interleaved(rows, heads=2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_a_weight_that_llama_cpp_has_no_name_for_is_an_error() -> None:
    from servers.llama_cpp import gguf_name

    assert gguf_name("model.vision_tower.post_layernorm.weight") is None
    with pytest.raises(KeyError):
        gguf_name("model.language_model.new_part.weight")
