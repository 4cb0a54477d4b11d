"""The three graphs of an ONNX artifact as onnxruntime sessions, and the KV cache between their runs.

Knows arrays only: no text, no pictures, no sampling. Everything is synchronous, and safe to call from several threads
as long as each has a cache of its own.
"""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimdeploy.errors import ArtifactError, ServeError
from slimdeploy.kernels.operators import register_operators

Floats = NDArray[np.float32]

GRAPHS = ("vision_encoder", "embed_tokens", "decoder_model_merged")
_PAST, _PRESENT = "past_key_values", "present"
_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")


def import_onnxruntime() -> ModuleType:
    """Raises ServeError when it is not installed, or installed twice, which breaks both."""
    installed = [name for name in _DISTRIBUTIONS if _is_installed(name)]
    if len(installed) > 1:
        raise ServeError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; uninstall both, then "
            "install slimdeploy[edge] or slimdeploy[edge-gpu]"
        )
    try:
        import onnxruntime
    except ImportError as error:
        raise ServeError(
            f"onnxruntime cannot be imported ({error}); install slimdeploy[edge], or slimdeploy[edge-gpu] for a GPU"
        ) from None
    module: ModuleType = onnxruntime
    return module


@dataclass
class KeyValueCache:
    """What the decoder remembers of one sequence: buffers that it reads, and writes what is new into.

    capacity: tokens that there is room for. length: tokens in it. logits: (1, 1, vocabulary), after the last of them.
    binding: of the decoder to the buffers.
    """

    capacity: int
    length: int
    logits: Any
    binding: Any


class OnnxSessions:
    """threads: of one run of a graph; runs of several requests share them. context: tokens of the longest sequence."""

    def __init__(self, folder: Path, threads: int, context: int) -> None:
        self._onnxruntime = import_onnxruntime()
        self._vision, self._embedding, self._decoder = (
            self._session(folder / f"{name}.onnx", threads) for name in GRAPHS
        )
        self._past = [node for node in self._decoder.get_inputs() if node.name.startswith(_PAST)]
        outputs = {node.name: node for node in self._decoder.get_outputs()}
        missing = {"logits", *(node.name.replace(_PAST, _PRESENT) for node in self._past)} - outputs.keys()
        if not self._past or missing:
            what = ", ".join(sorted(missing)) or "past_key_values inputs"
            raise ArtifactError(f"{folder / GRAPHS[2]}.onnx has no {what}; export the artifact again")
        self._vocabulary = outputs["logits"].shape[-1]
        # Slices of these are a run's mask and positions, with nothing to allocate per token.
        self._ones = np.ones((1, context), np.int64)
        self._positions = np.arange(context, dtype=np.int64)[None]

    def encode_images(self, pixel_values: Floats) -> Floats:
        """(images, 3, height, width) to (images, image tokens, hidden)."""
        features: Floats = self._vision.run(["image_features"], {"pixel_values": pixel_values})[0]
        return features

    def embed(self, ids: list[int]) -> Floats:
        """(1, tokens, hidden); the caller's own, to overwrite."""
        embeddings: Floats = self._embedding.run(["inputs_embeds"], {"input_ids": np.array([ids], np.int64)})[0]
        return embeddings

    def new_cache(self, capacity: int) -> KeyValueCache:
        """For one sequence of at most `capacity` tokens. The system gives it memory as it fills."""
        binding = self._decoder.io_binding()
        for node in self._past:
            buffer = self._zeros((1, node.shape[1], capacity, node.shape[3]))
            binding.bind_ortvalue_input(node.name, buffer)
            binding.bind_ortvalue_output(node.name.replace(_PAST, _PRESENT), buffer)
        logits = self._zeros((1, 1, self._vocabulary))
        binding.bind_ortvalue_output("logits", logits)
        return KeyValueCache(capacity, 0, logits, binding)

    def decode(self, embeddings: Floats, cache: KeyValueCache) -> Floats:
        """Run the decoder over more tokens of a sequence, and remember them in its cache, which has room for them.

        embeddings: (1, tokens, hidden). Returns the logits after the last token, (vocabulary,).
        """
        start, end = cache.length, cache.length + embeddings.shape[1]
        assert end <= cache.capacity, "the decoder would write behind the buffers"
        cache.binding.bind_cpu_input("inputs_embeds", embeddings)
        cache.binding.bind_cpu_input("attention_mask", self._ones[:, :end])
        cache.binding.bind_cpu_input("position_ids", self._positions[:, start:end])
        self._decoder.run_with_iobinding(cache.binding)
        cache.length = end
        last: Floats = cache.logits.numpy()[0, -1]
        return last

    def _zeros(self, shape: tuple[int, ...]) -> Any:
        return self._onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))

    def _session(self, file: Path, threads: int) -> Any:
        if not file.is_file():
            raise ArtifactError(f"{file} is missing; export the artifact again")
        options = self._onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that wait by spinning would take the cores from other requests and from the server itself.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        register_operators(options)
        try:
            return self._onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no other base
            raise ArtifactError(f"{file} cannot be loaded by onnxruntime: {error}") from None


def _is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True
