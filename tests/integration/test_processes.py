"""The command line from outside: real processes, and none of them left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.local_cluster import LocalServer
from tests.swarms import until

pytestmark = pytest.mark.timeout(180)

EXAMPLES = Path(__file__).parents[2] / "examples"

PARENT = """
import sys, json
from shoal.local_cluster import LocalCluster
with LocalCluster(sys.argv[1], 2, transport="tls") as swarm:
    print(json.dumps({"ticket": swarm.ticket, "pids": [server.process.pid for server in swarm.servers]}), flush=True)
    sys.stdin.read()
"""


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def run(*arguments: str, model: Path, code: int | None = 0) -> subprocess.CompletedProcess[str]:
    """One shoal command to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "shoal.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "SHOAL_MODELS": str(model.parent)},
    )
    assert code in (None, done.returncode), done.stderr
    return done


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at /proc")
async def test_servers_go_with_their_parent(tiny_model: Path) -> None:
    """A swarm serves the command line; when the process that started it is killed, no server stays."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tiny_model)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    try:
        started = json.loads(parent.stdout.readline())
        assert all(map(alive, started["pids"]))
        peers = ("--peers", started["ticket"], "--transport", "tls")

        status = json.loads(run("status", *peers, "--json", model=tiny_model).stdout)
        assert [server["span"] for server in status["models"][0]["servers"]] == [[0, 3], [3, 6]]
        assert status["models"][0]["missing"] == []

        reply = json.loads(
            run("generate", "hello", *peers, "--raw", "--max-tokens", "12", "--json", model=tiny_model).stdout
        )
        assert len(reply["token_ids"]) <= 12
        assert [hop["span"] for hop in reply["route"]] == [[0, 3], [3, 6]]
        assert len(reply["trace"]) == len(reply["token_ids"]) - 1

        for example in sorted(EXAMPLES.glob("*.py")):
            command = [sys.executable, str(example), started["ticket"]]
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
                env={**os.environ, "SHOAL_MODELS": str(tiny_model.parent)},
            )
            assert done.returncode == 0, done.stderr
            assert "rewound equal: True" in done.stdout or "through 2 servers" in done.stdout

        refused = run("generate", "hello", *peers, "--max-tokens", "12", model=tiny_model, code=1)
        assert "chat template" in refused.stderr
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        parent.stdin.close()
        parent.stdout.close()
    await until(lambda: not any(map(alive, started["pids"])), timeout_s=20)


async def test_mistakes_are_one_line(tiny_model: Path) -> None:
    """Unknown models, spans and tickets end with exit code 1 and say what was wrong."""
    wrong = {
        ("serve", str(tiny_model), "--blocks", "3:9"): "0:6",
        ("serve", str(tiny_model), "--blocks", "0:3", "--num-blocks", "2"): "not both",
        ("serve", "/no/such/model"): "/no/such/model",
        ("status", "--peers", "hello"): "ticket",
    }
    for arguments, words in wrong.items():
        done = run(*arguments, model=tiny_model, code=1)
        assert words in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_server_leaves_when_asked(tiny_model: Path, number: signal.Signals) -> None:
    """Ctrl-C and a polite kill end a server with exit code 0."""
    server = LocalServer(str(tiny_model), "--blocks", "0:2", "--transport", "tls")
    assert server.wait_ready()["span"] == [0, 2]
    server.process.send_signal(number)
    assert server.process.wait(20) == 0
    server.stop()
