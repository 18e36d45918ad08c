"""Options: fields of a frozen struct, checked when one is made."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Literal

import numpy as np
import pytest
import torch

from shoal.errors import UsageError
from shoal.options import GROUPS, Options, check_names, check_text, option, options_of, split


class Reply(Options, frozen=True, kw_only=True):
    """An example."""

    max_tokens: Annotated[int, option("The longest reply.", "Reply", least=1, most=99)] = 8
    temperature: Annotated[float, option("0 is greedy.", "Reply", least=0)] = 0.0
    share: Annotated[float, option("Of the memory.", "Memory", above=0, most=1)] = 0.5
    codec: Annotated[Literal["fp32", "bf16"], option("How rows travel.")] = "fp32"
    bits: Annotated[Literal[8, 4] | None, option("Of a weight.", "Memory")] = None
    seed: Annotated[int | None, option("The same seed draws the same reply.", "Reply")] = None
    exact: Annotated[bool, option("Wait for equal bits.", flag="--exact")] = False
    inner: str = ""


class Route(Options, frozen=True, kw_only=True):
    """Another one."""

    deny: Annotated[frozenset[str], option("Never use it.", "Route")] = frozenset()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"max_tokens": 0}, "max_tokens cannot be 0: it is a whole number from 1 to 99"),
        ({"max_tokens": True}, "max_tokens cannot be True: it is a whole number from 1 to 99"),
        ({"max_tokens": 1.5}, "max_tokens cannot be 1.5: it is a whole number from 1 to 99"),
        ({"temperature": float("nan")}, "temperature cannot be nan: it is a number from 0"),
        ({"share": 0}, "share cannot be 0: it is a number above 0 to 1"),
        ({"codec": "fp8"}, "codec cannot be 'fp8': it is one of fp32, bf16"),
        ({"bits": 5}, "bits cannot be 5: it is one of 8, 4"),
        ({"bits": 4.0}, "bits cannot be 4.0: it is one of 8, 4"),
        ({"bits": "4"}, "bits cannot be '4': it is one of 8, 4"),
        ({"seed": "a"}, "seed cannot be 'a': it is a whole number"),
        ({"exact": 1}, "exact cannot be 1: it is True or False"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(given: dict[str, object], text: str) -> None:
    """The error names the option, the value and what it has to be."""
    with pytest.raises(UsageError) as caught:
        Reply(**given)
    assert str(caught.value) == text
    assert caught.value.field in given


@pytest.mark.parametrize("value", [[None], [1], b"ab", (b"a",), {"a": None, 3: 1}, [["a"]]])
def test_texts_are_texts(value: object) -> None:
    """Each of several."""
    with pytest.raises(UsageError, match="deny cannot be"):
        Route.of({"deny": value})
    with pytest.raises(UsageError, match="deny cannot be"):
        Route(deny=frozenset([1]))  # type: ignore[arg-type]


def _no_span(text: str) -> int:
    raise UsageError(f"a span is written START:STOP, not {text!r}")


class Blocks(Options, frozen=True, kw_only=True):
    """An example whose parser quotes what it refuses."""

    blocks: Annotated[int | None, option("Blocks.", parse=_no_span)] = None


def test_a_value_is_said_once() -> None:
    """Also where its parser says it too."""
    with pytest.raises(UsageError) as caught:
        Blocks.of({"blocks": "5:2"})
    assert str(caught.value) == "blocks cannot be '5:2': a span is written START:STOP"


def test_what_fits_is_taken() -> None:
    """Whole numbers are numbers; None is taken where it is a type."""
    assert Reply(max_tokens=99, temperature=1, seed=None, codec="bf16").max_tokens == 99


@pytest.mark.parametrize("number", [np.int64(5), np.uint8(5), torch.tensor(5), np.array(5)])
def test_whole_numbers_of_other_libraries(number: object) -> None:
    """They are Python's from then on, and are checked as those are."""
    made = Reply.of({"max_tokens": number, "seed": number, "temperature": number})
    assert (made.max_tokens, made.seed, made.temperature) == (5, 5, 5)
    assert {type(value) for value in (made.max_tokens, made.seed, made.temperature)} <= {int, float}
    assert Reply(max_tokens=number).max_tokens == 5  # type: ignore[arg-type]
    assert type(Reply.of({"bits": number + 3}).bits) is int  # type: ignore[operator]  # a number
    with pytest.raises(UsageError, match="max_tokens cannot be 100: it is a whole number from 1 to 99"):
        Reply.of({"max_tokens": np.int64(100)})


@pytest.mark.parametrize(
    "number", [np.float32(0.5), np.float64(0.5), torch.tensor(0.5), Fraction(1, 2), Decimal("0.5")]
)
def test_numbers_of_other_libraries(number: object) -> None:
    """The same; none is a whole number."""
    assert Reply.of({"temperature": number}).temperature == 0.5
    with pytest.raises(UsageError, match="max_tokens cannot be"):
        Reply.of({"max_tokens": number})


@pytest.mark.parametrize("value", [np.array([1, 2]), torch.zeros(2), np.array(["a"]), "5", b"5", [5], 5 + 0j])
def test_what_is_no_number(value: object) -> None:
    """Nothing is made of it."""
    for name in ("max_tokens", "temperature"):
        with pytest.raises(UsageError, match=f"{name} cannot be"):
            Reply.of({name: value})


def test_an_unknown_option_is_named_beside_those_that_there_are() -> None:
    """A keyword of none of the structs."""
    with pytest.raises(
        UsageError, match=r"no option .max_new_tokens. .did you mean max_tokens.*there are .*max_tokens"
    ):
        check_names({"max_new_tokens": 3}, Reply)
    with pytest.raises(UsageError, match="no option 'inner'"):
        Reply.of({"inner": "x"})


def test_keywords_are_split_by_struct() -> None:
    """Each goes to the struct that has it."""
    assert split({"deny": frozenset("a"), "max_tokens": 3}, Reply, Route) == [
        {"max_tokens": 3},
        {"deny": frozenset("a")},
    ]


def test_an_option_says_what_it_is() -> None:
    """The flag follows from the name, unless it is given."""
    found = options_of(Reply)
    assert list(found) == ["max_tokens", "temperature", "share", "codec", "bits", "seed", "exact"]
    assert found["max_tokens"].flag == "--max-tokens"
    assert found["seed"].default is None
    assert all(one.info.group in GROUPS for one in found.values())


@pytest.mark.parametrize("given", ["\udcff", "a\ud800", "é\udce9"])
def test_bytes_that_are_no_text(given: str) -> None:
    """They come as lone surrogates; the error says where."""
    with pytest.raises(UsageError, match=r"inner is not UTF-8: character \d is"):
        check_text("inner", given)


def test_a_text_of_any_language() -> None:
    """Is one."""
    check_text("inner", "naïve 世界 👩‍🚀 \x1b")
