"""slimdeploy: from a vision-language model to a served, measured deployment.

`run` does what `slimdeploy run deploy.toml` does; `load` opens an artifact and answers questions with it.
Importing this module imports neither torch nor onnxruntime.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import Config
    from .report import Report
    from .serve.runtime import LoadedModel

__version__ = "0.1.0"
__all__ = ["__version__", "load", "run"]


def run(config: "Config | Path | str") -> "Report":
    """Search, prune, restore, export, serve and validate as `config`, or the deploy.toml at that path, says.

    Finished steps are taken from the run's folder. Raises SlimdeployError.
    """
    from .config import Config
    from .config_file import load_config
    from .pipeline import run_pipeline
    from .progress import Progress

    with Progress.silent() as progress:
        return run_pipeline(config if isinstance(config, Config) else load_config(Path(config)), progress)


def load(artifact: Path | str) -> "LoadedModel":
    """Open the ONNX artifact in the folder `artifact`, or in the run folder of that name.

    Raises ArtifactError when it is incomplete or altered.
    """
    from .serve.runtime import load as load_artifact

    return load_artifact(Path(artifact))
