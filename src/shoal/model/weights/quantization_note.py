"""What `shoal quantize` writes into a checkpoint that it makes: of which model it is, and how far from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from shoal.errors import CheckpointError
from shoal.types import MAX_KL_NATS

NOTE = "quantization.json"

ROUNDING = 0.01
"""A divergence that is measured can be a little below nothing."""

_FINGERPRINT = re.compile(r"[0-9a-f]{32}", re.ASCII)


class QuantizationNote(msgspec.Struct, frozen=True):
    """`base_fingerprint` names the checkpoint that this one was made from (empty: nothing is said). `kl_nats` is the KL
    divergence from it for a token, as it was measured then (None: it was not)."""

    base_fingerprint: str = ""
    kl_nats: float | None = None


NO_NOTE = QuantizationNote()


def note_of(config: Mapping[str, Any], report: Mapping[str, Any], where: str) -> QuantizationNote:
    """What a checkpoint's configuration and its `quantization.json` say; raises CheckpointError for what cannot be.

    Either has `base_fingerprint`; the report has `kl`, or the `divergence` of its `evaluation`.
    """
    entry = config.get("quantization_config")
    said = [part.get("base_fingerprint", "") for part in (entry, report) if isinstance(part, Mapping)]
    bases = list(dict.fromkeys(base for one in said if (base := _fingerprint(one, where))))
    if len(bases) > 1:
        raise CheckpointError(f"{where} has two bases, {' and '.join(bases)}: {NOTE} is of another checkpoint")
    evaluation = report.get("evaluation")
    judged = evaluation.get("divergence") if isinstance(evaluation, Mapping) else None
    return QuantizationNote("".join(bases), _nats(report.get("kl", judged), where))


def _fingerprint(given: Any, where: str) -> str:
    if not isinstance(given, str) or (given and not _FINGERPRINT.fullmatch(given)):
        raise CheckpointError(f"{where}: base_fingerprint is {str(given)[:80]!r}, not 32 hexadecimal digits")
    return given


def _nats(given: Any, where: str) -> float | None:
    if given is None:
        return None
    if not isinstance(given, int | float) or isinstance(given, bool) or not -ROUNDING <= given <= MAX_KL_NATS:
        raise CheckpointError(
            f"{where}: kl is {str(given)[:80]!r} in {NOTE}, not a number of nats from 0 to {MAX_KL_NATS}"
        )
    return max(0.0, float(given))
