"""Sampling options as commands take them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

MaxTokens = Annotated[int, typer.Option(help="The longest reply.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
TopK = Annotated[int, typer.Option(help="Only the k most likely tokens; 0: all.")]
TopP = Annotated[float, typer.Option(help="Only the most likely tokens that together have this probability.")]
MinP = Annotated[float, typer.Option(help="Only tokens at least this likely, relative to the most likely.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1 makes repeated tokens less likely.")]
Seed = Annotated[int | None, typer.Option(help="The same seed draws the same reply.")]
Stop = Annotated[list[str] | None, typer.Option(help="End the reply before this text; may be repeated.")]


def sampling(**options: Any) -> dict[str, Any]:
    """Keyword arguments for SamplingParams."""
    return {**options, "stop": tuple(options.get("stop") or ())}
