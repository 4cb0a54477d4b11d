"""A packed tensor that is not what it says is refused with its name."""

from dataclasses import replace

import numpy as np
import pytest
from packed_weights import BF16, FP16, INT4, INT8

from slimdeploy.errors import ArtifactError
from slimdeploy.packed import Encoding, PackedTensor

NAME = "model.layers.0.gate"


def changed(array: np.ndarray, place: tuple[int, ...] | int, value: int) -> np.ndarray:
    copy = array.copy()
    copy[place] = value
    return copy


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (replace(INT8, rows=0), "0 rows"),
        (replace(INT8, rows=2**40), "1099511627776 rows"),
        (replace(INT8, rows=2), r"'mask' is uint8 \[3, 16\], not uint8 \[2, 16\]"),
        (replace(INT8, columns=101, mask=changed(INT8.mask, (0, 12), 0x20)), "beyond column 100"),
        (replace(INT8, columns=200), "'mask' is"),
        (replace(INT8, encoding=Encoding("int8", 32)), "int8 values in groups of 32"),
        (replace(INT8, encoding=Encoding("int16")), "its values are 'int16'"),  # type: ignore[arg-type]
        (replace(INT8, pattern="mostly"), "pattern is 'mostly'"),
        (replace(INT8, pattern="1:99999"), "pattern is '1:99999'"),
        (replace(INT8, pattern="20:64"), "keeps .* as its pattern 20:64 says"),
        (replace(INT8, pattern="dense"), "'mask' is"),
        (replace(INT8, mask=INT8.mask.astype(np.int8)), "'mask' is int8"),
        (replace(INT8, mask=np.asfortranarray(INT8.mask)), "'mask' does not lie"),
        (replace(INT8, mask=changed(INT8.mask, (1, 12), 0x10)), "beyond column 99"),
        (replace(INT8, mask=changed(INT8.mask, (2, 15), 1)), "beyond column 99"),
        (replace(INT8, mask=changed(INT8.mask, (0, 0), INT8.mask[0, 0] ^ 1)), "'values' is int8"),
        (replace(INT8, values=INT8.values[:-1]), "'values' is int8"),
        (replace(INT8, values=INT8.values.astype(np.int16)), "'values' is int16"),
        (replace(INT8, values=np.repeat(INT8.values, 2)[::2]), "'values' does not lie"),
        (replace(INT8, values=changed(INT8.values, 5, -128)), "-128"),
        (replace(INT8, scales=INT8.scales[:2]), "'scales' is"),
        (replace(INT8, scales=INT8.scales.astype(">u2")), "'scales' is >u2"),
        *[
            (
                replace(INT8, scales=changed(INT8.scales, (1, 0), bits)),
                rf"a scale is {value}, not from 7.89e-31 to 1.21e\+24",
            )
            for bits, value in {
                0: "0",
                0x8000: "-0",
                0xBF80: "-1",
                0x0001: "9.18355e-41",
                0x0D7F: "7.85779e-31",
                0x6781: r"1.21837e\+24",
                0x7F80: "inf",
                0xFF80: "-inf",
                0x7FC0: "nan",
                0xFFFF: "nan",
            }.items()
        ],
        (replace(INT4, values=changed(INT4.values, 5, 0x18)), "-8"),
        (replace(INT4, values=changed(INT4.values, 5, 0x81)), "-8"),
        (replace(INT4, values=changed(INT4.values, -1, 0x11)), "unused half"),
        (replace(INT4, mask=np.roll(INT4.mask, 1, axis=0) | INT4.mask), "keeps .* of block"),
        (replace(BF16, mask=changed(BF16.mask, (1, 3), 0x37)), "row 1 keeps 3 weights of block 6, not 2"),
        (replace(BF16, values=changed(BF16.values, 5, 0x7F80)), "infinite or NaN"),
        (replace(BF16, values=changed(BF16.values, 5, 0xFFC1)), "infinite or NaN"),
        (replace(BF16, scales=np.ones((3, 1), np.uint16)), "'scales' is"),
        (replace(FP16, values=changed(FP16.values, 5, 0x7C00)), "infinite or NaN"),
        (replace(FP16, mask=np.zeros((3, 8), np.uint8)), "'mask' is"),
    ],
)
def test_a_tensor_that_is_not_what_it_says_is_refused(packed: PackedTensor, message: str) -> None:
    assert INT4.kept % 2, "there must be an unused half byte to spoil"
    with pytest.raises(ArtifactError, match=f"packed tensor '{NAME}': .*{message}"):
        packed.validate(NAME)
