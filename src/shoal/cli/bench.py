"""`shoal bench`: one measurement per claim."""

from __future__ import annotations

from typing import Annotated

import typer

from shoal.cli.output import AsJson, console, print_json


def bench(
    name: Annotated[
        str, typer.Argument(help="Which one: decode, hops, heal, churn, opening, moves, placement or discovery.")
    ],
    tokens: Annotated[int, typer.Option(help="Tokens to decode.", min=8, max=2048)] = 256,
    runs: Annotated[
        int | None,
        typer.Option(help="Runs of heal (200) or moves (100), rounds of churn or opening (5).", min=1, max=10_000),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what chance decides in heal, churn, opening and moves.", min=0)] = 1,
    as_json: AsJson = False,
) -> None:
    """Measure one claim against a peer or a limit, in this run and on this machine."""
    from shoal.bench import BENCHES, Size
    from shoal.errors import UsageError

    if name not in BENCHES:
        raise UsageError(f"there is no bench {name!r}: choose one of {', '.join(BENCHES)}")
    result = BENCHES[name](Size(tokens, runs, seed))
    if as_json:
        print_json(result)
        return
    for key, value in result.items():
        console.print(f"{key:18} {value:.3f}" if isinstance(value, float) else f"{key:18} {value}", soft_wrap=True)
