"""What the tests of a real GPU need: one, and NVML to read it."""

import pytest

from backend.gpu import MemorySource, find_source


@pytest.fixture(scope="session")
def nvml() -> MemorySource:
    source = find_source()
    if source.name != "nvml":
        pytest.skip("No NVIDIA GPU that NVML can read.")
    return source
