"""Packing keeps exactly what the format can hold, in memory and in a file."""

import errno
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from packed_weights import (
    COLUMNS,
    ENCODINGS,
    PATTERNS,
    assert_same,
    decode_plainly,
    label,
    random_mask,
    random_packed,
    random_weight,
)

from slimdeploy.errors import ArtifactError, ExportError
from slimdeploy.packed import Encoding, PackedTensor, ValueType, pack, read_packed, unpack, write_packed
from slimdeploy.packed_tensor import dense_bytes
from slimdeploy.quantize import LARGEST_SCALE, from_bf16, to_bf16

encodings = pytest.mark.parametrize("encoding", ENCODINGS, ids=label)
patterns = pytest.mark.parametrize("pattern", PATTERNS)


@pytest.mark.parametrize("columns", COLUMNS)
@patterns
@encodings
def test_what_was_packed_is_packed_again_without_loss(encoding: Encoding, pattern: str, columns: int) -> None:
    rng = np.random.default_rng(columns)
    mask = random_mask(rng, 5, columns, pattern)
    packed = pack(random_weight(rng, mask), encoding, pattern, mask)
    packed.validate("weight")
    np.testing.assert_array_equal(packed.mask_as_bool(), mask)
    weight = unpack(packed)
    again = pack(weight, encoding, pattern, mask)
    np.testing.assert_array_equal(unpack(again), weight)
    assert packed.kept == mask.sum()
    assert not weight[~mask].any()


@patterns
@encodings
def test_unpacking_is_what_a_plain_decoder_reads(encoding: Encoding, pattern: str) -> None:
    packed = random_packed(np.random.default_rng(7), encoding, pattern, 4, 159)
    np.testing.assert_array_equal(unpack(packed), decode_plainly(packed))


@given(
    bits=arrays.arrays(
        np.uint16, st.tuples(st.integers(1, 4), st.integers(1, 200)), elements=st.integers(0, 0xFFFF)
    ).filter(lambda bits: bool(((bits & 0x7F80) != 0x7F80).all()))
)
def test_every_finite_bf16_is_kept_to_the_bit(bits: np.ndarray) -> None:
    packed = pack(from_bf16(bits), Encoding("bf16"), "unstructured", np.ones(bits.shape, np.bool_))
    np.testing.assert_array_equal(packed.values, bits.ravel())
    np.testing.assert_array_equal(to_bf16(unpack(packed)), bits)


def test_every_finite_fp16_is_kept_to_the_bit() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    bits = bits[(bits & 0x7C00) != 0x7C00].reshape(2, -1)
    packed = pack(bits.view(np.float16).astype(np.float32), Encoding("fp16"), "dense")
    np.testing.assert_array_equal(packed.values, bits.ravel())
    np.testing.assert_array_equal(unpack(packed), bits.view(np.float16).astype(np.float32))


@given(data=st.data(), encoding=st.sampled_from(ENCODINGS), pattern=st.sampled_from(PATTERNS))
def test_any_shape_survives_memory(data: st.DataObject, encoding: Encoding, pattern: str) -> None:
    rows, columns = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 300))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    mask = random_mask(rng, rows, columns, pattern)
    weight = random_weight(rng, mask) * np.float32(2.0 ** data.draw(st.integers(-100, 20)))
    if encoding.values == "fp16":
        weight = np.clip(weight, -65504, 65504)
    packed = pack(weight, encoding, pattern, mask)
    packed.validate("weight")
    np.testing.assert_array_equal(packed.mask_as_bool(), mask)
    if columns * rows < 500:
        np.testing.assert_array_equal(unpack(packed), decode_plainly(packed))


@pytest.mark.parametrize(("pattern", "columns", "kept"), [("20:64", 72, 22), ("20:64", 88, 28), ("26:64", 100, 41)])
def test_a_shorter_last_block_keeps_its_share_with_halves_to_even(pattern: str, columns: int, kept: int) -> None:
    packed = pack(np.zeros((2, columns), np.float32), Encoding("bf16"), pattern)
    packed.validate("weight")
    assert packed.kept == 2 * kept


@pytest.mark.parametrize("pattern", ["32:64", "2:4", "3:5", "10:64"])
def test_without_a_mask_a_block_with_too_many_zeros_keeps_the_leftmost(pattern: str) -> None:
    rng = np.random.default_rng(3)
    mask = random_mask(rng, 6, 150, pattern)
    weight = random_weight(rng, mask)
    weight[1] = 0
    weight[:, rng.permutation(150)[:40]] = 0
    packed = pack(weight, Encoding("bf16"), pattern)
    packed.validate("weight")
    np.testing.assert_array_equal(unpack(packed), from_bf16(to_bf16(weight)))
    kept = int(pattern.split(":")[0])
    assert packed.mask_as_bool()[1, :kept].all()


def test_a_mask_is_kept_where_the_weight_is_zero() -> None:
    mask = np.array([[True, False, True, False]])
    packed = pack(np.zeros((1, 4), np.float32), Encoding("int8"), "unstructured", mask)
    np.testing.assert_array_equal(packed.mask_as_bool(), mask)
    assert packed.kept == 2


@pytest.mark.parametrize(
    ("weight", "encoding", "pattern", "mask", "message"),
    [
        ([[1.0, 2, 3, 0]], Encoding("bf16"), "2:4", None, "row 0 keeps 3 weights of block 0, not 2"),
        ([[1.0, 0, 3, 0]], Encoding("bf16"), "2:4", [[True, False, False, False]], "keeps 1 weights of block 0"),
        ([[1.0, 2]], Encoding("bf16"), "dense", [[True, False]], "use 'unstructured'"),
        ([[1.0, 2]], Encoding("int4", 64), "dense", None, r"int4 values in groups of 64"),
        ([[1.0, 2]], Encoding("int8"), "4:2", None, "its pattern is '4:2'"),
        ([[1.0, 2]], Encoding("int8"), "0:2", None, "its pattern is '0:2'"),
        ([[1.0, 70000]], Encoding("fp16"), "dense", None, "holds 70000 .* use bf16"),
        ([[1.0, np.nan]], Encoding("bf16"), "dense", None, "holds nan"),
        ([[1.0, -np.inf]], Encoding("fp16"), "dense", None, "holds inf .* broken"),
        ([[1.0, np.nan]], Encoding("int4", 32), "unstructured", None, "holds nan"),
        ([[1.0, 127.5 * 2.0**80]], Encoding("int8"), "dense", None, r"holds 1.54138e\+26 .* as int8; use bf16"),
        ([[1.0, -7.5 * 2.0**80]], Encoding("int4", 32), "dense", None, r"holds 9.06694e\+24 .* as int4; use bf16"),
        ([[1.0, np.inf]], Encoding("int8"), "dense", None, "holds inf .* broken"),
        ([[1.0, np.finfo(np.float32).max]], Encoding("int8"), "dense", None, r"holds 3.40282e\+38 .* broken"),
        (np.zeros((0, 4)), Encoding("int8"), "dense", None, "it has 0 rows"),
    ],
)
def test_what_cannot_be_packed_is_refused(
    weight: list[list[float]], encoding: Encoding, pattern: str, mask: list[list[bool]] | None, message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        pack(np.array(weight, np.float32), encoding, pattern, None if mask is None else np.array(mask))


def test_sizes_are_those_of_the_arrays() -> None:
    weight = np.tile(np.float32([1, 0]), (256, 512))
    for encoding, bits in ((Encoding("bf16"), 9), (Encoding("int8"), 5 + 16 / 1024), (Encoding("int4", 128), 3.125)):
        packed = pack(weight, encoding, "32:64")
        assert packed.bits_per_weight == bits
        assert packed.bytes == bits * weight.size / 8
    assert pack(np.ones((2, 64), np.float32), Encoding("bf16"), "dense").bits_per_weight == 16


@encodings
def test_what_a_matrix_takes_without_a_mask_is_known_before_it_is_packed(encoding: Encoding) -> None:
    assert pack(np.ones((3, 211), np.float32), encoding, "dense").bytes == dense_bytes(3, 211, encoding)


@pytest.mark.parametrize(("values", "largest"), [("int8", 127), ("int4", 7)])
def test_the_largest_weight_of_the_format_is_packed_again_without_loss(values: ValueType, largest: int) -> None:
    encoding = Encoding(values, 128)
    weight = np.array([[1, -largest, largest + 0.49]], np.float32) * np.float32(LARGEST_SCALE)
    once = unpack(pack(weight, encoding, "dense"))
    np.testing.assert_array_equal(once, np.clip(weight, None, largest * LARGEST_SCALE))
    np.testing.assert_array_equal(unpack(pack(once, encoding, "dense")), once)


def some_tensors() -> dict[str, PackedTensor]:
    rng = np.random.default_rng(0)
    tensors = {}
    for encoding in ENCODINGS:
        for pattern in PATTERNS:
            name = f"model.layers.0.{label(encoding)}.{pattern}"
            tensors[name] = random_packed(rng, encoding, pattern, 3, 255)
    tensors["model.nothing"] = pack(np.zeros((3, 65), np.float32), Encoding("int4", 32), "unstructured")
    return tensors


def test_a_file_gives_back_every_tensor_and_the_others(tmp_path: Path) -> None:
    tensors = some_tensors()
    others = {"norm.weight": np.ones(7, np.float16), "scale": np.array(2.5), "empty": np.zeros((0, 3), np.int64)}
    write_packed(tmp_path / "model.safetensors", tensors, others)
    read, rest = read_packed(tmp_path / "model.safetensors")
    assert list(read) == list(tensors)
    for name, packed in tensors.items():
        assert_same(read[name], packed)
    assert set(rest) == set(others)
    for name, array in others.items():
        np.testing.assert_array_equal(rest[name], array, strict=True)


def test_equal_weights_give_equal_files(tmp_path: Path) -> None:
    contents = set()
    for turn in range(8):
        file = tmp_path / f"{turn}.safetensors"
        write_packed(file, some_tensors(), {"größe \n": np.ones(2)})
        contents.add(file.read_bytes())
    assert len(contents) == 1


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.safetensors"
    write_packed(file, some_tensors(), {})
    before = file.read_bytes()

    def full(_arrays: object, aside: Path, _metadata: object) -> None:
        aside.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(aside))

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(ArtifactError, match="cannot be written: No space left"):
        write_packed(file, {}, {})
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_an_array_may_not_have_the_name_of_a_part(tmp_path: Path) -> None:
    packed = pack(np.ones((1, 4), np.float32), Encoding("bf16"), "dense")
    with pytest.raises(ArtifactError, match=r"'gate.mask' has the name of a part of 'gate'"):
        write_packed(tmp_path / "x", {"gate": packed}, {"gate.mask": np.ones(1)})


def test_an_invalid_tensor_is_not_written(tmp_path: Path) -> None:
    packed = pack(np.ones((1, 4), np.float32), Encoding("int8"), "dense")
    packed.scales[0, 0] = 0
    with pytest.raises(ArtifactError, match="'gate': a scale is 0, not from"):
        write_packed(tmp_path / "x", {"gate": packed}, {})
    assert not list(tmp_path.iterdir())


def test_the_specification_shows_the_bytes_that_are_written(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "packed-format.md").read_text(encoding="utf-8")
    (header,) = re.findall(r"```json\n(.*)\n```", page)
    length, data = (bytes.fromhex(block) for block in re.findall(r"```hex\n([^`]*)```", page))
    weight = np.array([[0.5, 0, -1.5, 0, 3.5], [0, 1, 0, 0, -1.75]], np.float32)
    packed = pack(weight, Encoding("int4", 32), "unstructured")
    np.testing.assert_array_equal(unpack(packed), weight)
    write_packed(tmp_path / "gate", {"gate": packed}, {})
    assert (tmp_path / "gate").read_bytes() == length + header.encode() + b" " * 5 + data
