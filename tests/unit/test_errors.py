"""The tree of errors."""

from __future__ import annotations

import re

import pytest

from shoal import errors
from shoal.errors import CapacityError, NetworkError, NoRoute, PeerError, ServerFull, ShoalError, UsageError

CLASSES = {
    name: found for name, found in vars(errors).items() if isinstance(found, type) and issubclass(found, ShoalError)
}
PARTIES = {UsageError: "this side", PeerError: "peer", NetworkError: "network", CapacityError: "capacity"}


def drawn() -> dict[str, str]:
    """The parent of each error in the module's own picture."""
    assert errors.__doc__ is not None
    parents, path = {}, list[tuple[int, str]]()
    for line in re.findall(r"^[ │├└─]+[A-Z]\w+", errors.__doc__, re.M):
        depth, name = len(line) - len(line.lstrip(" │├└─")), line.strip(" │├└─")
        while path and path[-1][0] >= depth:
            path.pop()
        if path:
            parents[name] = path[-1][1]
        path.append((depth, name))
    return parents


def test_the_picture_is_the_tree() -> None:
    """Every class is in it, under its base."""
    assert drawn() == {
        name: base.__name__
        for name, found in CLASSES.items()
        for base in found.__bases__
        if issubclass(base, ShoalError)
    }


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_each_says_who_has_to_act(name: str) -> None:
    """As the branch does that it is on; below the root there is no error beside the branches."""
    if name == "ShoalError":
        return
    [branch] = [base for base in CLASSES[name].__mro__ if base in PARTIES]
    assert CLASSES[name].party == PARTIES[branch]  # type: ignore[index]  # one of them


def test_a_mistake_names_its_option() -> None:
    """It is a ValueError too, as programs expect."""
    error = UsageError("cannot be 0", field="max_tokens")
    assert (str(error), error.field, error.peer) == ("cannot be 0", "max_tokens", None)
    assert isinstance(error, ValueError)
    assert UsageError("no option").field == ""


def test_what_is_missing_and_when_to_come_again() -> None:
    """As data, beside the words."""
    assert ServerFull("full").retry_after == 1.0
    assert ServerFull("full", 5.0).retry_after == 5.0
    assert NoRoute("none").missing == ()
    assert NoRoute("none", ((0, 4),)).missing == ((0, 4),)
