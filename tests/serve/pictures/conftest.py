"""Every family's folder, made once."""

from collections.abc import Callable
from functools import cache

import pytest
from tiny_models import NAMES, Described, describe

from slimdeploy.serve.model_files import Family


@pytest.fixture(scope="session")
def describe_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Family], Described]:
    return cache(lambda family: describe(family, tmp_path_factory.mktemp(family)))


@pytest.fixture(params=NAMES)
def described(request: pytest.FixtureRequest, describe_once: Callable[[Family], Described]) -> Described:
    return describe_once(request.param)


@pytest.fixture(params=[name for name in NAMES if name != "paligemma"])
def conversing(request: pytest.FixtureRequest, describe_once: Callable[[Family], Described]) -> Described:
    """A family with a chat template."""
    return describe_once(request.param)


@pytest.fixture
def paligemma(describe_once: Callable[[Family], Described]) -> Described:
    return describe_once("paligemma")
