"""The devices that this machine has, for tests that run on each."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["cpu", "cuda", "mps"])
def device(request: pytest.FixtureRequest) -> str:
    """The name of a device that torch finds here."""
    from shoal.engine.device import check_device  # torch must not be imported before strict mode is asked for
    from shoal.errors import CapacityError

    try:
        check_device(request.param)
    except CapacityError as error:
        pytest.skip(str(error))
    return str(request.param)
