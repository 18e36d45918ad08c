"""ALiBi's slopes against the paper's numbers."""

from __future__ import annotations

import pytest
import torch

from shoal.model.nn.alibi import alibi_slopes


def test_a_power_of_two_of_heads() -> None:
    """For 8 heads 1/2, 1/4 … 1/256, as the paper has them."""
    assert alibi_slopes(8).tolist() == [2.0**-power for power in range(1, 9)]


@pytest.mark.parametrize("heads", [3, 6, 12, 112])
def test_other_numbers_take_every_other_of_the_next_power(heads: int) -> None:
    """First all of the lower power, then what lies between."""
    lower = 1 << (heads.bit_length() - 1)
    found = alibi_slopes(heads)
    assert found.shape == (heads,)
    assert torch.equal(found[:lower], alibi_slopes(lower))
    torch.testing.assert_close(found[lower:], alibi_slopes(2 * lower)[0::2][: heads - lower])
