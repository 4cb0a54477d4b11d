"""ONNX exports that are not plain float32: what is stored is what is computed, smaller, the same with every runtime."""

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
import torch
from exported import Exported
from onnxscript import ir

from slimdeploy.config import ExportConfig, OnnxConfig, OnnxWeights
from slimdeploy.errors import ExportError
from slimdeploy.exporters import ExportJob, export, stored_bytes, verify, verify_products
from slimdeploy.exporters.graph import DECODER, EMBED_TOKENS, VISION_ENCODER
from slimdeploy.exporters.onnx_attention import ATTENTION
from slimdeploy.exporters.onnx_data import DataFile
from slimdeploy.exporters.onnx_stored import stored_reference
from slimdeploy.exporters.reference import Reference
from slimdeploy.kernels import operators
from slimdeploy.kernels.library import FORCED, instruction_set_in_use, library_file
from slimdeploy.kernels.operators import CACHE_ROWS, DOMAIN
from slimdeploy.model import Model, load_model
from slimdeploy.packed import PackedTensor
from slimdeploy.packed_tensor import ALL_KEPT
from slimdeploy.progress import Progress
from slimdeploy.samples import Sample
from slimdeploy.serve.engines import onnx_sessions
from slimdeploy.serve.engines.onnx_model import OnnxModel
from slimdeploy.serve.engines.onnx_sessions import Tokens
from slimdeploy.streaming import load_streamed

TABLE = "model.language_model.embed_tokens"
GRAPHS = (VISION_ENCODER, EMBED_TOKENS, DECODER)
# "packed" stores what a policy says: test_mixed_values.py.
FORMS = tuple(form for form in get_args(OnnxWeights) if form not in ("dense-fp32", "packed"))
PACKED = tuple(form for form in FORMS if form.startswith("packed-"))
pytestmark = pytest.mark.usefixtures("traced_once")
needs_kernels = pytest.mark.skipif(library_file() is None, reason="the kernels were not built")


def job_of(weights: OnnxWeights, prompts: list[Sample], patterns: dict[str, str] | None = None) -> ExportJob:
    return ExportJob(ExportConfig(onnx=OnnxConfig(weights=weights)), prompts, patterns or {})


def exported_as(weights: OnnxWeights, model: Model, prompts: list[Sample], folder: Path) -> Exported:
    return Exported(folder, export(model, folder, job_of(weights, prompts), Progress.silent()))


@pytest.fixture(scope="module")
def forms(model: Model, prompts: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    """An export of the pruned model in every form but float32, each verified while it was made."""
    return {form: exported_as(form, model, prompts, tmp_path_factory.mktemp(form)) for form in FORMS}


@pytest.fixture
def fresh_model(checkpoint: Path) -> Model:
    """One that a test may change; not pruned."""
    return load_model(str(checkpoint))


def packed_in(folder: Path) -> dict[str, PackedTensor]:
    return dict(stored_reference(folder, TABLE).packed)


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which they were not built."""
    for module in (onnx_sessions, verify_products):
        monkeypatch.setattr(module, "register_operators", lambda _: None)
    monkeypatch.setattr(verify, "missing_operators", lambda: "there was no compiler")


# -- what is computed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_verified_against_torch_with_the_weights_it_stores(form: str, forms: dict[str, Exported]) -> None:
    verification = forms[form].verification
    assert verification["weights"] == form
    assert verification["relative_error"][EMBED_TOKENS] == 0
    assert max(verification["relative_error"].values()) < (1e-5 if form == "dense-fp16" else 0.05)
    assert verification["prompts_answered_as_in_float32"] <= verification["prompts"] == 4


@pytest.mark.parametrize("form", PACKED)
def test_every_packed_product_is_close_to_float64(form: str, forms: dict[str, Exported]) -> None:
    assert 0 < forms[form].verification["relative_error_of_products"] < (5e-3 if form == "packed-bf16" else 1e-5)


@needs_kernels
@pytest.mark.parametrize("form", PACKED)
def test_answers_are_the_same_with_and_without_the_kernels(
    form: str,
    forms: dict[str, Exported],
    prompts: list[Sample],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if instruction_set_in_use() == "amx":
        # Its attention differs in the sixth digit: activations round the other way now and then, and random weights
        # then give another answer.
        monkeypatch.setenv(FORCED, "avx512_bf16")
    folder = forms[form].folder
    kernels = OnnxModel(folder, threads=1)
    request.getfixturevalue("without_kernels")
    stock = OnnxModel(folder, threads=1)
    assert verify.greedy_in_onnx(kernels, prompts) == verify.greedy_in_onnx(stock, prompts)
    # Of one length logits may be equal to the last bit.
    ours, theirs = (
        np.concatenate(
            [
                exported.sessions.decode(Tokens(exported.sessions.embed(range(5, 5 + n)), np.arange(n)[None]), cache)
                for n in range(1, 26)
                for cache in [exported.sessions.new_cache(n)]
            ]
        )
        for exported in (kernels, stock)
    )
    assert 0 < np.linalg.norm(ours - theirs) < 0.05 * np.linalg.norm(theirs), "both ran the same operators"


@pytest.mark.usefixtures("without_kernels")
def test_without_the_kernels_an_export_is_verified_all_the_same(
    model: Model, prompts: list[Sample], tmp_path: Path
) -> None:
    verification = exported_as("packed-int8", model, prompts, tmp_path).verification
    assert verification["kernels"] is False
    assert verification["relative_error_of_products"] < 1e-5


# -- what is stored ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", PACKED)
def test_every_prunable_matrix_and_the_head_are_packed_with_the_models_zeros(
    form: str, forms: dict[str, Exported], model: Model
) -> None:
    packed = packed_in(forms[form].folder)
    assert set(packed) == {*(layer.name for layer in model.layers()), "lm_head"}
    for layer in model.layers():
        zeros = model.linear(layer.name).weight.detach().numpy() == 0
        np.testing.assert_array_equal(packed[layer.name].mask_as_bool(), ~zeros)
    assert packed["lm_head"].pattern == ALL_KEPT
    assert packed["lm_head"].encoding.values == ("bf16" if form == "packed-bf16" else "int8")


def test_patterns_are_kept_and_a_matrix_that_is_hardly_pruned_is_stored_dense(
    fresh_model: Model, prompts: list[Sample], tmp_path: Path
) -> None:
    first, second, *_ = [layer.name for layer in fresh_model.layers()]
    with torch.no_grad():
        fresh_model.linear(first).weight *= torch.tensor([1, 0, 0, 1]).repeat(64, 16)
        fresh_model.linear(second).weight[0, 0] = 0
    export(fresh_model, tmp_path, job_of("packed-int8", prompts, {first: "2:4"}), Progress.silent())
    packed = packed_in(tmp_path)
    assert packed[first].pattern == "2:4"
    assert packed[second].pattern == ALL_KEPT


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.onnx*"))


@pytest.mark.parametrize(
    ("smaller", "larger"),
    [
        ("packed-int4", "packed-int8"),
        ("packed-int8", "packed-bf16"),
        ("packed-int8", "dense-int8"),
        ("packed-int4", "dense-int4"),
        ("packed-bf16", "dense-fp16"),
    ],
)
def test_leaving_zeros_out_and_fewer_bits_make_matrices_smaller(
    smaller: str, larger: str, forms: dict[str, Exported], model: Model
) -> None:
    sizes = [sum(stored_bytes(model, forms[form].folder).values()) for form in (smaller, larger)]
    assert sizes[0] < sizes[1]


def test_stored_bytes_are_those_of_the_files(
    forms: dict[str, Exported], onnx_export: Exported, vllm_export: Exported, model: Model
) -> None:
    packed = packed_in(forms["packed-int8"].folder)
    weights = {layer.name: layer.weights for layer in model.layers()}
    assert stored_bytes(model, forms["packed-int8"].folder) == {name: packed[name].bytes for name in weights}
    for plain in (onnx_export, vllm_export):
        assert stored_bytes(model, plain.folder) == {name: 4 * count for name, count in weights.items()}
    assert stored_bytes(model, forms["dense-fp16"].folder) == {name: 2 * count for name, count in weights.items()}


@pytest.mark.parametrize("form", FORMS)
def test_weights_lie_beside_their_graph(form: str, forms: dict[str, Exported]) -> None:
    files = {file.name for file in forms[form].folder.glob("*.onnx*")}
    assert files == {f"{graph}.{kind}" for graph in GRAPHS for kind in ("onnx", "onnx_data")}


@pytest.mark.parametrize("form", FORMS)
def test_every_file_is_valid_onnx_and_keeps_inputs_and_outputs(
    form: str, forms: dict[str, Exported], onnx_export: Exported
) -> None:
    for name in GRAPHS:
        file = forms[form].folder / f"{name}.onnx"
        if form != "dense-int4":  # the checker has no schema for MatMulNBits
            onnx.checker.check_model(file)
        ours = onnx.load(file, load_external_data=False).graph
        plain = onnx.load(onnx_export.folder / file.name).graph
        assert [i.name for i in ours.input if i.name != CACHE_ROWS] == [i.name for i in plain.input]
        assert [o.name for o in ours.output] == [o.name for o in plain.output]


@pytest.mark.parametrize("form", FORMS)
def test_packed_decoders_attend_by_our_operator_and_others_by_onnxruntimes(
    form: str, forms: dict[str, Exported]
) -> None:
    graph = onnx.load(forms[form].folder / f"{DECODER}.onnx", load_external_data=False).graph
    domains = {node.domain for node in graph.node if node.op_type == ATTENTION}
    assert domains == {DOMAIN if form.startswith("packed") else "com.microsoft"}
    assert (CACHE_ROWS in {value.name for value in graph.input}) == form.startswith("packed")
    (past,) = {
        value.type.tensor_type.shape.dim[0].dim_param
        for value in graph.input
        if value.name.startswith("past_key_values.")
    }
    assert past == ("cache_rows_size" if form.startswith("packed") else "batch_size"), "by which transformers.js goes"


@pytest.mark.parametrize("form", ["packed-int4", "dense-int8"])
def test_two_exports_are_byte_for_byte_equal(
    form: OnnxWeights, forms: dict[str, Exported], model: Model, prompts: list[Sample], tmp_path: Path
) -> None:
    again = exported_as(form, model, prompts, tmp_path)
    assert again.verification == forms[form].verification
    files = sorted(file.name for file in tmp_path.iterdir())
    assert files == sorted(file.name for file in forms[form].folder.iterdir())
    for name in files:
        assert (tmp_path / name).read_bytes() == (forms[form].folder / name).read_bytes(), name


@pytest.mark.parametrize("form", FORMS)
def test_no_file_tells_of_the_machine_that_made_it(form: str, forms: dict[str, Exported], checkpoint: Path) -> None:
    traces = [str(forms[form].folder), str(checkpoint), str(Path.home()), "site-packages", "Traceback", ".py", "/tmp/"]
    for file in forms[form].folder.iterdir():
        contents = file.read_bytes()
        assert not [trace for trace in traces if trace.encode() in contents], file.name


def test_tied_embeddings_are_packed_as_the_head_and_narrowed_as_the_table(
    fresh_model: Model, prompts: list[Sample], tmp_path: Path
) -> None:
    table = fresh_model.pretrained.get_input_embeddings().weight
    fresh_model.linear("lm_head").weight = table
    exported_as("packed-int8", fresh_model, prompts, tmp_path)
    assert packed_in(tmp_path)["lm_head"].encoding.group == 128
    names = {tensor.name for tensor in onnx.load(tmp_path / f"{EMBED_TOKENS}.onnx").graph.initializer}
    assert names == {"model.language_model.embed_tokens.weight", "model.language_model.embed_tokens.scales"}
    assert fresh_model.linear("lm_head").weight is table


@pytest.mark.parametrize(
    ("settings", "of_tower", "of_head"),
    [
        (OnnxConfig(weights="packed-int4", vision="dense-int8", head="int4", embeddings="int4"), "uint8", "int4"),
        (OnnxConfig(weights="dense-fp32", vision="packed-int8", head="int8", embeddings="int8"), "int8 rows", "int8"),
        (OnnxConfig(weights="packed-bf16", vision="dense-int4", head="int4", embeddings="float16"), "blocks", "int4"),
    ],
)
def test_tower_head_and_table_have_forms_of_their_own(
    settings: OnnxConfig, of_tower: str, of_head: str, model: Model, prompts: list[Sample], tmp_path: Path
) -> None:
    verification = export(model, tmp_path, ExportJob(ExportConfig(onnx=settings), prompts), Progress.silent())
    assert verification["prompts"] == len(prompts)
    reference = stored_reference(tmp_path, TABLE)
    towers = {layer.name: layer.tower for layer in model.layers()}
    for name, rounding in reference.rounding.items():
        if name in towers:
            assert (of_tower in rounding) == (towers[name] != "language"), name
    packed = reference.packed.get("lm_head")
    graph = onnx.load(tmp_path / f"{DECODER}.onnx", load_external_data=False).graph
    bits = {node.name: {a.name: a.i for a in node.attribute}.get("bits") for node in graph.node}
    assert of_head == (packed.encoding.values if packed is not None else f"int{bits['lm_head']}")
    table = reference.weights[f"{TABLE}.weight"]
    own = model.pretrained.get_input_embeddings().weight.detach()
    error = float((table - own).norm() / own.norm())
    assert error < {"int4": 0.15, "int8": 0.02, "float16": 1e-3}[settings.embeddings]


@pytest.mark.parametrize("form", ["packed-int8", "dense-int4"])
def test_a_model_that_stays_on_disk_is_exported_to_the_same_bytes(
    form: OnnxWeights, checkpoint: Path, prompts: list[Sample], tmp_path: Path
) -> None:
    exports = []
    for name, model in (("whole", load_model(str(checkpoint))), ("streamed", load_streamed(str(checkpoint)))):
        (tmp_path / name).mkdir()
        exports.append(exported_as(form, model, prompts, tmp_path / name))
    whole, streamed = exports
    assert streamed.verification == whole.verification
    for file in whole.folder.iterdir():
        assert file.read_bytes() == (streamed.folder / file.name).read_bytes(), file.name


def test_a_model_comes_out_of_its_export_as_it_went_in(model: Model, prompts: list[Sample], tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    parameters = dict(model.module.named_parameters())
    exported_as("packed-int4", model, prompts, tmp_path)
    assert all(parameters[name] is parameter for name, parameter in model.module.named_parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.module.state_dict().items())
    assert not [name for name, module in model.module.named_modules() if module._forward_pre_hooks]


# -- the check can fail -----------------------------------------------------------------------------------------


def test_a_graph_may_differ_by_what_rounding_changes_where_that_is_more_than_usual() -> None:
    reference = Reference(rounding={"a": "int8 rows"}, graphs={DECODER: ["a"], VISION_ENCODER: []})
    assert reference.max_relative_error(DECODER) == 5e-2
    deep = replace(reference, rounding_error={VISION_ENCODER: 0.0, DECODER: 0.1})
    assert deep.max_relative_error(DECODER) == pytest.approx(0.15)
    assert deep.max_relative_error(VISION_ENCODER) == deep.max_relative_error("embed_tokens") == 1e-4
    assert deep.tie == pytest.approx(3 * reference.tie)
    noise = replace(reference, rounding_error={DECODER: 0.9})
    assert noise.max_relative_error(DECODER) == 0.3, "whatever rounding does, another model's outputs never pass"


def test_what_rounding_changes_is_measured(forms: dict[str, Exported]) -> None:
    for form in ("packed-int8", "dense-int4"):
        found = forms[form].verification["relative_error_of_rounding"]
        assert found.keys() == {VISION_ENCODER, DECODER}
        assert all(1e-3 < error < 0.1 for error in found.values())


@pytest.mark.parametrize("form", ["packed-int8", "dense-int4"])
def test_one_bit_that_changes_on_its_way_to_the_disk_fails_the_export(
    form: OnnxWeights, model: Model, prompts: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "model.language_model.layers.1.mlp.down_proj"
    add = DataFile.add

    def altered(data: DataFile, part: str, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        stored = add(data, part, tensor)
        if part in (f"{name}.values", f"{name}.codes"):
            data._stream.seek(-1, io.SEEK_CUR)
            data._stream.write(bytes([tensor.tobytes()[-1] ^ 1]))
        return stored

    monkeypatch.setattr(DataFile, "add", altered)
    with pytest.raises(ExportError, match=rf"the weight {name}\.\w+ is not the same once it is exported"):
        exported_as(form, model, prompts, tmp_path)


def test_a_packed_weight_that_was_altered_is_told_by_its_name(
    forms: dict[str, Exported], model: Model, prompts: list[Sample], tmp_path: Path
) -> None:
    folder = shutil.copytree(forms["packed-int8"].folder, tmp_path / "altered")
    packed = packed_in(folder)
    name = "model.language_model.layers.1.mlp.down_proj"
    file = folder / f"{DECODER}.onnx_data"
    contents, values = file.read_bytes(), packed[name].values
    assert contents.count(values.tobytes()) == 1
    file.write_bytes(contents.replace(values.tobytes(), values[::-1].tobytes()))
    with pytest.raises(ExportError, match=rf"{name}.weight is another weight once it is exported"):
        verify.verify_onnx(model, folder, stored_reference(folder, TABLE), prompts, Progress.silent())


def test_products_with_another_weight_are_told_by_the_layers_name(
    forms: dict[str, Exported], prompts: list[Sample]
) -> None:
    folder = forms["packed-int8"].folder
    packed = packed_in(folder)
    name, other = (f"model.language_model.layers.{i}.self_attn.q_proj" for i in (0, 1))
    packed[name] = packed[other]
    inputs = verify.inputs_of_products(OnnxModel(folder, threads=1), prompts[0])
    with pytest.raises(ExportError, match=rf"the packed layer {name} differs from its product in float64"):
        verify_products.compare_products(folder / f"{DECODER}.onnx", packed, inputs[DECODER])
    assert not list(folder.glob(".*")), "nothing is left behind"


@pytest.mark.parametrize("name", ["lm_head", "model.language_model.embed_tokens"])
@pytest.mark.parametrize(
    ("form", "value", "message"),
    [
        ("dense-fp16", 1e5, "100000, beyond the range of float16"),
        ("packed-int8", 1e33, "1e.33 cannot be packed as int8"),
    ],
)
def test_weights_beyond_the_range_of_their_form_are_refused(
    form: OnnxWeights, value: float, message: str, name: str, fresh_model: Model, prompts: list[Sample], tmp_path: Path
) -> None:
    with torch.no_grad():
        fresh_model.module.get_parameter(f"{name}.weight")[0, 0] = value
    with pytest.raises(ExportError, match=f"holds {message}"):
        exported_as(form, fresh_model, prompts, tmp_path)


def test_a_machine_without_kernels_says_what_that_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "missing_operators", lambda: "the compiled kernels are not installed")
    note = operators.fallback_note()
    assert note == (
        "Packed weights are unpacked to float32 and save neither memory nor time here: the compiled kernels are not "
        "installed."
    )
