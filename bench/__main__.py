"""`python -m bench NAME`: one measurement for each claim."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from shoal.cli.output import AsJson, print_json, run_command
from shoal.cli.terminal import say, say_table, waits_for


def bench(
    name: Annotated[
        str,
        typer.Argument(
            help="Which one: engine, decode, families, hops, batch, longcontext, heal, attacks, restarts, "
            "interrupts, churn, opening, moves, placement, discovery, kv, quant, prefix, start, soak or first-day."
        ),
    ],
    tokens: Annotated[
        int, typer.Option(help="Tokens to decode, or of each of kv's passages (512 at least).", min=8, max=2048)
    ] = 256,
    runs: Annotated[
        int | None,
        typer.Option(
            help="Runs of heal (200) or moves (100), rounds of restarts (3), churn or opening (5), moments of interrupts "
            "(100), pairs of engine, decode or batch (5), prompts of prefix (5), passages of kv (8), starts (10).",
            min=1,
            max=10_000,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of what chance decides in heal, interrupts, churn, opening, moves and soak.", min=0)
    ] = 1,
    write: Annotated[
        Path | None,
        typer.Option(help="Where families or first-day writes its page: docs/families.md, docs/guides/first-day.md."),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="The GGUF file that engine measures.", show_default="SmolLM2-135M", exists=True)
    ] = None,
    calls: Annotated[int, typer.Option(help="Calls of soak.", min=1, max=1_000_000)] = 2000,
    threads: Annotated[int, typer.Option(help="Threads from which soak calls.", min=1, max=256)] = 6,
    only: Annotated[
        str | None, typer.Option(help="Those of attacks, or of quant's methods, whose names have this in them.")
    ] = None,
    bits: Annotated[str, typer.Option(help="Targets of quant, in bits per weight.")] = "2.5,3,3.5,4,5",
    rows: Annotated[int, typer.Option(help="Rows of 512 tokens that quant judges with.", min=1, max=48)] = 40,
    calibration_rows: Annotated[int, typer.Option(help="Rows that quant calibrates with.", min=1, max=128)] = 32,
    folder: Annotated[
        Path | None, typer.Option(help="Where quant keeps what is done, so that it can go on there.")
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="The `model_type` that families measures.", show_default="every family")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure one claim against a peer or a limit, in this run and on this machine."""
    from bench.registry import BENCHES, Size
    from shoal.errors import UsageError

    if name not in BENCHES:
        raise UsageError(f"there is no bench {name!r}: choose one of {', '.join(BENCHES)}")
    waits_for(f"measuring {name}")
    quant = (bits, rows, calibration_rows, folder)
    result = BENCHES[name](Size(tokens, runs, seed, write, model, family, calls, threads, only, *quant))
    if as_json:
        print_json(result)
        return
    for key, value in result.items():
        if isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
            _show_table(key, value)
            continue
        say(f"{key:18} {value:.3f}" if isinstance(value, float) else f"{key:18} {value}")


def _show_table(title: str, rows: dict[str, dict[str, Any]]) -> None:
    """One row for each case; cases may have measured different things."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    cells = ((name, *(_number(row.get(column, "")) for column in columns)) for name, row in rows.items())
    say_table((title, *columns), cells)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def make_app() -> typer.Typer:
    """The command with its options."""
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(bench)
    return app


if __name__ == "__main__":
    run_command(make_app())
