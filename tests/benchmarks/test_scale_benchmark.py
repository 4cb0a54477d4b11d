"""The scale benchmark runs, looks at what was written, and says where it had nothing to compare with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from slimdeploy.model import encode, load_model


def test_a_quick_run_measures_both_criteria_and_keeps_nothing(quick_run: Callable[[str, str], Any]) -> None:
    result = quick_run("prune_scale.py", "scale")
    names = [row["name"] for row in result["rows"]]
    assert names == [f"peak memory, 7B shape, 1 + 2 blocks, {criterion}" for criterion in ("wanda", "sparsegpt")]
    assert all(row["unit"] == "GB" and 0 < row["value"] < 6 and row["met"] for row in result["rows"])
    assert "llm-compressor: not measured, SLIMDEPLOY_BENCH_LLMCOMPRESSOR names no interpreter" in result["table"]


def test_a_checkpoint_loads_its_matrices_differ_and_samples_have_the_length_asked_for(tmp_path: Path) -> None:
    from prune_scale import TINY
    from random_llava import write_checkpoint, write_samples

    from slimdeploy.records import read_records

    model = load_model(str(write_checkpoint(tmp_path / "dense", TINY)))
    matrices = [model.linear(layer.name).weight for layer in model.layers()]
    assert len({matrix.detach().numpy().tobytes() for matrix in matrices}) == len(matrices)
    file = write_samples(tmp_path, model, count=2, tokens=48)
    samples = [located.sample for located in read_records(file, tmp_path)]
    encoded = encode(model, samples)
    assert encoded["input_ids"].shape == (2, 48)
    assert (encoded["input_ids"] == model.media_token_id).sum(1).tolist() == [16, 16]
    stored = load_file(file.with_suffix(".safetensors"))
    assert all(torch.equal(stored[name], encoded[name]) for name in stored)


def test_a_matrix_that_was_left_dense_is_found(tmp_path: Path) -> None:
    from prune_runs import check_zeros
    from prune_scale import TINY
    from random_llava import write_checkpoint

    folder = write_checkpoint(tmp_path / "dense", TINY)
    layers = load_model(str(folder)).layers()
    for file in folder.glob("*.safetensors"):
        halved = load_file(file)
        for tensor in halved.values():
            if tensor.dim() == 2:
                tensor[:, ::2] = 0
        save_file(halved, file, {"format": "pt"})
    check_zeros(folder, layers)
    last = max(folder.glob("*.safetensors"))
    weights = load_file(last)
    name = next(name for name in weights if name.endswith("up_proj.weight"))
    save_file(weights | {name: torch.ones_like(weights[name])}, last, {"format": "pt"})
    with pytest.raises(ValueError, match=r"up_proj\.weight in .* has 0\.00% zeros, not 50%"):
        check_zeros(folder, layers)


def test_a_ratio_is_ours_over_theirs() -> None:
    from prune_runs import Run
    from prune_scale import ratio_rows

    both = {("slimdeploy", "wanda"): Run(6.0, 10), ("llm-compressor", "wanda"): Run(12.0, 40)}
    both |= {("slimdeploy", "sparsegpt"): Run(8.0, 10), ("llm-compressor", "sparsegpt"): Run(10.0, 16)}
    rows = list(ratio_rows(both))  # type: ignore[arg-type]
    assert [row.value for row in rows] == [0.5, 0.25, 0.8, 0.625]
    assert [row.met for row in rows] == [True, True, True, False]
    assert not list(ratio_rows({}))
