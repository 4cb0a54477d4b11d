"""Engines: what runs a model behind the server. One file per engine, one case here."""

from slimdeploy.artifact import Artifact
from slimdeploy.config import ServeConfig
from slimdeploy.errors import ServeError

from ..engine import Engine


def create_engine(artifact: Artifact, config: ServeConfig) -> Engine:
    """The engine for the artifact's format. Raises ServeError for a format that another server runs."""
    match artifact.manifest.format:
        case "onnx":
            from ..memory import warn_where_too_large
            from .onnx import OnnxEngine

            warn_where_too_large(artifact, config)
            return OnnxEngine(artifact, config)
        case "vllm":
            raise ServeError(f"{artifact.path} is for vLLM: start it with `vllm serve {artifact.path}`")
        case other:
            raise ServeError(
                f"{artifact.source} has the format '{other}', which no engine here serves; "
                "export with export.format = 'onnx'"
            )
