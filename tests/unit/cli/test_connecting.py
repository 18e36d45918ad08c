"""How a command's options reach `connect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoal.cli.connecting import connected
from shoal.cli.terminal import waiting
from shoal.cli.which_swarm import ChosenSwarm
from shoal.client.activity import Activity
from shoal.client.client_options import ConnectOptions
from shoal.swarm.discovery.discovery_options import Discoveries, DiscoveryOptions
from shoal.swarm.membership.storage import PrivateSwarm


def test_every_option_of_a_connection_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the private swarm and the discoveries in their places."""
    calls: list[tuple[str | None, dict[str, Any]]] = []
    monkeypatch.setattr("shoal.client.sync.connect", lambda model, **options: calls.append((model, options)))
    asked = ConnectOptions(transport="tls", head="bfloat16")
    private, found = PrivateSwarm(name="home", home=Path("/home")), Discoveries(DiscoveryOptions())
    connected("model", asked, ChosenSwarm(("ticket",), private), found)
    connected(None, asked, ChosenSwarm(("ticket",), None))
    (model, options), (no_model, alone) = calls
    assert (model, no_model) == ("model", None)
    assert set(options) == set(ConnectOptions.__struct_fields__)
    assert (options["peers"], options["transport"], options["head"]) == (("ticket",), "tls", "bfloat16")
    assert (options["invite"], options["discoveries"]) == (private, found)
    assert (alone["invite"], alone["discoveries"]) == (None, None)


def test_what_is_waited_for_before_a_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command starts, opens the model, and prepares the prompt: it does not start again, and nothing is finishing yet."""
    told: list[str] = []

    def connect(model: str | None, activity: Activity, **options: object) -> None:
        told.append(waiting.text)
        with activity.doing("opening the model"):
            told.append(waiting.text)
        told.append(waiting.text)

    monkeypatch.setattr("shoal.client.sync.connect", connect)
    connected(None, ConnectOptions(), ChosenSwarm(("ticket",), None))
    assert [*told, waiting.text] == ["starting", "opening the model", "preparing the prompt", "preparing the prompt"]
