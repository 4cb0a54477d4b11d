"""An artifact in this process, without a server: what `slimdeploy.load` returns."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from slimdeploy.artifact import Artifact, open_artifact
from slimdeploy.config import ServeConfig
from slimdeploy.errors import ServeError
from slimdeploy.images import load_image

from .engine import Chunk, GenerationRequest, Message, Sampling, greedy
from .engines.onnx import OnnxGenerator, load_model

Picture = Path | str | bytes | Image.Image
"""A file, its bytes, or a decoded picture."""

GREEDY = greedy(ServeConfig().max_tokens)


class LoadedModel:
    """Answers questions, one after the other. Raises ServeError for an artifact that is not in ONNX.

    cache_mb: as serve.cache_mb. By default nothing is kept, so that equal questions take equal time.
    """

    def __init__(self, artifact: Artifact, threads: int, cache_mb: float = 0) -> None:
        if artifact.manifest.format != "onnx":
            raise ServeError(
                f"{artifact.source} has the format '{artifact.manifest.format}'; only 'onnx' artifacts run in this "
                "process"
            )
        self.artifact = artifact
        self._generator = OnnxGenerator(load_model(artifact, threads, cache_mb))

    def ask(self, question: str, images: Sequence[Picture] = (), sampling: Sampling = GREEDY) -> str:
        """The answer to a question about pictures, without outer blanks."""
        return "".join(chunk.text for chunk in self.stream(question, images, sampling)).strip()

    def stream(self, question: str, images: Sequence[Picture] = (), sampling: Sampling = GREEDY) -> Iterator[Chunk]:
        """The answer as it comes, a chunk for every token."""
        return self._generator.generate(GenerationRequest((asked(question, images),), sampling))


def load(path: Path | str, threads: int = 0, cache_mb: float = ServeConfig().cache_mb) -> LoadedModel:
    """Check the artifact (or run folder) and load it. threads: of onnxruntime; 0 takes one per core.

    cache_mb: as serve.cache_mb, the memory in which pictures and conversations are kept.
    """
    return LoadedModel(open_artifact(Path(path)), threads, cache_mb)


def asked(question: str, images: Sequence[Picture]) -> Message:
    """A question about pictures, which stand before it."""
    return Message("user", (*(_decoded(image) for image in images), question))


def _decoded(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    return load_image(Path(picture) if isinstance(picture, str) else picture)
