"""Which swarm a command means."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.cli.which_swarm import chosen_swarm
from shoal.errors import UsageError
from shoal.swarm.discovery.address_book import AddressBook
from shoal.swarm.membership.storage import StoredMembership, SwarmFolder
from tests.unit.swarm.discovery.test_address_book import ticket

ONE, OTHER = ticket(1), ticket(2)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that knows no swarm."""
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path))
    return tmp_path


def test_nothing_is_known() -> None:
    """The error says what to give; a discovery, or a saved reply, knows the way."""
    with pytest.raises(UsageError, match=r"--peers, \$SHOAL_PEERS.*shoal join TICKET --as NAME"):
        chosen_swarm((), "", "")
    assert chosen_swarm((), "", "", found_otherwise=True) == ((), None, "")


def test_the_only_one_needs_no_name() -> None:
    """Of several one has to be named; tickets count before what is remembered."""
    AddressBook().remember("home", [ONE])
    assert chosen_swarm((), "", "") == ((ONE,), None, "home")
    assert chosen_swarm((), "home", "") == ((ONE,), None, "home")
    assert chosen_swarm((OTHER,), "", "") == ((OTHER,), None, "")
    assert chosen_swarm((OTHER,), "home", "") == ((OTHER,), None, "")
    AddressBook().remember("work", [OTHER])
    with pytest.raises(UsageError, match="home, work: choose one"):
        chosen_swarm((), "", "")
    assert chosen_swarm((), "work", "").peers == (OTHER,)


def test_private_swarms(home: Path) -> None:
    """By an invite, by name, or as the only one."""
    assert chosen_swarm((), "", "shoal-invite1-x").private is not None
    SwarmFolder("club", home).node("client").keep(StoredMembership("swarm", b""))
    for name in ("club", ""):
        chosen = chosen_swarm((), name, "")
        assert chosen.private is not None
        assert chosen.private.name == "club"


def test_a_name_that_stands_for_nothing() -> None:
    """The error says what there is, and how a swarm gets a name."""
    with pytest.raises(UsageError, match=r"no swarm 'hme' is known here; give a member's ticket .*shoal join TICKET"):
        chosen_swarm((), "hme", "")
    AddressBook().remember("home", [ONE])
    with pytest.raises(UsageError, match="no swarm 'hme' is known here; there are home; "):
        chosen_swarm((), "hme", "")
    assert chosen_swarm((), "hme", "shoal-invite1-x").private is not None
