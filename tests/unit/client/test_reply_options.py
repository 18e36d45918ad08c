"""Options of replies: one list for both faces, forgiving forms, names that are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.client.options import SessionOptions
from shoal.client.reply_options import ReplyOptions, ReplySettings, SamplingOptions, reply_settings, sampling_params
from shoal.errors import UsageError
from shoal.model.nn.sampling import SamplingParams


def test_the_names_are_those_of_the_structs() -> None:
    """What is declared for type checkers is what is taken."""
    assert set(SamplingOptions.__annotations__) == set(SamplingParams.__struct_fields__)
    assert set(ReplyOptions.__annotations__) == {*SamplingParams.__struct_fields__, *ReplySettings.__struct_fields__}


def test_options_are_divided() -> None:
    """Those of the reply, and those of sampling."""
    options = SessionOptions(redundancy=2)
    settings, params = reply_settings({"raw": False, "save": "reply", "options": options, "top_k": 3})
    assert settings == ReplySettings(raw=False, save=Path("reply"), options=options)
    assert params == SamplingParams(top_k=3)
    assert reply_settings({}) == (ReplySettings(), SamplingParams())


@pytest.mark.parametrize("stop", [".", ["."], (".",)])
def test_stop_may_be_one_text_or_several(stop: object) -> None:
    """As people write it."""
    assert sampling_params({"stop": stop}).stop == (".",)


def test_an_unknown_name_is_told_with_those_there_are() -> None:
    """max_new_tokens is another library's."""
    with pytest.raises(UsageError, match=r"no option max_new_tokens: choose of .*max_tokens"):
        reply_settings({"max_new_tokens": 3})
    with pytest.raises(UsageError, match="no option save"):
        sampling_params({"save": "reply"})
    with pytest.raises(UsageError, match="max_tokens"):
        sampling_params({"max_tokens": 0})
