"""Exporters: from the model in memory to files that a runtime loads, each verified against the model before it counts.

One file per format, with two functions: `check` refuses, before hours of search, a model that the format cannot hold;
`export` fills a folder and returns what it compared with torch. Every format holds any policy: it stores pruned weights
as zeros, or packs the others.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, assert_never

from ..config import ExportConfig, ExportFormat
from ..progress import Progress
from .card import write_card
from .job import ExportJob

if TYPE_CHECKING:
    from ..model import Model

__all__ = ["ExportJob", "check", "export", "stored_bytes", "write_card"]


class Exporter(Protocol):
    """What the module of a format offers."""

    def check(self, model: "Model") -> None: ...

    def export(self, model: "Model", folder: Path, job: ExportJob, progress: Progress) -> dict[str, Any]: ...


def check(model: "Model", config: ExportConfig) -> None:
    """Raises ExportError when the format cannot hold the model."""
    _exporter(config.format).check(model)


def export(model: "Model", folder: Path, job: ExportJob, progress: Progress) -> dict[str, Any]:
    """Write the model into the empty `folder` and verify what was written on the job's prompts.

    Returns the comparison with torch as JSON values, the same for the same model on the same machine.
    Raises ExportError when the format cannot hold the model, or when what was written differs from it.
    """
    verification = _exporter(job.config.format).export(model, folder, job, progress)
    for path in folder.rglob("*"):
        # safetensors writes for the owner alone, and another user may serve. A folder holds a second tokenizer.
        path.chmod(0o755 if path.is_dir() else 0o644)
    return verification


def stored_bytes(model: "Model", folder: Path) -> dict[str, int]:
    """What every prunable matrix takes in the files of an export, by its name."""
    from . import stored

    return stored.stored_bytes(model, folder)


def _exporter(name: ExportFormat) -> Exporter:
    match name:
        case "onnx":
            from . import onnx

            return onnx
        case "vllm":
            from . import vllm

            return vllm
        case "checkpoint":
            from . import checkpoint

            return checkpoint
        case _:
            assert_never(name)
