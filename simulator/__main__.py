"""`python -m simulator`: routing and placement under churn, on a virtual clock."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.output import AsJson, print_json, run_command
from shoal.cli.terminal import say, waits_for

if TYPE_CHECKING:
    from simulator.sim_metrics import Report


def simulate(
    servers: Annotated[int, typer.Option(help="Servers that are there on average.", min=1, max=4000)] = 1000,
    blocks: Annotated[int, typer.Option(help="Blocks of the model.", min=1, max=1000)] = 126,
    hours: Annotated[float, typer.Option(help="Simulated time.", min=0.01, max=1000)] = 12.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same run.")] = 0,
    redundancy: Annotated[
        float | None, typer.Option(help="Servers that serve a block, on average; sets the number of servers.", min=0.1)
    ] = None,
    fetch_ahead: Annotated[
        int,
        typer.Option(help="Blocks that each server has on its disk in time, in a swarm of up to 128 servers.", min=0),
    ] = 126,
    session_hours: Annotated[float, typer.Option(help="How long servers stay, on average.", min=0.1)] = 12.0,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the run into this .svg or .png file (needs matplotlib).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Simulate a swarm whose servers come and go, with the real placement and routing. Nothing is contacted."""
    import msgspec

    from simulator.churn_model import ChurnModel
    from simulator.swarm_simulator import Scenario, Simulator

    population = ChurnModel(mean_session_s=session_hours * 3600)
    scenario = Scenario(
        servers=servers,
        blocks=blocks,
        hours=hours,
        seed=seed,
        redundancy=redundancy,
        ahead=fetch_ahead,
        population=population,
    )
    waits_for(f"simulating {hours:g} hours of {servers} servers")
    report = Simulator(scenario).run()
    if plot is not None:
        draw(report, plot)
    if as_json:
        print_json(report)
        return
    for name, value in msgspec.to_builtins(report).items():
        if name != "history":
            say(f"{name:22} {value:.5g}")


def draw(report: Report, path: Path) -> None:
    """Weakest and median block over time, and the servers; raises UsageError without matplotlib or for other endings."""
    from shoal.errors import UsageError

    if path.suffix not in (".svg", ".png"):
        raise UsageError(f"--plot writes .svg or .png, not {path.name}")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("--plot needs matplotlib: pip install 'shoal[plot]'") from error
    hours, weakest, median, bound, servers = zip(*report.history, strict=True)
    figure = Figure(figsize=(8, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    above.plot(hours, bound, color="0.75", linewidth=1, label="bound")
    above.plot(hours, median, color="#7a9cc6", linewidth=1.2, label="median block")
    above.plot(hours, weakest, color="#1f4e79", linewidth=1.6, label="weakest block")
    above.set_ylabel("rows/s")
    above.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    below.plot(hours, servers, color="#1f4e79", linewidth=1.2)
    below.set_ylabel("servers")
    below.set_xlabel("hours")
    for axes in (above, below):
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def make_app() -> typer.Typer:
    """The command with its options."""
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(simulate)
    return app


if __name__ == "__main__":
    run_command(make_app())
