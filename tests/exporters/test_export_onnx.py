"""The ONNX export: it computes what torch computes, holds nothing it should not, and is the same every time."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exported import Exported
from onnx import numpy_helper
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from transformers.models.llama import modeling_llama

from slimdeploy.config import ExportConfig, OnnxConfig
from slimdeploy.errors import ExportError
from slimdeploy.exporters import ExportJob, attention, check, export
from slimdeploy.exporters import onnx as onnx_exporter
from slimdeploy.exporters.graph import DECODER, EMBED_TOKENS, VISION_ENCODER
from slimdeploy.exporters.graphs import graphs_of
from slimdeploy.exporters.judging import Judgement, count_tie, greedy_in_torch, judge
from slimdeploy.exporters.onnx_data import DataFile
from slimdeploy.exporters.reference import FLOAT32
from slimdeploy.exporters.verify import (
    compare_parts,
    greedy_in_onnx,
    parts_in_torch,
    question_of,
    ragged_batches,
    verify_onnx,
    with_a_picture,
)
from slimdeploy.exporters.vision import VisionEncoder
from slimdeploy.model import Model, encode, load_model
from slimdeploy.progress import Progress
from slimdeploy.samples import Sample
from slimdeploy.serve.engines.onnx_model import OnnxModel
from slimdeploy.serve.engines.onnx_sessions import Tokens

GRAPHS = (VISION_ENCODER, EMBED_TOKENS, DECODER)


@pytest.fixture(scope="session")
def exported(onnx_export: Exported) -> OnnxModel:
    return OnnxModel(onnx_export.folder, threads=1)


# -- the same answers -------------------------------------------------------------------------------------------


def test_every_part_is_within_float32_of_torch(onnx_export: Exported) -> None:
    assert set(onnx_export.verification["relative_error"]) == set(GRAPHS)
    assert max(onnx_export.verification["relative_error"].values()) < 1e-5


def test_a_ragged_batch_gets_the_answers_that_torch_gives_to_each_prompt_alone(
    model: Model, exported: OnnxModel, prompts: list[Sample]
) -> None:
    lengths = {len(question_of(exported, prompt).ids) for prompt in prompts}
    assert len(lengths) > 2, "the batch is not ragged"
    alone = [greedy_in_torch(model, prompt) for prompt in prompts]
    assert greedy_in_onnx(exported, prompts) == alone
    assert len({tuple(tokens) for tokens in alone}) > 1, "the answers do not depend on the prompt"


@torch.no_grad()
def test_the_models_answer_is_that_of_the_highest_logits(model: Model, prompts: list[Sample]) -> None:
    answer = greedy_in_torch(model, prompts[0])
    inputs = encode(model, prompts[:1])
    inputs.pop("position_ids")
    for token in answer:
        assert model.module(**inputs, use_cache=False).logits[0, -1].argmax() == token
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[token]])], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])


def test_a_prompt_without_a_picture_is_answered_alike(model: Model, exported: OnnxModel) -> None:
    prompt = Sample("text", "Which day is it?")
    assert greedy_in_onnx(exported, [prompt]) == [greedy_in_torch(model, prompt)]
    (noise,) = with_a_picture([prompt])
    assert noise.images
    assert compare_parts(exported, [noise], [parts_in_torch(model, noise)])["relative_error"][VISION_ENCODER] < 1e-5


def test_two_pictures_in_one_prompt_keep_their_order(model: Model, exported: OnnxModel, prompts: list[Sample]) -> None:
    first, second = prompts[0].images[0], prompts[1].images[0]
    for images in ((first, second), (second, first)):
        prompt = Sample("two", "Which is larger?", images)
        assert greedy_in_onnx(exported, [prompt]) == [greedy_in_torch(model, prompt)]


def test_decoding_after_a_prefill_equals_one_prefill(exported: OnnxModel, prompts: list[Sample]) -> None:
    question = question_of(exported, prompts[0])
    tokens = exported.prompt(question, [exported.encode(picture) for picture in question.pictures]).tokens
    count = len(question.ids)
    whole = exported.sessions.decode(tokens, exported.sessions.new_cache(count))
    cache, cut = exported.sessions.new_cache(count + 5), count // 2
    exported.sessions.decode(Tokens(tokens.embeddings[:, :cut], tokens.positions[:, :cut]), cache)
    rest = exported.sessions.decode(tokens.between(cut, None), cache)
    np.testing.assert_allclose(rest, whole, rtol=1e-4, atol=1e-4)


def test_a_past_outside_the_cpus_memory_is_copied_out_and_in(exported: OnnxModel, prompts: list[Sample]) -> None:
    question = question_of(exported, prompts[0])
    tokens = exported.prompt(question, [exported.encode(picture) for picture in question.pictures]).tokens
    count = len(question.ids)
    first, second = exported.sessions.new_cache(count), exported.sessions.new_cache(count + 5)
    first.arrays, second.arrays = [], []  # as if it were a GPU's
    whole = exported.sessions.decode(tokens, first)
    second.start_from(first.first(count - 2), count - 2)
    np.testing.assert_allclose(exported.sessions.decode(tokens.between(-2, None), second), whole, rtol=1e-4, atol=1e-4)


def test_ragged_batches_mix_lengths_and_hold_every_prompt_once() -> None:
    batches = ragged_batches([7, 3, 5, 4, 8, 6])
    assert sorted(i for batch in batches for i in batch) == [0, 1, 2, 3, 4, 5]
    assert batches == [[1, 2, 0], [3, 5, 4]], "each with a short, a middling and a long one"
    assert ragged_batches([7, 3]) == [[1, 0]]


# -- the check can fail -----------------------------------------------------------------------------------------


@contextmanager
def altered(model: Model, name: str, factor: float) -> Iterator[None]:
    weight = model.module.get_parameter(name)
    original = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(factor)
    try:
        yield
    finally:
        with torch.no_grad():
            weight.copy_(original)


@pytest.mark.parametrize(
    ("weight", "part"),
    [
        ("model.vision_tower.encoder.layers.1.mlp.fc1.weight", VISION_ENCODER),
        ("model.multi_modal_projector.linear_2.bias", VISION_ENCODER),
        ("model.language_model.embed_tokens.weight", EMBED_TOKENS),
        ("model.language_model.layers.1.self_attn.k_proj.weight", DECODER),
        ("lm_head.weight", DECODER),
    ],
)
def test_a_model_that_differs_by_one_matrix_is_told_apart(
    weight: str, part: str, model: Model, onnx_export: Exported, prompts: list[Sample]
) -> None:
    with altered(model, weight, 1.01), pytest.raises(ExportError, match=f"{part}.onnx differs"):
        verify_onnx(model, onnx_export.folder, FLOAT32, prompts, Progress.silent())


def test_a_wrong_token_is_an_error_that_names_prompt_and_step(prompts: list[Sample]) -> None:
    with pytest.raises(ExportError, match=r"prompt 1 .* token 9 at step 1 where torch answers 6 \(by a margin of 0.1"):
        count_tie(prompts[1], [5, 9, 2], Judgement([5, 6, 2], [0.0, 0.1, 0.0]))
    with pytest.raises(ExportError, match=r"token 5 at step 0"):
        count_tie(prompts[1], [5], Judgement([5], [float("nan")]))


def test_an_answer_may_hold_the_token_of_pictures(model: Model, prompts: list[Sample]) -> None:
    answer = greedy_in_torch(model, prompts[0])
    assert judge(model, prompts[0], [answer[0], model.media_token_id, answer[2]]).best[:2] == answer[:2]


def test_an_answer_that_ends_with_another_token_is_an_error(
    model: Model, onnx_export: Exported, prompts: list[Sample], tmp_path: Path
) -> None:
    folder = shutil.copytree(onnx_export.folder, tmp_path / "altered")
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": 5}))
    with pytest.raises(ExportError, match=r"the tokens \[5\] end an answer of the export, and \[2\] one of"):
        verify_onnx(model, folder, FLOAT32, prompts, Progress.silent())


def test_a_prompt_that_fills_the_context_is_answered_as_far_as_there_is_room(
    model: Model, onnx_export: Exported, prompts: list[Sample], tmp_path: Path
) -> None:
    length = len(question_of(OnnxModel(onnx_export.folder, threads=1), prompts[0]).ids)
    folder = shutil.copytree(onnx_export.folder, tmp_path / "short")
    settings = json.loads((folder / "config.json").read_text())
    settings["text_config"]["max_position_embeddings"] = length + 3
    (folder / "config.json").write_text(json.dumps(settings))
    (answer,) = greedy_in_onnx(OnnxModel(folder, threads=1), prompts[:1])
    assert answer == greedy_in_torch(model, prompts[0])[:3]


def test_a_tie_is_counted_and_what_follows_is_judged(prompts: list[Sample]) -> None:
    assert count_tie(prompts[0], [5, 9, 2], Judgement([5, 6, 2], [0.0, 1e-6, 0.0])) == 1
    assert count_tie(prompts[0], [5, 6, 2], Judgement([5, 6, 2], [0.0, 0.0, 0.0])) == 0
    with pytest.raises(ExportError, match="token 2 at step 2"):
        count_tie(prompts[0], [5, 9, 2], Judgement([5, 6, 4], [0.0, 1e-6, 0.1]))


@pytest.mark.parametrize("stepwise", [False, True])
def test_an_answer_is_judged_as_the_model_would_have_gone_on(
    stepwise: bool, model: Model, prompts: list[Sample]
) -> None:
    answer = greedy_in_torch(model, prompts[0])
    assert judge(model, prompts[0], answer, stepwise) == Judgement(answer, [0.0] * len(answer))
    wrong = [*answer[:2], (answer[2] + 1) % 7, *answer[3:]]
    found = judge(model, prompts[0], wrong, stepwise)
    assert found.best[:3] == answer[:3]
    assert found.behind[2] > 1e-4
    assert found.best[3:] != answer[3:], "the model goes on from what the answer says"


# -- what is in the files ---------------------------------------------------------------------------------------


def test_two_exports_are_byte_for_byte_equal(
    model: Model, onnx_export: Exported, prompts: list[Sample], tmp_path: Path
) -> None:
    job = ExportJob(ExportConfig(onnx=OnnxConfig(weights="dense-fp32")), prompts)
    verification = export(model, tmp_path, job, Progress.silent())
    assert verification == onnx_export.verification
    files = sorted(file.name for file in tmp_path.iterdir())
    assert files == sorted(file.name for file in onnx_export.folder.iterdir())
    for name in files:
        assert (tmp_path / name).read_bytes() == (onnx_export.folder / name).read_bytes(), name


def test_no_file_tells_of_the_machine_that_made_it(onnx_export: Exported, checkpoint: Path) -> None:
    traces = [str(onnx_export.folder), str(checkpoint), str(Path.home()), "site-packages", "Traceback", ".py"]
    for file in onnx_export.folder.iterdir():
        contents = file.read_bytes()
        assert not [trace for trace in traces if trace.encode() in contents], file.name


def test_inputs_and_outputs_are_named_as_transformers_js_names_them(onnx_export: Exported, model: Model) -> None:
    pairs = [f"{i}.{kind}" for i in range(2) for kind in ("key", "value")]
    expected = {
        VISION_ENCODER: (["pixel_values"], ["image_features"]),
        EMBED_TOKENS: (["input_ids"], ["inputs_embeds"]),
        DECODER: (
            ["inputs_embeds", "attention_mask", "position_ids", *(f"past_key_values.{pair}" for pair in pairs)],
            ["logits", *(f"present.{pair}" for pair in pairs)],
        ),
    }
    for name in GRAPHS:
        graph = read(onnx_export.folder, name).graph
        assert ([i.name for i in graph.input], [o.name for o in graph.output]) == expected[name]
    logits = read(onnx_export.folder, DECODER).graph.output[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in logits] == ["batch_size", 1, model.config.text_config.vocab_size]


def test_every_pruned_matrix_keeps_its_name_and_its_zeros(onnx_export: Exported, model: Model) -> None:
    stored = {
        tensor.name: numpy_helper.to_array(tensor)
        for name in GRAPHS
        for tensor in read(onnx_export.folder, name).graph.initializer
    }
    for layer in model.layers():
        weight = model.linear(layer.name).weight.detach().numpy()
        np.testing.assert_array_equal(stored[f"{layer.name}.weight"], weight.T)


def test_vision_blocks_behind_the_features_are_left_out(onnx_export: Exported, model: Model) -> None:
    names = [tensor.name for tensor in read(onnx_export.folder, VISION_ENCODER).graph.initializer]
    blocks = {int(match[1]) for name in names if (match := re.search(r"encoder\.layers\.(\d+)\.", name))}
    assert blocks == set(range(len(model.vision_blocks())))
    assert len(blocks) == model.config.vision_config.num_hidden_layers - 1


@pytest.mark.parametrize(("layer", "strategy"), [(-1, "full"), ([-2, 1], "default"), (1, "default")])
def test_the_vision_encoder_follows_the_choice_of_features(
    layer: int | list[int], strategy: str, model: Model, prompts: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.config, "vision_feature_layer", layer)
    monkeypatch.setattr(model.config, "vision_feature_select_strategy", strategy)
    encoder = VisionEncoder(model)
    encoder.projector = torch.nn.Identity()
    monkeypatch.setitem(model.module.get_submodule("model")._modules, "multi_modal_projector", torch.nn.Identity())
    pixels = encode(model, prompts[:2])["pixel_values"]
    with torch.no_grad():
        expected = model.pretrained.get_image_features(pixel_values=pixels).pooler_output
        assert torch.equal(encoder(pixels), torch.stack(list(expected)))


def test_tracing_copies_no_weights_and_leaves_the_model_as_it_was(model: Model) -> None:
    before = model.config.text_config._attn_implementation
    for graph in graphs_of(model):
        assert all(isinstance(weight, FakeTensor) for weight in graph.part.parameters())
    assert not any(isinstance(weight, FakeTensor) for weight in model.module.parameters())
    assert model.config.text_config._attn_implementation == before


def test_the_decoder_is_made_of_the_fast_operators(onnx_export: Exported, model: Model) -> None:
    operators = Counter(node.op_type for node in read(onnx_export.folder, DECODER).graph.node)
    blocks = len(model.language_blocks())
    assert operators["GroupQueryAttention"] == blocks
    assert operators["RotaryEmbedding"] == 2 * blocks
    assert operators["SkipSimplifiedLayerNormalization"] == 2 * blocks
    assert not {"Reshape", "Transpose", "Reciprocal", "Attention"} & operators.keys()


def test_a_model_that_rotates_neighbours_keeps_its_own_rotations() -> None:
    def rotate_neighbours(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        def rotated(x: Tensor) -> Tensor:
            neighbours = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
            return x * cos[:, None] + neighbours * sin[:, None]

        return rotated(q), rotated(k)

    assert not attention._rotates_halves(rotate_neighbours)
    assert attention._rotates_halves(modeling_llama.apply_rotary_pos_emb)


def test_the_folder_holds_what_the_edge_needs(onnx_export: Exported) -> None:
    files = {file.name for file in onnx_export.folder.iterdir()}
    assert {f"{name}.{kind}" for name in GRAPHS for kind in ("onnx", "onnx_data")} | {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "processor_config.json",
        "preprocessor_config.json",
        "chat_template.jinja",
    } == files
    assert json.loads((onnx_export.folder / "config.json").read_text())["model_type"] == "llava"


def read(folder: Path, name: str) -> onnx.ModelProto:
    return onnx.load(folder / f"{name}.onnx")


# -- what cannot be exported ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("vision_config", "model_type", "pixtral", "vision tower of type 'pixtral'"),
        ("text_config", "rope_parameters", {"rope_type": "dynamic"}, "rotary embeddings of type 'dynamic'"),
    ],
)
def test_a_model_that_onnx_cannot_hold_is_refused_before_the_search(
    part: str, key: str, value: object, message: str, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(getattr(model.config, part), key, value, raising=False)
    with pytest.raises(ExportError, match=message):
        check(model, ExportConfig(format="onnx"))


def test_onnxruntime_is_asked_for_before_the_search(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_exporter, "find_spec", lambda _: None)
    with pytest.raises(ExportError, match=r"slimdeploy\[compress,edge\]"):
        check(model, ExportConfig(format="onnx"))


def test_half_precision_is_refused(checkpoint: Path, prompts: list[Sample], tmp_path: Path) -> None:
    model = load_model(str(checkpoint), dtype="bfloat16")
    with pytest.raises(ExportError, match="bfloat16"):
        export(model, tmp_path, ExportJob(ExportConfig(format="onnx"), prompts, {}), Progress.silent())
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_not_swallowed(
    model: Model, prompts: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DataFile, "add", full)
    with pytest.raises(OSError, match="No space left"):
        export(model, tmp_path, ExportJob(ExportConfig(), prompts), Progress.silent())
