"""One checkpoint for each family, made once."""

from pathlib import Path

import pytest
from families import FAMILIES, make_checkpoint

from slimdeploy.model import Model, load_model


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def checkpoint(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(FAMILIES[family], tmp_path_factory.mktemp(family))


@pytest.fixture
def model(checkpoint: Path) -> Model:
    """A fresh one for every test, which may prune it."""
    return load_model(str(checkpoint))
