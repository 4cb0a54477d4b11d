"""What a checkpoint's config.json says of its packed weights, under `quantization_config`.

It repeats the description that every packed tensor has in the file, so that a model can be laid out before the file is
opened. Knows no torch and no transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from .errors import ArtifactError
from .packed_file import VERSION
from .packed_tensor import Encoding, PackedTensor, array_shapes, header_problems, short

METHOD: Final = "slimdeploy"
"""`quant_method` of a packed checkpoint."""
_KEYS: Final = ("rows", "columns", "values", "group", "pattern", "kept")


@dataclass(frozen=True)
class Description:
    """A packed tensor without its arrays."""

    rows: int
    columns: int
    encoding: Encoding
    pattern: str
    kept: int

    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """dtype and shape of mask, values and scales; a file leaves out those without an element."""
        return array_shapes(self.rows, self.columns, self.encoding, self.pattern, self.kept)


def quantization_config(tensors: Mapping[str, PackedTensor]) -> dict[str, Any]:
    """What config.json of a checkpoint with these packed weights holds, by the names of the layers."""
    layers = {
        name: {
            "rows": packed.rows,
            "columns": packed.columns,
            "values": packed.encoding.values,
            "group": packed.encoding.group,
            "pattern": packed.pattern,
            "kept": packed.kept,
        }
        for name, packed in tensors.items()
    }
    return {"quant_method": METHOD, "version": VERSION, "layers": layers}


def read_descriptions(version: object, layers: object) -> dict[str, Description]:
    """The packed layers of a configuration by name. Raises ArtifactError that names what is wrong in config.json."""
    if version != VERSION:
        raise ArtifactError(
            f"config.json is of version {short(version)} of the packed format, and this slimdeploy reads {VERSION}; "
            "upgrade it"
        )
    if not isinstance(layers, dict) or not layers:
        raise ArtifactError(
            f"config.json has {short(layers)} for packed layers, no table of them; export the model again"
        )
    return {name: _read(name, values) for name, values in layers.items()}


def _read(name: str, values: Any) -> Description:
    def refuse(problem: str) -> ArtifactError:
        return ArtifactError(f"packed layer {short(name)} in config.json: {problem}; export the model again")

    if not isinstance(values, dict) or set(values) != set(_KEYS):
        raise refuse(f"its description is {short(values)}, which has not exactly {', '.join(_KEYS)}")
    rows, columns, kind, group, pattern, kept = (values[key] for key in _KEYS)
    if (problem := next(header_problems(rows, columns, kind, group, pattern), None)) is not None:
        raise refuse(problem)
    if type(kept) is not int or not 0 <= kept <= rows * columns:
        raise refuse(f"it keeps {short(kept)} of its {rows * columns} weights")
    return Description(rows, columns, Encoding(kind, group), pattern, kept)
