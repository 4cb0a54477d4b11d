"""The three graphs of an ONNX artifact as onnxruntime sessions, and the KV cache that the decoder writes into.

Knows arrays only: no text, no pictures, no sampling. Everything is synchronous, and safe to call from several threads
as long as each has a cache of its own.
"""

import math
import mmap
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import repeat
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimdeploy.errors import ArtifactError, ServeError
from slimdeploy.kernels.operators import CACHE_ROWS, missing_operators, register_operators

from .onnx_file import require_known_operators
from .onnx_provider import CPU, Provider

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

GRAPHS = ("vision_encoder", "embed_tokens", "decoder_model_merged")
_PAST, _PRESENT = "past_key_values", "present"
_EVERY_DECODER = ("inputs_embeds", "attention_mask", "position_ids")
_DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
_IN_ORDER = np.empty(0, np.int64)
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

    @property
    def count(self) -> int:
        """Of each sequence."""
        return int(self.embeddings.shape[1])

    def between(self, start: int, end: int | None) -> "Tokens":
        """Some of each sequence's, as a slice has them."""
        return self.of(
            {
                name: array[(slice(None),) * (_batch_axis(name, array) + 1) + (slice(start, end),)]
                for name, array in self.inputs().items()
            }
        )

    def each(self) -> list["Tokens"]:
        """Every sequence of the batch alone."""
        batch = len(self.embeddings)
        parts = {name: np.split(array, batch, _batch_axis(name, array)) for name, array in self.inputs().items()}
        return [self.of({name: each[i] for name, each in parts.items()}) for i in range(batch)]

    def one_by_one(self) -> "Tokens":
        """Those of one sequence as a batch of sequences of one token."""
        inputs = self.inputs()
        axes = {name: _batch_axis(name, array) for name, array in inputs.items()}
        return self.of({name: array.swapaxes(axes[name], axes[name] + 1) for name, array in inputs.items()})


def together(batches: Sequence[Tokens]) -> Tokens:
    """Sequences of equally many tokens as one batch."""
    arrays = {name: [tokens.inputs()[name] for tokens in batches] for name in batches[0].inputs()}
    return Tokens.of({name: np.concatenate(each, _batch_axis(name, each[0])) for name, each in arrays.items()})


def padded(sequences: Sequence[Tokens]) -> tuple[Tokens, Integers]:
    """Sequences as one batch, padded on the right with zeros, and how many tokens each has."""
    counts = np.array([tokens.count for tokens in sequences])
    widened = []
    for tokens in sequences:
        inputs = tokens.inputs()
        for name, array in inputs.items():
            missing = [(0, 0)] * array.ndim
            missing[_batch_axis(name, array) + 1] = (0, int(counts.max() - tokens.count))
            inputs[name] = np.pad(array, missing)
        widened.append(Tokens.of(inputs))
    return together(widened), counts


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
    """What the decoder remembers of sequences: buffers that it reads, and writes what is new into. A row for each.

    capacity: tokens that a row has room for, which takes memory as they come. lengths: tokens in each, (rows,). past:
    onnxruntime's values, (rows, KV heads, capacity, head size). arrays: the same memory, where that is the CPU's.
    logits: (sequences of the largest run so far, 1, vocabulary), which every run overwrites. binding: of the decoder to
    all of these; it keeps none alive.
    """

    capacity: int
    lengths: Integers
    past: list[Any]
    arrays: list[Floats]
    binding: Any
    logits: Floats

    @property
    def bytes_per_token(self) -> int:
        """In one row."""
        numbers: int = sum(math.prod(value.shape()) for value in self.past)
        return 4 * numbers // (self.capacity * len(self.lengths))

    def first(self, tokens: int, row: int = 0) -> Past:
        """A copy of a row's first tokens, as large as they are: the capacity may be many times that."""
        arrays = self.arrays or [value.numpy() for value in self.past]
        return Past([array[row : row + 1, :, :tokens].copy() for array in arrays])

    def start_from(self, past: Past, tokens: int, row: int = 0) -> None:
        """As if the first tokens of that sequence had been decoded here. They are copied."""
        arrays = self.arrays or [value.numpy() for value in self.past]
        for array, given in zip(arrays, past.arrays, strict=True):
            array[row, :, :tokens] = given[0, :, :tokens]
        if not self.arrays:
            for value, array in zip(self.past, arrays, strict=True):
                value.update_inplace(array)
        self.lengths[row] = tokens


class OnnxSessions:
    """threads: of one run of a graph; runs of several requests share them. context: tokens of the longest sequence.

    vocabulary: how many tokens there are logits of.
    """

    def __init__(self, folder: Path, threads: int, context: int, provider: Provider = CPU) -> None:
        self._onnxruntime = import_onnxruntime()
        self._provider = provider
        self.context = context
        # Side by side: much of what onnxruntime does to load one takes a single core.
        with ThreadPoolExecutor(len(GRAPHS)) as loading:
            files = [folder / f"{name}.onnx" for name in GRAPHS]
            self._vision, self._embedding, self._decoder = loading.map(self._session, files, repeat(threads))
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
        self.vocabulary = outputs["logits"].shape[-1]
        self._dimensions = len(inputs["position_ids"].shape)
        known = {*self._past, *_EVERY_DECODER, CACHE_ROWS}
        self._more = {name: node for name, node in inputs.items() if name not in known}
        self._has_rows = CACHE_ROWS in inputs
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

    @property
    def takes_rows(self) -> bool:
        """Whether `decode_rows` works: for graphs that attend by our operators, where those are registered."""
        return self._has_rows and self._provider.device == "cpu" and missing_operators() is None

    def new_cache(self, capacity: int, rows: int = 1) -> KeyValueCache:
        """For sequences of at most `capacity` tokens."""
        binding = self._decoder.io_binding()
        shapes = [(rows, node.shape[1], capacity, node.shape[3]) for node in self._past.values()]
        arrays = [_zeros_as_they_are_needed(shape) for shape in shapes]
        past = [self._value(array, self._memory_of_past) for array in arrays]
        for name, value in zip(self._past, past, strict=True):
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace(_PAST, _PRESENT), value)
        shared = arrays if self._memory_of_past == "cpu" else []
        logits = np.empty((rows, 1, self.vocabulary), np.float32)
        return KeyValueCache(capacity, np.zeros(rows, np.int64), past, shared, binding, logits)

    def decode(self, tokens: Tokens, cache: KeyValueCache, counts: Integers | None = None) -> Floats:
        """Run the decoder over more tokens of every row, and remember them in the cache, which has room for them.

        counts: how many tokens each sequence has, (rows,), where some are padded on the right. Only a cache of one row
        may get several tokens behind others. Returns the logits after each one's last token, (rows, vocabulary).
        """
        ends = cache.lengths + (tokens.count if counts is None else counts)
        return self._run(tokens, cache, ends).copy()

    def decode_rows(
        self,
        tokens: Tokens,
        cache: KeyValueCache,
        rows: Sequence[int],
        ends: Sequence[int],
        wanted: Sequence[int] | None = None,
    ) -> Floats:
        """The same over tokens of some rows, where `takes_rows`.

        rows: of each sequence of the batch. ends: tokens that its row then has. One row may be there several times, in
        order: pieces of one sequence. wanted: sequences whose logits are returned, all by default.
        """
        logits = self._run(tokens, cache, np.array(ends, np.int64), np.array(rows, np.int64))
        return logits.copy() if wanted is None else logits[list(wanted)]

    def _run(self, tokens: Tokens, cache: KeyValueCache, ends: Integers, rows: Integers | None = None) -> Floats:
        batch, longest = len(ends), int(ends.max())
        assert longest <= cache.capacity, "the decoder would write behind the buffers"
        mask = self._ones[:, :longest] if batch == 1 else (np.arange(longest) < ends[:, None]).astype(np.int64)
        inputs = {**tokens.inputs(), "attention_mask": mask}
        if self._has_rows:
            inputs[CACHE_ROWS] = _IN_ORDER if rows is None else rows
        inputs = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        for name, array in inputs.items():
            cache.binding.bind_cpu_input(name, array)
        if batch > len(cache.logits):
            cache.logits = np.empty((batch, 1, self.vocabulary), np.float32)
        logits = cache.logits[:batch]
        value = self._value(logits)
        cache.binding.bind_ortvalue_output("logits", value)
        self._decoder.run_with_iobinding(cache.binding)
        cache.lengths[slice(None) if rows is None else rows] = ends
        return logits[:, 0]

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


def _zeros_as_they_are_needed(shape: tuple[int, ...]) -> Floats:
    """Memory that the system gives page by page, and by small ones, where numpy asks for huge ones.

    A few tokens of every head would fill those, and as much as all heads have room for would be taken.
    """
    memory = mmap.mmap(-1, max(4 * math.prod(shape), 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.float32, math.prod(shape)).reshape(shape)


def _is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True
