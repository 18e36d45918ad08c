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
            help="Which one: engine, decode, families, hops, batch, longcontext, heal, attacks, churn, opening, moves, "
            "placement, discovery, kv, prefix or start."
        ),
    ],
    tokens: Annotated[
        int, typer.Option(help="Tokens to decode, or of kv's text (512 at least).", min=8, max=2048)
    ] = 256,
    runs: Annotated[
        int | None,
        typer.Option(
            help="Runs of heal (200) or moves (100), rounds of churn or opening (5), pairs of engine, decode or batch (5), "
            "prompts of prefix (5), starts (10).",
            min=1,
            max=10_000,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what chance decides in heal, churn, opening and moves.", min=0)] = 1,
    write: Annotated[Path | None, typer.Option(help="Where families writes its page: docs/families.md.")] = None,
    model: Annotated[
        Path | None, typer.Option(help="The GGUF file that engine measures.", show_default="SmolLM2-135M", exists=True)
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
    result = BENCHES[name](Size(tokens, runs, seed, write, model, family))
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
