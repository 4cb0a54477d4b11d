"""A library is used only with the Python that it was built for."""

from pathlib import Path

import pytest
from stand_in_kernels import StandInLibrary

from slimdeploy.errors import ConfigError
from slimdeploy.kernels import library
from slimdeploy.kernels.library import INTERFACE_VERSION


def loaded(stand_in: StandInLibrary, monkeypatch: pytest.MonkeyPatch) -> object:
    """What `require_library` makes of a library."""
    monkeypatch.setattr(library, "library_file", lambda: Path("kernels.so"))
    monkeypatch.setattr(library.ctypes, "CDLL", lambda _: stand_in)
    return library.require_library.__wrapped__()


def test_a_library_of_this_interface_is_taken_with_every_function_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = StandInLibrary(INTERFACE_VERSION)
    assert loaded(stand_in, monkeypatch) is stand_in
    assert set(stand_in.declared()) == set(library._FUNCTIONS)


@pytest.mark.parametrize("version", [None, INTERFACE_VERSION - 1, INTERFACE_VERSION + 1])
def test_a_library_of_another_interface_is_refused_before_it_is_declared(
    version: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = StandInLibrary(version)
    with pytest.raises(ConfigError, match=r"kernels\.so was built from another version of slimdeploy; install"):
        loaded(stand_in, monkeypatch)
    assert not stand_in.declared()


def test_a_library_without_one_of_the_functions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = StandInLibrary(INTERFACE_VERSION, missing="slimdeploy_linear")
    with pytest.raises(ConfigError, match="another version of slimdeploy; install slimdeploy again"):
        loaded(stand_in, monkeypatch)
