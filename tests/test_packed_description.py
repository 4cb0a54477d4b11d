"""What is said of a packed tensor: it survives JSON, and wrong words are refused alike wherever they stand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packed_weights import ENCODINGS, PATTERNS, label, random_packed

from slimdeploy.errors import ArtifactError
from slimdeploy.packed import Encoding, pack, read_packed, write_packed
from slimdeploy.packed_config import quantization_config, read_descriptions
from slimdeploy.packed_description import Description
from slimdeploy.packed_file import VERSION

GATE = pack(np.eye(3, 70, dtype=np.float32), Encoding("int8", 128), "unstructured")


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("encoding", ENCODINGS, ids=label)
def test_a_description_survives_json_and_knows_the_arrays(encoding: Encoding, pattern: str) -> None:
    packed = random_packed(np.random.default_rng(0), encoding, pattern, 3, 255)
    described = Description.of(packed)
    assert Description.from_json(json.loads(json.dumps(described.to_json())), "gate") == described
    for part, (dtype, shape) in described.arrays().items():
        array = getattr(packed, part)
        assert (array.dtype.name, array.shape) == (dtype, shape)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows": 0},
        {"columns": 70.0},
        {"values": "int3"},
        {"group": 64},
        {"pattern": "4:2"},
        {"kept": 211},
        {"kept": True},
        {"kept": -1},
        {"more": 1},
    ],
    ids=str,
)
def test_a_file_and_a_configuration_refuse_it_in_the_same_words(tmp_path: Path, wrong: dict[str, Any]) -> None:
    layers = quantization_config({"gate": GATE})["layers"]
    write_packed(tmp_path / "gate", {"gate": GATE}, {})
    assert read_descriptions(VERSION, layers) == {"gate": Description.of(GATE)}
    right = json.dumps(json.dumps(layers)).encode()
    spoilt = {"gate": layers["gate"] | wrong}
    _put(tmp_path / "gate", right, json.dumps(json.dumps(spoilt)).encode())
    with pytest.raises(ArtifactError) as of_the_file:
        read_packed(tmp_path / "gate")
    with pytest.raises(ArtifactError) as of_the_configuration:
        read_descriptions(VERSION, spoilt)
    words = str(of_the_file.value).removeprefix("packed tensor 'gate': ")
    assert str(of_the_configuration.value) == f"packed layer 'gate' in config.json: {words}"


def _put(file: Path, old: bytes, new: bytes) -> None:
    """Exchange a part of the header of a safetensors file."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length]
    assert header.count(old) == 1
    header = header.replace(old, new)
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
