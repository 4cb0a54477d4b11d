"""The program that prune_runs.py measures in llm-compressor's environment: prunes the language model of a LLaVA.

python prune_llmcompressor.py CHECKPOINT NEW_FOLDER CRITERION SPARSITY SAMPLES prints seconds from loading to the
written checkpoint, and the peak memory of the process, as JSON. SAMPLES: a safetensors file of encoded inputs. Imports
nothing of slimdeploy.
"""

import json
import sys
import time

import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from peak_memory import peak_bytes
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import LlavaForConditionalGeneration

MODIFIERS = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}

source, target, criterion, sparsity, samples = sys.argv[1:]
start = time.perf_counter()
inputs = load_file(samples)
data = [{name: tensor[i] for name, tensor in inputs.items()} for i in range(len(inputs["input_ids"]))]
model = LlavaForConditionalGeneration.from_pretrained(source, dtype=torch.bfloat16)
modifier = MODIFIERS[criterion](
    sparsity=float(sparsity),
    mask_structure="0:0",
    targets=["Linear"],
    ignore=["re:.*lm_head", "re:.*vision_tower.*", "re:.*multi_modal_projector.*"],
)
oneshot(
    model=model,
    dataset=DataLoader(data, batch_size=1),
    recipe=modifier,
    pipeline="sequential",
    sequential_targets=["LlamaDecoderLayer"],
    num_calibration_samples=len(data),
)
model.save_pretrained(target)
seconds = time.perf_counter() - start
sys.stdout.write(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes()}) + "\n")
