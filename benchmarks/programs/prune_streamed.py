"""The program that prune_runs.py measures: prunes a checkpoint with slimdeploy, its blocks left on disk.

python prune_streamed.py CHECKPOINT NEW_FOLDER CRITERION SPARSITY SAMPLES TOWER... prints seconds from loading to the
written checkpoint, and the peak memory of the process, as JSON. SAMPLES: a file of slimdeploy's entries.
"""

import json
import sys
import time
from operator import itemgetter
from pathlib import Path

from peak_memory import peak_bytes

from slimdeploy.config import PruneConfig
from slimdeploy.policy import Level, Policy
from slimdeploy.progress import Progress
from slimdeploy.prune import Pruning, prune_blockwise
from slimdeploy.records import read_records
from slimdeploy.streaming import load_streamed, write_blocks

source, target, criterion, sparsity, samples, *towers = sys.argv[1:]
start = time.perf_counter()
calibration = [located.sample for located in read_records(Path(samples), Path(samples).parent)]
model = load_streamed(source, "bfloat16")
policy = Policy({layer.name: Level(float(sparsity)) for layer in model.layers() if layer.tower in towers})
config = PruneConfig(criterion=criterion, propagate="pruned")  # type: ignore[arg-type]
blocks = prune_blockwise(model, policy, Pruning(config, calibration, 1, Progress.silent()))
write_blocks(model, map(itemgetter(0), blocks), Path(target))
seconds = time.perf_counter() - start
sys.stdout.write(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes()}) + "\n")
