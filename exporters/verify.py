"""Every ONNX export is run at once against torch: part by part, and token by token from pictures to the end.

The greedy loop here is the plainest one that handles a batch; the edge has its own engine, which prepares its inputs
itself. Inputs here come from the model's own processor.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ExportError
from ..evaluate import plain_generation
from ..kernels.operators import missing_operators, register_operators
from ..model import Model, encode
from ..packed import PackedTensor
from ..progress import Progress
from ..samples import Sample
from .graphs import DECODER, EMBED_TOKENS, VISION_ENCODER
from .onnx_packed import read_packed
from .reference import FLOAT32, Reference, standing_in
from .verify_products import compare_products

Array = NDArray[Any]

MAX_TOKENS = 16
"""Tokens compared of each answer."""
RAGGED_BATCH = 3
_PRODUCTS_ON = 16
"""Tokens whose activations the products of the decoder are compared on: all activations of a graph are held at once."""


@dataclass(frozen=True)
class Answer:
    """Greedy tokens, the end token included, and how clearly each won: (best - second) / |best|."""

    tokens: list[int]
    margins: list[float]


class OnnxGraphs:
    """The three graphs as onnxruntime sessions; arrays in, arrays out."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._vision, self._embedding, self._decoder = (
            _session(folder / f"{name}.onnx", threads) for name in (VISION_ENCODER, EMBED_TOKENS, DECODER)
        )
        self._past = [node for node in self._decoder.get_inputs() if node.name.startswith("past_key_values.")]

    def encode_images(self, pixel_values: Array) -> Array:
        features: Array = self._vision.run(None, {"pixel_values": pixel_values})[0]
        return features

    def embed(self, input_ids: Array) -> Array:
        embeddings: Array = self._embedding.run(None, {"input_ids": input_ids})[0]
        return embeddings

    def empty_past(self, batch: int) -> list[Array]:
        return [np.zeros((batch, node.shape[1], 0, node.shape[3]), np.float32) for node in self._past]

    def decode(self, embeddings: Array, mask: Array, positions: Array, past: list[Array]) -> tuple[Array, list[Array]]:
        """Logits of every sequence's last token, (batch, vocabulary), and the longer past."""
        logits, *present = self._decoder.run(None, self.decoder_inputs(embeddings, mask, positions, past))
        return logits[:, -1], present

    def decoder_inputs(self, embeddings: Array, mask: Array, positions: Array, past: list[Array]) -> dict[str, Array]:
        inputs = {"inputs_embeds": embeddings, "attention_mask": mask, "position_ids": positions}
        return inputs | dict(zip((node.name for node in self._past), past, strict=True))


def _session(file: Path, threads: int) -> Any:
    import onnxruntime  # absent where only the other formats are exported

    runtime: Any = onnxruntime
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    register_operators(options)
    return runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def verify_onnx(
    model: Model, folder: Path, reference: Reference, prompts: Sequence[Sample], progress: Progress
) -> dict[str, Any]:
    """Compare the graphs in `folder` with the model they came from, on one thread count for both.

    Answers are compared alone and in ragged batches, each with torch's answer to the prompt alone.
    Raises ExportError that names the weight, the part, or the prompt and token, that differs.
    """
    compare_packed(folder, reference.packed)
    graphs = OnnxGraphs(folder, torch.get_num_threads())
    with standing_in(model, reference):
        errors = compare_parts(model, graphs, prompts[:RAGGED_BATCH], reference)
        expected = [greedy_in_torch(model, prompt) for prompt in progress.track(prompts, "asking torch", len(prompts))]
    batches = [[i] for i in range(len(prompts))]
    if reference.batches:
        batches += ragged_batches(model, prompts)
    ties = 0
    for batch in progress.track(batches, "verifying the ONNX graphs", len(batches)):
        answers = greedy_in_onnx(model, graphs, [prompts[i] for i in batch])
        compared = zip((prompts[i] for i in batch), (expected[i] for i in batch), answers, strict=True)
        ties += sum(count_tie(prompt, answer, tokens, reference) for prompt, answer, tokens in compared)
    verification = {
        **errors,
        "prompts": len(prompts),
        "tokens": sum(len(answer.tokens) for answer in expected),
        "batch_sizes": [1, RAGGED_BATCH] if reference.batches else [1],
        "ties": ties,
    }
    if reference.weights:
        tracked = progress.track(prompts, "asking torch with float32 weights", len(prompts))
        same = sum(greedy_in_torch(model, p).tokens == e.tokens for p, e in zip(tracked, expected, strict=True))
        verification["prompts_answered_as_in_float32"] = same
    if reference.packed:
        verification["relative_error_of_products"] = _rounded(
            check_products(model, folder, graphs, reference, prompts[0])
        )
        verification["kernels"] = missing_operators() is None
    return verification


def check_products(model: Model, folder: Path, graphs: OnnxGraphs, reference: Reference, prompt: Sample) -> float:
    """Largest relative error of a packed matrix on one picture and on the end of one prompt.

    Raises ExportError that names the first one whose error is too large.
    """
    batch = encode(model, [prompt])
    pixels = batch["pixel_values"][:1] if "pixel_values" in batch else _noise(model)
    embeddings = graphs.embed(_array(batch["input_ids"]))[:, -_PRODUCTS_ON:]
    count = embeddings.shape[1]
    mask, positions = np.ones((1, count), np.int64), np.arange(count, dtype=np.int64)[None]
    inputs = {
        VISION_ENCODER: {"pixel_values": _array(pixels)},
        DECODER: graphs.decoder_inputs(embeddings, mask, positions, graphs.empty_past(1)),
    }
    return max(compare_products(folder / f"{name}.onnx", reference.packed, given) for name, given in inputs.items())


def compare_packed(folder: Path, packed: Mapping[str, PackedTensor]) -> None:
    """Raises ExportError that names the first matrix which is not in the graphs bit for bit."""
    if not packed:
        return
    stored = {name: weight for file in sorted(folder.glob("*.onnx")) for name, weight in read_packed(file).items()}
    for name, weight in packed.items():
        again = stored.get(name)
        if again is None or not all(np.array_equal(a, b) for a, b in zip(_arrays(weight), _arrays(again), strict=True)):
            raise ExportError(f"the packed weight {name} is not the same once it is exported and read again")


def _arrays(packed: PackedTensor) -> list[Array]:
    described = np.array([packed.rows, packed.columns, packed.encoding.group])
    return [described, np.array([packed.encoding.values, packed.pattern]), packed.mask, packed.values, packed.scales]


def ragged_batches(model: Model, prompts: Sequence[Sample]) -> list[list[int]]:
    """Indices of prompts in batches of (up to) three: a short, a middling and a long one where there are such."""
    lengths = [int(encode(model, [prompt])["input_ids"].shape[1]) for prompt in prompts]
    by_length = sorted(range(len(prompts)), key=lambda i: lengths[i])
    count = -(-len(prompts) // RAGGED_BATCH)
    return [by_length[first::count] for first in range(count)]


@torch.no_grad()
def compare_parts(
    model: Model, graphs: OnnxGraphs, prompts: Sequence[Sample], reference: Reference = FLOAT32
) -> dict[str, Any]:
    """Largest absolute and relative error of each graph on a padded batch of prompts.

    Raises ExportError for a relative error beyond the reference's.
    """
    batch = encode(model, prompts)
    ids = batch["input_ids"]
    pixels = batch["pixel_values"] if "pixel_values" in batch else _noise(model)
    features = torch.cat(list(model.pretrained.get_image_features(pixel_values=pixels).pooler_output))
    embeddings = model.pretrained.get_input_embeddings()(ids)
    pairs = {
        VISION_ENCODER: (features, graphs.encode_images(_array(pixels))),
        EMBED_TOKENS: (embeddings, graphs.embed(_array(ids))),
    }
    if "pixel_values" in batch:
        is_image = ids == model.config.image_token_id
        embeddings = embeddings.masked_scatter(is_image[..., None], features)
    inputs = {"embeddings": embeddings, "mask": batch["attention_mask"], "positions": batch["position_ids"]}
    shifted = padded_on_the_right({name: _array(tensor) for name, tensor in inputs.items()}, "mask")
    logits, _ = graphs.decode(**shifted, past=graphs.empty_past(len(ids)))
    pairs[DECODER] = (model.module(**batch, logits_to_keep=1).logits[:, -1], logits)
    return _errors(pairs, reference)


def _noise(model: Model) -> Tensor:
    """A picture for prompts that have none."""
    vision = model.config.vision_config
    shape = (1, vision.num_channels, vision.image_size, vision.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.device)


def _errors(pairs: Mapping[str, tuple[Tensor, Array]], reference: Reference) -> dict[str, Any]:
    largest, relative = {}, {}
    for part, (tensor, output) in pairs.items():
        expected = _array(tensor).astype(np.float64)
        difference = output.reshape(expected.shape) - expected
        error = float(np.linalg.norm(difference) / np.linalg.norm(expected))
        if not error <= reference.max_relative_error:  # also where it is no number
            raise ExportError(
                f"{part}.onnx differs from torch by a relative error of {error:.2g}, more than "
                f"{reference.max_relative_error:g}; set {reference.remedy} and report this model"
            )
        largest[part], relative[part] = _rounded(float(np.abs(difference).max())), _rounded(error)
    return {"max_abs_error": largest, "relative_error": relative}


def _rounded(value: float) -> float:
    """Two digits, so that a manifest does not change with the last bit of a sum."""
    return float(f"{value:.1e}")


@torch.no_grad()
def greedy_in_torch(model: Model, prompt: Sample) -> Answer:
    """What the whole model answers, through its own forward and KV cache."""
    inputs = {name: tensor for name, tensor in encode(model, [prompt]).items() if name != "position_ids"}
    with plain_generation(model):
        answer = model.pretrained.generate(
            **inputs, max_new_tokens=MAX_TOKENS, return_dict_in_generate=True, output_logits=True
        )
    tokens = answer.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    best = [logits[0].double().topk(2).values.tolist() for logits in answer.logits]
    return Answer(tokens, [(first - second) / max(abs(first), 1e-30) for first, second in best])


def greedy_in_onnx(model: Model, graphs: OnnxGraphs, prompts: Sequence[Sample]) -> list[list[int]]:
    """What the graphs answer to a batch of prompts, padded on the right."""
    encoded = {name: _array(tensor) for name, tensor in encode(model, prompts).items()}
    tokens = {name: encoded[name] for name in ("input_ids", "attention_mask", "position_ids")}
    ids, mask, positions = padded_on_the_right(tokens, "attention_mask").values()
    embeddings = graphs.embed(ids)
    if "pixel_values" in encoded:
        features = graphs.encode_images(encoded["pixel_values"])
        embeddings[ids == model.config.image_token_id] = features.reshape(-1, embeddings.shape[-1])
    past, ends = graphs.empty_past(len(ids)), end_tokens(model)
    answers: list[list[int]] = [[] for _ in prompts]
    running = set(range(len(prompts)))
    for _ in range(MAX_TOKENS):
        logits, past = graphs.decode(embeddings, mask, positions, past)
        chosen = logits.argmax(axis=-1)
        for i in sorted(running):
            answers[i].append(int(chosen[i]))
        running -= {i for i in running if answers[i][-1] in ends}
        if not running:
            break
        positions = mask.sum(axis=1, keepdims=True)
        # A new token stands behind its sequence's last, where padding may have been before.
        mask = (np.arange(mask.shape[1] + 1) <= positions).astype(np.int64)
        embeddings = graphs.embed(chosen[:, None])
    return answers


def padded_on_the_right(inputs: Mapping[str, Array], mask: str) -> dict[str, Array]:
    """Inputs padded on the left, (batch, sequence, ...), as GroupQueryAttention wants them. mask: the mask's name."""
    lengths = inputs[mask].sum(axis=1)
    return {
        name: np.stack([np.roll(row, length, axis=0) for row, length in zip(array, lengths, strict=True)])
        for name, array in inputs.items()
    }


def count_tie(prompt: Sample, expected: Answer, tokens: Sequence[int], reference: Reference = FLOAT32) -> int:
    """0 when the tokens are torch's; 1 when they part where torch could as well have taken another token.

    Raises ExportError when they part anywhere else.
    """
    for step, (ours, theirs) in enumerate(zip(tokens, expected.tokens, strict=False)):
        if ours != theirs and expected.margins[step] < reference.tie:
            return 1  # from here on both continue different texts
        if ours != theirs:
            raise ExportError(
                f"on prompt {prompt.id} the export answers token {ours} at step {step} where torch answers "
                f"{theirs} (by a margin of {expected.margins[step]:.2g}); set {reference.remedy} and report this model"
            )
    assert len(tokens) == len(expected.tokens), "equal tokens end at the same one"
    return 0


def end_tokens(model: Model) -> frozenset[int]:
    """Ids that end an answer."""
    ends = model.pretrained.generation_config.eos_token_id
    return frozenset([] if ends is None else ends if isinstance(ends, list) else [ends])


def _array(tensor: Tensor) -> Array:
    array: Array = tensor.detach().cpu().numpy()
    return array
