"""What is said of a packed tensor beside its arrays: in its file's header, and again in a checkpoint's config.json.

Knows neither; whoever reads one tells what the description is of, for the message.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from .errors import ArtifactError
from .packed_tensor import Encoding, PackedTensor, array_shapes, header_problems, short

_FIELDS: Final = ("rows", "columns", "values", "group", "pattern", "kept")


@dataclass(frozen=True)
class Description:
    """A packed tensor without its arrays."""

    rows: int
    columns: int
    encoding: Encoding
    pattern: str
    kept: int

    @staticmethod
    def of(packed: PackedTensor) -> "Description":
        return Description(packed.rows, packed.columns, packed.encoding, packed.pattern, packed.kept)

    @staticmethod
    def from_json(said: Any, whose: str) -> "Description":
        """Whatever JSON holds. whose: "packed tensor 'NAME'".

        Raises ArtifactError that says what the format does not allow.
        """
        if (problem := next(_problems(said), None)) is not None:
            raise ArtifactError(f"{whose}: {problem}; export the model again")
        rows, columns, values, group, pattern, kept = (said[field] for field in _FIELDS)
        return Description(rows, columns, Encoding(values, group), pattern, kept)

    def to_json(self) -> dict[str, Any]:
        encoding = self.encoding
        values = (self.rows, self.columns, encoding.values, encoding.group, self.pattern, self.kept)
        return dict(zip(_FIELDS, values, strict=True))

    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """dtype and shape of mask, values and scales; a file leaves out those without an element."""
        return array_shapes(self.rows, self.columns, self.encoding, self.pattern, self.kept)


def _problems(said: Any) -> Iterator[str]:
    if not isinstance(said, dict) or set(said) != set(_FIELDS):
        yield f"its description is {short(said)}, which has not exactly {', '.join(_FIELDS)}"
    rows, columns, values, group, pattern, kept = (said[field] for field in _FIELDS)
    yield from header_problems(rows, columns, values, group, pattern)
    if type(kept) is not int or not 0 <= kept <= rows * columns:
        yield f"it keeps {short(kept)} of its {rows * columns} weights"
