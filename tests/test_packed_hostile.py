"""A file of packed tensors that is not what it says is refused with a name; nothing else ever escapes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packed_weights import BF16, FP16, INT4, INT8

from slimdeploy.errors import ArtifactError
from slimdeploy.packed import read_packed, unpack, write_packed

NAME = "model.layers.0.gate"
Header = dict[str, Any]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "model.safetensors"
    tensors = {"first": INT8, NAME: INT4, "last.bf16": BF16, "last.fp16": FP16}
    write_packed(file, tensors, {"norm": np.ones(4, np.float32)})
    return file


def split(content: bytes) -> tuple[Header, bytes]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(header: bytes | Header, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def with_description(file: Path, change: Callable[[Header], object]) -> None:
    """Rewrite the file after `change` to what it says of its packed tensors."""
    header, data = split(file.read_bytes())
    described = json.loads(header["__metadata__"]["packed"])
    change(described)
    header["__metadata__"]["packed"] = json.dumps(described)
    file.write_bytes(join(header, data))


def set_field(field: str, value: object) -> Callable[[Header], object]:
    return lambda described: described[NAME].update({field: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_field("rows", 4), "'mask' is U8"),
        (set_field("rows", -3), "-3 rows"),
        (set_field("rows", 3.0), "3.0 rows"),
        (set_field("rows", True), "True rows"),
        (set_field("rows", None), "None rows"),
        (set_field("rows", 10**400), "rows, not a whole number"),
        (set_field("columns", 2**31), "2147483648 columns"),
        (set_field("columns", 2**31 - 1), "'mask' is U8"),
        (set_field("columns", 64), "'mask' is U8"),
        (set_field("columns", 72), "keeps weights beyond column 71"),
        (set_field("columns", 96), "keeps 11 weights of block 1, not 13"),
        (set_field("columns", 129), "'mask' is U8"),
        (set_field("values", "int8"), "int8 values in groups of 32"),
        (set_field("values", "bf16"), "bf16 values in groups of 32"),
        (set_field("values", ["int4"]), "its values are"),
        (set_field("group", 128), "'scales' is U16"),
        (set_field("group", 0), "groups of 0"),
        (set_field("group", "32"), "groups of '32'"),
        (set_field("pattern", "dense"), "an array 'mask'"),
        (set_field("pattern", "unstructured\x1b[2J"), "x1b"),
        (set_field("pattern", "25:64"), "26 weights of block 0, not 25"),
        (set_field("pattern", 64), "pattern is 64"),
        (set_field("pattern", {"a": "b"}), "pattern is"),
        (set_field("kept", INT4.kept + 1), "description says"),
        (set_field("kept", INT4.kept + 2), "'values' is U8"),
        (set_field("kept", -1), "keeps -1"),
        (set_field("kept", 10**30), "it keeps 1000"),
        (set_field("kept", 1e300), "it keeps 1e"),
        (set_field("shape", [3, 92]), "which has not exactly"),
        (lambda described: described[NAME].pop("kept"), "which has not exactly"),
        (lambda described: described.update({NAME: None}), "description is None"),
        (lambda described: described.update({NAME: [1] * 10000}), "description is"),
        (lambda described: described.pop("first") and described.update({NAME + "x": described.pop(NAME)}), "missing"),
    ],
)
def test_a_file_that_describes_a_tensor_wrongly_is_refused(
    file: Path, change: Callable[[Header], object], message: str
) -> None:
    with_description(file, change)
    with pytest.raises(ArtifactError, match=f"'{NAME}x?': .*({message})") as caught:
        read_packed(file)
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("part", ["mask", "values", "scales"])
def test_a_part_that_is_missing_is_named(file: Path, part: str) -> None:
    header, data = split(file.read_bytes())
    header[f"{NAME}.other"] = header.pop(f"{NAME}.{part}")
    file.write_bytes(join(header, data))
    with pytest.raises(ArtifactError, match=f"'{NAME}': its array '{part}' is missing"):
        read_packed(file)


@pytest.mark.parametrize("part", ["mask", "values", "scales"])
def test_a_part_of_another_type_is_named(file: Path, part: str) -> None:
    header, data = split(file.read_bytes())
    entry = header[f"{NAME}.{part}"]
    entry["dtype"] = {"U8": "F8_E4M3", "U16": "BF16"}[entry["dtype"]]
    file.write_bytes(join(header, data))
    with pytest.raises(ArtifactError, match=f"'{NAME}': its array '{part}' is {entry['dtype']}"):
        read_packed(file)


@pytest.mark.parametrize(("name", "part"), [("last.fp16", "mask"), ("last.bf16", "scales")])
def test_a_part_that_its_description_has_not_is_refused(file: Path, name: str, part: str) -> None:
    header, data = split(file.read_bytes())
    header[f"{name}.{part}"] = header.pop("norm")
    file.write_bytes(join(header, data))
    with pytest.raises(ArtifactError, match=f"'{name}': it has an array '{part}'"):
        read_packed(file)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda header: header.pop("__metadata__"), "holds no packed weights: its format is None"),
        (lambda header: header["__metadata__"].update(format="pt"), "its format is 'pt'"),
        (lambda header: header["__metadata__"].update(version="2"), "version '2' .* upgrade"),
        (lambda header: header["__metadata__"].pop("version"), "version None"),
        (lambda header: header["__metadata__"].pop("packed"), "does not describe"),
        (lambda header: header["__metadata__"].update(packed="[]"), "does not describe"),
        (lambda header: header["__metadata__"].update(packed="{"), "does not describe"),
        (lambda header: header["__metadata__"].update(packed="[" * 100_000), "does not describe"),
        (lambda header: header["__metadata__"].update(packed='{"a": 1' + "0" * 5000 + "}"), "does not describe"),
        (lambda header: header["__metadata__"].update(packed='{"a": 1, "a": 2}'), "'a' stands there twice"),
        (lambda header: header["norm"].update(dtype="F8_E5M2", shape=[16]), "'norm' cannot be read into numpy"),
        (lambda header: header["norm"].update(shape=[1] * 99 + [4]), "'norm' cannot be read into numpy"),
        (lambda header: header["norm"].update(shape=[2**62, 4]), "truncated or no safetensors"),
        (lambda header: header["norm"].update(shape=[-4]), "truncated or no safetensors"),
        (lambda header: header["norm"].update(data_offsets=[8, 24]), "truncated or no safetensors"),
        (lambda header: header["norm"].update(data_offsets=[2**63, 2**63 + 16]), "truncated or no safetensors"),
    ],
)
def test_a_spoilt_header_is_refused(file: Path, spoil: Callable[[Header], object], message: str) -> None:
    header, data = split(file.read_bytes())
    spoil(header)
    file.write_bytes(join(header, data))
    with pytest.raises(ArtifactError, match=message):
        read_packed(file)


def test_a_type_that_numpy_lacks_is_refused_whatever_else_was_imported(file: Path) -> None:
    import ml_dtypes  # with it in memory, safetensors would read bf16

    write_packed(file, {}, {"norm": np.ones(4, ml_dtypes.bfloat16)})
    with pytest.raises(
        ArtifactError, match=r"'norm' cannot be read into numpy \(it has no BF16\); store it as float32"
    ):
        read_packed(file)


@pytest.mark.parametrize("dtype", ["?", "b", "h", "i", "q", "B", "H", "I", "Q", "e", "f", "d", "F"])
def test_every_type_that_numpy_has_is_read(tmp_path: Path, dtype: str) -> None:
    write_packed(tmp_path / "x", {}, {"norm": np.arange(4).astype(dtype)})
    np.testing.assert_array_equal(read_packed(tmp_path / "x")[1]["norm"], np.arange(4).astype(dtype), strict=True)


def test_a_name_that_stands_twice_is_refused(file: Path) -> None:
    header, data = split(file.read_bytes())
    text = json.dumps(header).encode()
    again = json.dumps({"first.mask": header["first.mask"]}).encode()
    file.write_bytes(join(text[:-1] + b", " + again[1:], data))
    with pytest.raises(ArtifactError, match=r"'first.mask' stands there twice"):
        read_packed(file)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for place in (tmp_path / "nothing", tmp_path):
        with pytest.raises(ArtifactError, match=f"{place} is truncated or no safetensors file"):
            read_packed(place)


def test_a_file_cut_anywhere_is_refused(file: Path) -> None:
    content = file.read_bytes()
    cuts = {0, 1, 7, 8, 9, len(content) - 1} | set(range(10, len(content), 97))
    for cut in sorted(cuts):
        file.write_bytes(content[:cut])
        with pytest.raises(ArtifactError, match="truncated or no safetensors"):
            read_packed(file)


def read_or_refuse(file: Path) -> None:
    """Whatever the file holds: it is refused as it should be, or its tensors can be unpacked."""
    try:
        tensors, _ = read_packed(file)
    except ArtifactError:
        return
    for name, packed in tensors.items():
        packed.validate(name)
        assert unpack(packed).shape == (packed.rows, packed.columns)


many = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(["dense", "int8"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(data=st.data())
@many
def test_no_change_of_bytes_breaks_the_reader(file: Path, data: st.DataObject) -> None:
    original = file.read_bytes()
    content = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["flip", "set", "insert", "remove"])):
            case "flip":
                content[place] ^= 1 << data.draw(st.integers(0, 7))
            case "set":
                content[place] = data.draw(st.integers(0, 255))
            case "insert":
                content[place:place] = data.draw(st.binary(max_size=9))
            case _:
                del content[place : place + data.draw(st.integers(1, 50))]
    file.write_bytes(content)
    read_or_refuse(file)
    file.write_bytes(original)


@given(data=st.data())
@many
def test_no_description_breaks_the_reader(file: Path, data: st.DataObject) -> None:
    original = file.read_bytes()
    numbers = st.integers(-3, 300) | st.sampled_from([2**31 - 1, 2**31, 2**63, 2**64, -(2**63)])
    names = st.sampled_from(["first", NAME, "last.bf16", "last.fp16"])
    fields = st.sampled_from(["rows", "columns", "values", "group", "pattern", "kept", "more"])

    def change(described: Header) -> None:
        for _ in range(data.draw(st.integers(1, 3))):
            described[data.draw(names)][data.draw(fields)] = data.draw(numbers | JSON)

    with_description(file, change)
    read_or_refuse(file)
    file.write_bytes(original)


@given(data=st.data())
@many
def test_no_header_breaks_the_reader(file: Path, data: st.DataObject) -> None:
    original = file.read_bytes()
    header, rest = split(original)
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(header)))
        match data.draw(st.sampled_from(["shape", "dtype", "data_offsets", "name", "any"])):
            case "shape":
                header[name]["shape"] = data.draw(st.lists(st.integers(-1, 2**64), max_size=3))
            case "dtype":
                header[name]["dtype"] = data.draw(st.sampled_from(["U8", "I8", "U16", "F16", "BF16", "F64", "BOOL"]))
            case "data_offsets":
                header[name]["data_offsets"] = data.draw(
                    st.lists(st.integers(0, len(rest) + 2), min_size=2, max_size=2)
                )
            case "name":
                header[data.draw(st.sampled_from(sorted(header)))] = header[name]
            case _:
                header[name] = data.draw(JSON)
                break
    file.write_bytes(join(header, rest))
    read_or_refuse(file)
    file.write_bytes(original)
