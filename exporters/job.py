"""What an exporter is asked to do with a model. Knows no format."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..config import ExportConfig
from ..errors import ExportError
from ..packed_tensor import ENCODINGS, Encoding
from ..policy import UNSTRUCTURED, Values
from ..samples import Sample


@dataclass(frozen=True)
class ExportJob:
    """prompts: what the export is verified on. patterns: how a prunable matrix was pruned, by its name.

    values: what the policy stores its survivors as; "" or nothing where that is left to the export.
    """

    config: ExportConfig
    prompts: Sequence[Sample]
    patterns: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Values] = field(default_factory=dict)

    def pattern(self, name: str) -> str:
        """Of the form "unstructured" or "N:M"; a matrix that nobody pruned counts as unstructured."""
        return self.patterns.get(name, UNSTRUCTURED)

    def encoding(self, name: str, setting: str) -> Encoding:
        """What a setting of weights packs a matrix as. Raises ExportError where neither it nor the policy says that."""
        if setting != "packed":
            return ENCODINGS[setting]
        if values := self.values.get(name):
            return ENCODINGS[f"packed-{values}"]
        raise ExportError(
            f"export.{self.config.format}.weights = 'packed' stores every matrix as the policy says, which says "
            f"nothing of {name}; set 'packed-int8', or search with a budget in bytes"
        )
