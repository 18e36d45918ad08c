"""Servers in processes of their own: how they are started, and that none is left."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path
from typing import ClassVar

import pytest

from shoal import local_cluster
from shoal.errors import ShoalError
from shoal.local_cluster import LocalCluster, LocalServer, divide, num_blocks
from tests.support.tiny_models import tiny_llama


class Process:
    """A process that says what the test put in its mouth; `stubborn`: it does not end by itself."""

    started: ClassVar[list[Process]] = []
    says: ClassVar[dict[int, list[dict[str, object]]]] = {}
    stubborn = False

    def __init__(self, command: list[str], env: dict[str, str], **options: object) -> None:
        self.command, self.env = command, env
        index = len(self.started)
        said = self.says.get(index, [{"event": "ready", "ticket": f"ticket-{index}", "peer": f"peer-{index}"}])
        self.stdin = io.BytesIO()
        self.stdout = io.BytesIO(b"".join(json.dumps(line).encode() + b"\n" for line in said))
        self.stderr = io.BytesIO(b"no such model\n")
        self.killed = False
        self.started.append(self)

    def wait(self, timeout_s: float | None = None) -> int:
        """subprocess.Popen."""
        assert self.stdin.closed or self.killed
        if self.stubborn and not self.killed:
            raise subprocess.TimeoutExpired(self.command, timeout_s or 0.0)
        return 0

    def kill(self) -> None:
        """subprocess.Popen."""
        self.killed = True

    def option(self, name: str) -> str:
        """What follows this option."""
        return self.command[self.command.index(name) + 1]


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> type[Process]:
    """Instead of real ones; the model has eight blocks."""
    monkeypatch.setattr(Process, "started", [])
    monkeypatch.setattr(Process, "says", {})
    monkeypatch.setattr(local_cluster.subprocess, "Popen", Process)
    monkeypatch.setattr(local_cluster, "num_blocks", lambda model: 8)
    return Process


@pytest.mark.parametrize(("blocks", "count"), [(1, 1), (8, 3), (30, 7), (5, 5)])
def test_blocks_are_divided_evenly(blocks: int, count: int) -> None:
    """In order, all of them, none much longer than another."""
    spans = divide(blocks, count)
    assert [block for span in spans for block in span.blocks()] == list(range(blocks))
    assert max(map(len, spans)) - min(map(len, spans)) <= 1
    assert len(spans) == count


def test_how_many_blocks_a_checkpoint_has(tmp_path: Path) -> None:
    """From its configuration alone."""
    assert num_blocks(str(tiny_llama(tmp_path, num_hidden_layers=3))) == 3


def test_the_first_ones_ticket_is_what_the_others_know(processes: type[Process]) -> None:
    """A spare holds the middle span again; each server is found by its id, and all are stopped."""
    with LocalCluster("model", 3, threads=2, transport="tls", spares=1, options=["--exact"]) as cluster:
        assert cluster.ticket == "ticket-0"
        assert [one.option("--blocks") for one in processes.started] == ["0:2", "2:5", "5:8", "2:5"]
        assert [one.option("--name") for one in processes.started] == ["server 1", "server 2", "server 3", "spare 1"]
        assert "--peers" not in processes.started[0].command
        assert {one.option("--peers") for one in processes.started[1:]} == {"ticket-0"}
        for one in processes.started:
            assert (one.option("--threads"), one.option("--transport")) == ("2", "tls")
            assert {"--exact", "--watch-stdin", "--json"} <= set(one.command)
        assert cluster.of("peer-2") is cluster.servers[2]
    assert all(one.stdin.closed and one.stdout.closed and not one.killed for one in processes.started)
    cluster.close()


def test_a_server_that_does_not_start(processes: type[Process]) -> None:
    """What it said is told, and those that were started are stopped."""
    processes.says[1] = [{"event": "loading", "what": "blocks"}]
    with pytest.raises(ShoalError, match="did not start: no such model"):
        LocalCluster("model", 2).__enter__()
    assert len(processes.started) == 2
    assert all(one.stdin.closed and one.stdout.closed for one in processes.started)


def test_a_server_that_does_not_leave_is_killed(processes: type[Process], monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while; stopping twice is harmless."""
    monkeypatch.setattr(processes, "stubborn", True)
    server = LocalServer("model", env={"SHOAL_HOME": "/elsewhere"})
    server.stop()
    server.stop()
    [process] = processes.started
    assert process.killed
    assert process.env["SHOAL_HOME"] == "/elsewhere"
    assert process.env.keys() > {"SHOAL_HOME"}


def test_what_a_server_loads_is_passed_over(processes: type[Process]) -> None:
    """Until it is ready."""
    processes.says[0] = [{"event": "loading"}, {"event": "ready", "ticket": "t", "peer": "p"}]
    server = LocalServer("model")
    assert server.ready == {}
    assert server.wait_ready()["ticket"] == "t"
    assert server.ready["peer"] == "p"
    server.kill()
    assert processes.started[0].killed
