"""The three graphs of an ONNX artifact as onnxruntime sessions, and the KV cache that the decoder writes into.

Knows arrays only: no text, no pictures, no sampling. Everything is synchronous, and safe to call from several threads
as long as each has a cache of its own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimdeploy.errors import ArtifactError, ServeError
from slimdeploy.kernels.operators import register_operators

from .onnx_file import require_known_operators
from .onnx_provider import CPU, Provider

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

GRAPHS = ("vision_encoder", "embed_tokens", "decoder_model_merged")
_PAST, _PRESENT = "past_key_values", "present"
_EVERY_DECODER = ("inputs_embeds", "attention_mask", "position_ids")
_DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
_SPIN_US = "50"
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


@dataclass(frozen=True)
class Tokens:
    """Tokens of one sequence or of several, as the decoder takes them.

    embeddings: (batch, tokens, hidden). positions: (batch, tokens), or (3, batch, tokens). more: what else the decoder
    of some families is told, by its names.
    """

    embeddings: Floats
    positions: Integers
    more: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def inputs(self) -> dict[str, NDArray[Any]]:
        """By the decoder's names."""
        return {"inputs_embeds": self.embeddings, "position_ids": self.positions, **self.more}

    @classmethod
    def of(cls, inputs: Mapping[str, NDArray[Any]]) -> "Tokens":
        """What `inputs` gives."""
        more = {name: array for name, array in inputs.items() if name not in _EVERY_DECODER}
        return cls(inputs["inputs_embeds"], inputs["position_ids"], more)

    def last(self, count: int) -> "Tokens":
        """The last of them alone."""
        return self.of(
            {
                name: array[(slice(None),) * (_batch_axis(name, array) + 1) + (slice(-count, None),)]
                for name, array in self.inputs().items()
            }
        )


def padded(sequences: Sequence[Tokens]) -> tuple[Tokens, Integers]:
    """Sequences as one batch, padded on the right with zeros, and how many tokens each has."""
    counts = np.array([tokens.embeddings.shape[1] for tokens in sequences])
    stacked = {}
    for name in sequences[0].inputs():
        arrays = [tokens.inputs()[name] for tokens in sequences]
        axis = _batch_axis(name, arrays[0])
        widened = []
        for array, count in zip(arrays, counts, strict=True):
            missing = [(0, 0)] * array.ndim
            missing[axis + 1] = (0, int(counts.max() - count))
            widened.append(np.pad(array, missing))
        stacked[name] = np.concatenate(widened, axis)
    return Tokens.of(stacked), counts


def _batch_axis(name: str, array: NDArray[Any]) -> int:
    """Of sequences; that of tokens is the next."""
    has_width = name not in ("position_ids", "token_type_ids")
    return array.ndim - 2 - has_width


@dataclass(frozen=True)
class Past:
    """Keys and values of the tokens of one sequence, by layer: (1, KV heads, tokens, head size)."""

    arrays: list[Floats]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


@dataclass
class KeyValueCache:
    """What the decoder remembers of sequences: buffers that it reads, and writes what is new into.

    capacity: tokens that a sequence has room for. lengths: tokens in each, (batch,). past: onnxruntime's values,
    (batch, KV heads, capacity, head size). arrays: the same memory, where that is the CPU's. logits: (batch, 1,
    vocabulary), after the last token; value_of_logits is the same memory. binding: of the decoder to all of these; it
    keeps none alive.
    """

    capacity: int
    lengths: Integers
    past: list[Any]
    arrays: list[Floats]
    logits: Floats
    value_of_logits: Any
    binding: Any

    @property
    def bytes_per_token(self) -> int:
        weights: int = sum(math.prod(value.shape()) for value in self.past)
        return 4 * weights // self.capacity

    def first(self, tokens: int) -> Past:
        """A copy of the first tokens, as large as they are: the capacity may be many times that."""
        arrays = self.arrays or [value.numpy() for value in self.past]
        return Past([array[:, :, :tokens].copy() for array in arrays])

    def start_from(self, past: Past, tokens: int) -> None:
        """As if the first tokens of that sequence had been decoded here. They are copied."""
        arrays = self.arrays or [np.zeros(value.shape(), np.float32) for value in self.past]
        for array, given in zip(arrays, past.arrays, strict=True):
            array[:, :, :tokens] = given[:, :, :tokens]
        if not self.arrays:
            for value, array in zip(self.past, arrays, strict=True):
                value.update_inplace(array)
        self.lengths = np.full_like(self.lengths, tokens)


class OnnxSessions:
    """threads: of one run of a graph; runs of several requests share them. context: tokens of the longest sequence."""

    def __init__(self, folder: Path, threads: int, context: int, provider: Provider = CPU) -> None:
        self._onnxruntime = import_onnxruntime()
        self._provider = provider
        self._vision, self._embedding, self._decoder = (
            self._session(folder / f"{name}.onnx", threads) for name in GRAPHS
        )
        inputs = {node.name: node for node in self._decoder.get_inputs()}
        outputs = {node.name: node for node in self._decoder.get_outputs()}
        self._past = {name: node for name, node in inputs.items() if name.startswith(f"{_PAST}.")}
        missing = {"logits", *(name.replace(_PAST, _PRESENT) for name in self._past)} - outputs.keys()
        if not self._past or missing:
            what = ", ".join(sorted(missing)) or f"{_PAST} inputs"
            raise ArtifactError(f"{folder / GRAPHS[2]}.onnx has no {what}; export the artifact again")
        # Where attention reads it: with CUDA in main memory all the same, if CUDA has no attention of the graph's kind.
        memory = dict(zip(inputs, self._decoder.get_input_memory_infos(), strict=True))
        self._memory_of_past = "cuda" if memory[next(iter(self._past))].name == "Cuda" else "cpu"
        self._vocabulary = outputs["logits"].shape[-1]
        self._dimensions = len(inputs["position_ids"].shape)
        self._more = {
            name: node for name, node in inputs.items() if name not in self._past and name not in _EVERY_DECODER
        }
        # A slice of it is the mask of one sequence, with nothing to allocate per token.
        self._ones = np.ones((1, context), np.int64)

    def encode_picture(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, Floats]:
        """What the vision graph makes of one picture: image_features, and deepstack_features in some families."""
        names = [node.name for node in self._vision.get_outputs()]
        return dict(zip(names, self._vision.run(names, dict(inputs)), strict=True))

    def embed(self, ids: Sequence[int]) -> Floats:
        """(1, tokens, hidden); the caller's own, to overwrite."""
        embeddings: Floats = self._embedding.run(["inputs_embeds"], {"input_ids": np.array([ids], np.int64)})[0]
        return embeddings

    def plain_text(self, batch: int, tokens: int) -> dict[str, NDArray[Any]]:
        """What the decoder of some families is told of tokens that are text, beside what every one is."""
        sizes = {"batch_size": batch, "sequence_length": tokens}
        return {
            name: np.zeros([sizes.get(size, size) for size in node.shape], _DTYPES[node.type])
            for name, node in self._more.items()
        }

    def one_token(self, ids: Sequence[int], positions: Sequence[int]) -> Tokens:
        """The next token of every sequence: text, which has the same position in every dimension."""
        places = np.array(positions, np.int64)[:, None]
        if self._dimensions == 3:
            places = np.repeat(places[None], 3, axis=0)
        return Tokens(self.embed(ids).transpose(1, 0, 2), places, self.plain_text(len(ids), 1))

    def new_cache(self, capacity: int, batch: int = 1) -> KeyValueCache:
        """For sequences of at most `capacity` tokens. The system gives it memory as it fills."""
        binding = self._decoder.io_binding()
        shapes = [(batch, node.shape[1], capacity, node.shape[3]) for node in self._past.values()]
        arrays = [np.zeros(shape, np.float32) for shape in shapes]
        past = [self._value(array, self._memory_of_past) for array in arrays]
        for name, value in zip(self._past, past, strict=True):
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace(_PAST, _PRESENT), value)
        logits = np.zeros((batch, 1, self._vocabulary), np.float32)
        value_of_logits = self._value(logits)
        binding.bind_ortvalue_output("logits", value_of_logits)
        shared = arrays if self._memory_of_past == "cpu" else []
        return KeyValueCache(capacity, np.zeros(batch, np.int64), past, shared, logits, value_of_logits, binding)

    def decode(self, tokens: Tokens, cache: KeyValueCache, counts: Integers | None = None) -> Floats:
        """Run the decoder over more tokens of every sequence, and remember them in the cache, which has room for them.

        counts: how many tokens each sequence has, (batch,), where some are padded on the right. Only a batch of one may
        have several tokens behind others. Returns the logits after each one's last token, (batch, vocabulary).
        """
        lengths = cache.lengths + (tokens.embeddings.shape[1] if counts is None else counts)
        longest = int(lengths.max())
        assert longest <= cache.capacity, "the decoder would write behind the buffers"
        if len(lengths) == 1:
            mask = self._ones[:, :longest]
        else:
            mask = (np.arange(longest) < lengths[:, None]).astype(np.int64)
        inputs = {**tokens.inputs(), "attention_mask": mask}
        inputs = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        for name, array in inputs.items():
            cache.binding.bind_cpu_input(name, array)
        self._decoder.run_with_iobinding(cache.binding)
        cache.lengths = lengths
        return cache.logits[:, 0].copy()

    def _value(self, array: Floats, memory: str = "cpu") -> Any:
        """The array as onnxruntime's: the same memory where that is the CPU's, a copy elsewhere."""
        return self._onnxruntime.OrtValue.ortvalue_from_numpy(array, memory)

    def _session(self, file: Path, threads: int) -> Any:
        if not file.is_file():
            raise ArtifactError(f"{file} is missing; export the artifact again")
        require_known_operators(file)
        options = self._onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that spin for long take the cores from other requests and from the server itself; those that sleep
        # between two operators are late for the second.
        options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_US)
        provider = self._provider
        if provider.device == "cpu":
            register_operators(options)
        try:
            # Its own fallback would print, and go on without the provider.
            session = self._onnxruntime.InferenceSession(
                str(file), options, providers=provider.in_order, enable_fallback=False
            )
        except Exception as error:  # onnxruntime's exceptions share no other base
            otherwise = "" if provider.device == "cpu" else ", or set serve.onnx.provider = 'cpu'"
            raise ArtifactError(
                f"{file} cannot be loaded by onnxruntime: {error}; export the artifact again{otherwise}"
            ) from None
        provider.require(session, file)
        return session


def _is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True
