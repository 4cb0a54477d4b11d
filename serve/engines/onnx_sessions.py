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
    """What the decoder remembers of one sequence.

    length: tokens in it. values: an OrtValue (1, heads, length, head size) for every input `past_key_values.N.key`
    and `.value`.
    """

    length: int
    values: dict[str, Any]


class OnnxSessions:
    """threads: of one run of a graph; runs of several requests share them."""

    def __init__(self, folder: Path, threads: int, context: int) -> None:
        self._onnxruntime = import_onnxruntime()
        self._vision, self._embedding, self._decoder = (
            self._session(folder / f"{name}.onnx", threads) for name in GRAPHS
        )
        past = [node for node in self._decoder.get_inputs() if node.name.startswith("past_key_values.")]
        self._outputs = ["logits", *(node.name.replace("past_key_values", "present") for node in past)]
        missing = set(self._outputs) - {node.name for node in self._decoder.get_outputs()}
        if not past or missing:
            what = ", ".join(sorted(missing)) or "past_key_values inputs"
            raise ArtifactError(f"{folder / GRAPHS[2]}.onnx has no {what}; export the artifact again")
        # An OrtValue that is only read may be shared: every sequence starts from the same empty past.
        self._empty = {n.name: self._value(np.zeros((1, n.shape[1], 0, n.shape[3]), np.float32)) for n in past}
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

    def new_cache(self) -> KeyValueCache:
        return KeyValueCache(0, self._empty)

    def decode(self, embeddings: Floats, cache: KeyValueCache) -> Floats:
        """Run the decoder over more tokens of a sequence, and remember them in its cache.

        embeddings: (1, tokens, hidden). Returns the logits after the last token, (vocabulary,).
        """
        start, end = cache.length, cache.length + embeddings.shape[1]
        inputs = {
            "inputs_embeds": self._value(embeddings),
            "attention_mask": self._value(self._ones[:, :end]),
            "position_ids": self._value(self._positions[:, start:end]),
            **cache.values,
        }
        # Values, not arrays, go from run to run: keys and values are never copied to numpy and back.
        logits, *present = self._decoder.run_with_ort_values(self._outputs, inputs)
        cache.values = dict(zip(self._empty, present, strict=True))
        cache.length = end
        last: Floats = logits.numpy()[0, -1]
        return last

    def _value(self, array: NDArray[Any]) -> Any:
        return self._onnxruntime.OrtValue.ortvalue_from_numpy(array)

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
