"""What a configuration's fields may hold. Configurations come from strangers: everything is bounded before it is used."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from shoal.errors import CheckpointError, UnsupportedModel
from shoal.model.nn.layers import ACTIVATIONS
from shoal.model.nn.rope import KINDS, RopeConfig

MAX_SIZE = 1 << 20
MAX_BLOCKS = 1 << 12
MAX_EXPERTS = 1 << 12
MAX_POSITIONS = 1 << 24  # beyond that a position is no longer exact in fp32

Config = Mapping[str, Any]


def integer(config: Config, key: str, default: int | None = None, most: int = MAX_SIZE, least: int = 1) -> int:
    """An integer of a configuration; raises CheckpointError when it is missing or cannot be."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise CheckpointError(f"the configuration's {key} is {value!r}, not an integer from {least} to {most}")
    return value


def number(config: Config, key: str, default: float | None = None) -> float:
    """A positive finite number of a configuration; raises CheckpointError when it cannot be."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e12:
        raise CheckpointError(f"the configuration's {key} is {value!r}, not a positive number")
    return float(value)


def optional_number(config: Config, key: str) -> float:
    """The same where nothing means 0, which is off."""
    return 0.0 if config.get(key) in (None, 0, 0.0) else number(config, key, 0.0)


def flag(config: Config, key: str, default: bool = False) -> bool:
    """A truth value of a configuration; raises CheckpointError when it is none."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise CheckpointError(f"the configuration's {key} is {value!r}, not true or false")
    return value


def token_ids(value: object) -> tuple[int, ...]:
    """An id or a list of ids, as configurations have them."""
    ids = value if isinstance(value, list) else [value]
    return tuple(one for one in ids if isinstance(one, int) and not isinstance(one, bool) and one >= 0)


def activation(config: Config, key: str = "hidden_act") -> str:
    """The MLP's activation; raises UnsupportedModel for one that is not known."""
    value = config.get(key)
    if not isinstance(value, str) or value not in ACTIVATIONS:
        raise UnsupportedModel(f"activation {value!r} is not supported (these are: {', '.join(ACTIVATIONS)})")
    return value


def refuse(config: Config, key: str, *harmless: object) -> None:
    """Raise UnsupportedModel when an option is set to anything else than these values (or left out)."""
    value = config.get(key)
    if value is not None and value not in harmless:
        raise UnsupportedModel(f"{key} = {value!r} is not supported")


def layer_types(config: Config, num_blocks: int, kinds: Sequence[str], default: Sequence[str]) -> tuple[str, ...]:
    """The kind of each block, from `layer_types`. Raises UnsupportedModel for a kind that is not known."""
    given = config.get("layer_types")
    given = list(default) if given is None else given
    if not isinstance(given, list | tuple) or len(given) != num_blocks:
        raise CheckpointError(f"the configuration's layer_types are not one for each of {num_blocks} blocks")
    for one in given:
        if one not in kinds:
            raise UnsupportedModel(f"blocks of type {one!r} are not supported (these are: {', '.join(kinds)})")
    return tuple(given)


NEEDED: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}
"""What a stretched rotary embedding cannot do without."""


def rope(config: Config, head_dim: int, given: object = None) -> RopeConfig:
    """The rotary embedding, from `rope_parameters` (newer files) or `rope_theta` and `rope_scaling`, or from `given`.

    Raises UnsupportedModel for a kind that is not known, CheckpointError for numbers that cannot be.
    """
    outside = config.get("original_max_position_embeddings") if given is None else None
    given = given or config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(given, Mapping):
        raise CheckpointError(f"the configuration's rope_scaling is {given!r}, not a mapping")
    kind = given.get("rope_type") or given.get("type") or "default"
    kind = "longrope" if kind == "su" else kind  # its first name
    if kind not in KINDS:
        raise UnsupportedModel(f"rope scaling {kind!r} is not supported (these are: {', '.join(KINDS)})")
    if outside is not None:
        given = {**given, "original_max_position_embeddings": outside}
    for key in NEEDED[kind]:
        if key not in given:
            raise CheckpointError(f"the configuration's rope scaling {kind!r} has no {key}")
    low, high = number(given, "low_freq_factor", 1.0), number(given, "high_freq_factor", 4.0)
    if not low < high:
        raise CheckpointError(f"the configuration's low_freq_factor {low} is not below its high_freq_factor {high}")
    theta = number(given, "rope_theta", number(config, "rope_theta", 10_000.0))
    most = integer(config, "max_position_embeddings", 8192, MAX_POSITIONS)
    pairs = rotary_dim(config, head_dim) // 2
    if kind == "longrope":
        return _longrope(config, given, theta, pairs, most)
    if kind in ("yarn", "llama3"):
        original = integer(given, "original_max_position_embeddings", most, MAX_POSITIONS)
    else:
        original = most if kind == "dynamic" else RopeConfig().original_max_positions
    factor = number(given, "factor", most / original if kind == "yarn" else 1.0)
    if kind in ("yarn", "dynamic") and (theta <= 1 or pairs < 2):
        raise CheckpointError(
            f"rope scaling {kind!r} needs a base above 1 and more than one pair, not {theta} and {pairs}"
        )
    return RopeConfig(
        theta=theta,
        kind=kind,
        factor=factor,
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_positions=original,
        factors=_factors(given.get("factors"), pairs),
        beta_fast=number(given, "beta_fast", 32.0),
        beta_slow=number(given, "beta_slow", 1.0),
        truncate=flag(given, "truncate", True),
        attention_factor=_yarn_attention(given, factor) if kind == "yarn" else 1.0,
    )


def _yarn_attention(given: Config, factor: float) -> float:
    """By how much cosine and sine grow: as given, or from the factor's logarithm (arXiv:2309.00071, equation 22)."""
    if given.get("attention_factor") is not None:
        return number(given, "attention_factor", 1.0)
    scale, all_dim = optional_number(given, "mscale"), optional_number(given, "mscale_all_dim")
    return yarn_scale(factor, scale) / yarn_scale(factor, all_dim) if scale and all_dim else yarn_scale(factor)


def yarn_scale(factor: float, scale: float = 1.0) -> float:
    """0.1 · scale · ln(factor) + 1."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _longrope(config: Config, given: Config, theta: float, pairs: int, most: int) -> RopeConfig:
    original = integer(given, "original_max_position_embeddings", most, MAX_POSITIONS)
    factor = number(given, "factor", max(1.0, most / original))
    grown = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
    short, long = _factors(given.get("short_factor"), pairs), _factors(given.get("long_factor"), pairs)
    if not short or not long:
        raise CheckpointError("the configuration's longrope has no short_factor and long_factor")
    return RopeConfig(
        theta=theta,
        kind="longrope",
        factor=factor,
        original_max_positions=original,
        factors=short,
        long_factors=long,
        attention_factor=number(given, "attention_factor", grown),
    )


def rotary_dim(config: Config, head_dim: int) -> int:
    """How many leading dimensions of a head turn, from `partial_rotary_factor`; raises CheckpointError for an odd number."""
    given = config.get("rope_scaling") or config.get("rope_parameters")
    given = given if isinstance(given, Mapping) else {}
    share = number(given, "partial_rotary_factor", number(config, "partial_rotary_factor", 1.0))
    dim = int(head_dim * share)
    if share > 1 or dim % 2:
        raise CheckpointError(f"a partial_rotary_factor of {share} makes {dim} of {head_dim} dimensions turn")
    return dim


def _factors(value: object, pairs: int) -> tuple[float, ...]:
    if not value:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != pairs:
        raise CheckpointError(f"the configuration's rope factors are not {pairs} numbers")
    return tuple(number({"rope factor": factor}, "rope factor", 1.0) for factor in value)
