"""What the searches' tests share."""

import pytest
from searching import SAMPLES

from slimdeploy.model import Model
from slimdeploy.progress import Progress
from slimdeploy.prune import Stats, collect_stats


@pytest.fixture
def stats(tiny_model: Model) -> Stats:
    return collect_stats(tiny_model, SAMPLES["calibration"], "wanda", 3, Progress.silent())
