"""A real client in a process of its own, to be killed: keeps a reply in a file, or goes on with one.

Its argument is one JSON object:
`model`, `tickets`, `transport`, `save`; `prompt` and `sampling` (fields of SamplingParams) for a new reply, none to resume.
At the end the reply's tokens are printed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from shoal.model.kernels import strict


def _reply(options: dict[str, Any]) -> None:
    from shoal.client.saved_reply import read_saved
    from shoal.client.sync import connect

    path = Path(options["save"])
    with connect(options["model"], peers=options["tickets"], transport=options["transport"]) as model:
        prompt = options.get("prompt")
        pieces = (
            model.resume(read_saved(path), path)
            if prompt is None
            else model.stream(prompt, save=path, **options["sampling"])
        )
        reply = pieces.finish()
        print(json.dumps({"token_ids": reply.token_ids, "exact": reply.exact}), flush=True)


if __name__ == "__main__":
    strict.strict_mode_environment()
    _reply(json.loads(sys.argv[1]))
