"""Every option's parser, whatever it is given."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.client.client_options import ConnectOptions, ReplyOptions, SessionOptions
from shoal.errors import UsageError
from shoal.model.nn.sampling_params import SamplingParams
from shoal.options import Options, options_of
from shoal.server.serve_options import ServeOptions
from shoal.swarm.discovery.discovery_options import DiscoveryOptions
from shoal.swarm.routing.route_options import RouteOptions

PARTS = ["1", "-1", "0.5", "1e999", "nan", ":", "=", "MB", "GiB", "٣", "²", "[", "]", "/", "\0", "\udcff", "é", " "]
TEXTS = st.one_of(
    st.lists(st.sampled_from(PARTS), max_size=6).map("".join),
    st.text(st.characters(codec=None), max_size=8),
    st.integers().map(str),
)
ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.binary(max_size=4), st.lists(st.integers(), max_size=2)
)


@pytest.mark.parametrize(
    "struct",
    [ConnectOptions, ReplyOptions, SamplingParams, SessionOptions, RouteOptions, DiscoveryOptions, ServeOptions],
)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_every_option_is_taken_or_refused(struct: type[Options], data: st.DataObject) -> None:
    """Whatever is typed for an option, or given in Python, is a value of its type or a UsageError that names it."""
    one = data.draw(st.sampled_from(sorted(options_of(struct).values())))
    typed = st.one_of(TEXTS, st.lists(TEXTS, max_size=3)) if one.info.repeated else TEXTS
    value = data.draw(st.one_of(typed, ANYTHING))
    try:
        one.check(one.taken(value))
    except UsageError as error:
        assert error.field == one.name
        assert one.name in str(error)
