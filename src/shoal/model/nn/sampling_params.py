"""How tokens are chosen and when a reply stops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from shoal.errors import UsageError
from shoal.options import Options, option

MIN_PENALTY = 1e-3
"""The least repetition penalty: a smaller one could turn a finite logit into an infinite one."""

MAX_TEMPERATURE = 1000.0
MAX_PENALTY = 1000.0
MAX_SEED = (1 << 64) - 1


def _texts(given: str | Sequence[str] | None) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given or ())


class SamplingParams(Options, frozen=True, kw_only=True):
    """How to choose tokens and when to stop. `seed` None draws a fresh one for each reply.

    Raises UsageError for a value that makes no sense.
    """

    max_tokens: Annotated[int, option("The longest reply, in tokens.", "Reply", least=1)] = 256
    temperature: Annotated[float, option("0 is greedy.", "Reply", least=0, most=MAX_TEMPERATURE)] = 0.0
    top_k: Annotated[int, option("Only the k most likely tokens; 0: all.", "Reply", least=0)] = 0
    top_p: Annotated[
        float, option("Only the most likely tokens that together have this probability.", "Reply", above=0, most=1)
    ] = 1.0
    min_p: Annotated[
        float, option("Only tokens at least this likely, relative to the most likely.", "Reply", least=0, most=1)
    ] = 0.0
    repetition_penalty: Annotated[
        float, option("Above 1 makes repeated tokens less likely.", "Reply", least=MIN_PENALTY, most=MAX_PENALTY)
    ] = 1.0
    seed: Annotated[int | None, option("The same seed draws the same reply.", "Reply", least=0, most=MAX_SEED)] = None
    stop: Annotated[
        tuple[str, ...],
        option("End the reply before this text; may be repeated.", "Reply", parse=_texts, repeated=True),
    ] = ()
    ignore_eos: Annotated[bool, option("Go on after the end of the model's turn.", "Reply", shown=False)] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(isinstance(text, str) and text for text in self.stop):
            raise UsageError(f"stop cannot be {self.stop!r}: it is a text or several, none of them empty", field="stop")
