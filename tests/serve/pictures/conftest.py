"""Every family's folder, made once."""

import pytest
from tiny_models import NAMES, Described, describe

from slimdeploy.serve.model_files import Family


@pytest.fixture(scope="session", params=NAMES)
def described(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Described:
    family: Family = request.param
    return describe(family, tmp_path_factory.mktemp(family))
