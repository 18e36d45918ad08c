"""A user of blocking code who presses Ctrl-C in some replies, and then wants a whole one.

Prints a line before each reply, how each ended, and the tokens of the last.
"""

from __future__ import annotations

import json
import sys

import shoal


def main(model: str, ticket: str, interruptions: int) -> None:
    """One reply for each interruption, which says how it ended, and one more."""
    with shoal.connect(model, peers=[ticket], transport="tls") as remote:
        for _ in range(interruptions):
            print("asked", flush=True)
            try:
                for _ in remote.stream("the sea", max_tokens=64, ignore_eos=True):
                    pass
                print("finished", flush=True)
            except BaseException as error:
                print(type(error).__name__, flush=True)
        print(json.dumps(remote.generate("the sea", max_tokens=8, ignore_eos=True).token_ids), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
