"""What an exporter is asked to do with a model. Knows no format."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..config import ExportConfig
from ..policy import UNSTRUCTURED
from ..samples import Sample


@dataclass(frozen=True)
class ExportJob:
    """prompts: what the export is verified on. patterns: how a prunable matrix was pruned, by its name."""

    config: ExportConfig
    prompts: Sequence[Sample]
    patterns: Mapping[str, str] = field(default_factory=dict)

    def pattern(self, name: str) -> str:
        """Of the form "unstructured" or "N:M"; a matrix that nobody pruned counts as unstructured."""
        return self.patterns.get(name, UNSTRUCTURED)
