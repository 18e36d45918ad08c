"""`shoal quantize`, and that what it makes is served."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.quantized_models import small_llama

pytestmark = pytest.mark.timeout(300)
FEW = ["--rows", "6", "--length", "48", "--evaluation-rows", "2", "--threads", "1"]


def shoal(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command, until it has ended."""
    command = [sys.executable, "-m", "shoal.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))


def test_a_quantized_directory_is_served_and_generates(tmp_path: Path) -> None:
    """By one server that reads it; the client takes embedding and head from it too."""
    model, out = small_llama(tmp_path / "model"), tmp_path / "out"
    made = shoal("quantize", str(model), "--bits", "4", "--out", str(out), "--json", *FEW)
    assert made.returncode == 0, made.stderr
    said = json.loads(made.stdout)
    assert said["directory"] == str(out)
    assert said["bits_per_weight"] <= 4
    command = [sys.executable, "-m", "shoal.cli.main", "serve", str(out), "--json", "--temporary", "--watch-stdin"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        events = (json.loads(line) for line in server.stdout)
        ticket = next(event["ticket"] for event in events if event["event"] == "ready")
        reply = shoal(
            "generate", "Hello", "--model", str(out), "--peers", ticket, "--max-tokens", "6", "--json", "--raw"
        )
        server.terminate()
    assert reply.returncode == 0, reply.stderr
    assert json.loads(reply.stdout)["token_ids"]


def test_mistakes_are_told_by_their_flags(tmp_path: Path) -> None:
    """A target beyond the format, a text that is too short, a measurement of something else, a directory that is there."""
    model = str(small_llama(tmp_path / "model"))
    (tmp_path / "short.txt").write_text("A few words.")
    (tmp_path / "m.json").write_text("{}")
    (tmp_path / "there").mkdir()
    for arguments, said in (
        (["--bits", "9"], "--bits cannot be"),
        (["--calibration", str(tmp_path / "short.txt")], "short.txt has"),
        (["--measurement", str(tmp_path / "m.json")], "m.json is no measurement"),
        (["--out", str(tmp_path / "there")], "there is there already"),
    ):
        found = shoal("quantize", model, "--out", str(tmp_path / "out"), *FEW, *arguments)
        assert found.returncode == 1
        assert said in " ".join(found.stderr.split()), found.stderr
    assert not (tmp_path / "out").exists()
