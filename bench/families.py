"""The table of families in docs/families.md: what was measured, and what has to hold."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.report import commit, hardware

PAGE = Path("docs/families.md")
HEAD = """# Families

Model families that are certified against transformers on tiny random checkpoints that it wrote.
`python -m bench families --write docs/families.md` wrote this page from what it measured, as
`tests/parity/test_families.py` measures it. A test there checks that this page says what ran.

- *any mistake shows*: a case that says too little is refused, and nothing is certified with it. Its most likely next
  tokens differ (32 at least of 150, and of the 128 below) and are not its input once more. Each number that the
  arithmetic reads (epsilons, scales, caps, windows, ropes, experts, …) is changed, and each weight is moved by a row.
  Every such change moves logits by 2e-4 or more, twice the tolerance of the next column.
- *logits within 1e-4*: the largest difference of any two logits over 150 positions (three pages), fp32, in every
  variant. Rounding makes some 1e-5 of it.
- *128 greedy tokens*: one by one after that prompt, equal to those of transformers' `generate`.
- *any split, same bits*: cut before any block, or before each, prefill and decode give the same bits.
- *row-exact*: chunks of seven sizes beside another session, and logits in pieces, give the same bits.
- *on compiled kernels*: the same logits within 1e-4 from the fastest blocks there are. These are compiled blocks, or
  compiled linear layers where the kernels do not know something.
- *from GGUF*: a file that this project's tests write gives the same logits within 2e-5, in every variant that a file
  can say. "no": its files are not read.
- *from llama.cpp's own files*: files that its converter wrote hold each number of the checkpoint, and give
  transformers' logits within 1e-4. "own writer only": there is no such file, and an error on both sides would be seen
  by nothing.
- *weights in 8 bits*, *in 4 bits*: matrices rounded (`--quantize`) move the next token's distribution by at most 0.01
  and 0.25 nats on average, compared with fp32. Random weights have nothing to spare: real models lose less.
- *rows as bf16*, *as fp16*: rounded between all blocks, no row's next-token distribution moves by more than 1e-3 nats
  from that of fp32. Only then a server offers the codec. It is "refused" where that is not so, or where it is not safe.
  A rounded row may go to another expert, and rows of real Gemmas leave fp16's range.

"""
TAIL = """
Each family is known by its `model_type` in transformers' config.json. A field that a file leaves out is what
transformers takes for that family: `tests/unit/model/families/test_defaults.py` takes away each field of each family's
configuration, and of its GGUF files. Options of a family that are not certified are refused by name.

Weights are read as floats from safetensors, and in MXFP4 (gpt-oss) and FP8 with a scale for each block (DeepSeek V3).
From GGUF they are read in the types that the `gguf` package dequantizes. Files of llama.cpp's quantizer hold it to
that, number by number: Q2_K to Q6_K, Q4_0 to Q8_0, IQ3_S, IQ4_NL, IQ4_XS and MXFP4. Other ways of packing (GPTQ, AWQ)
are refused.

`tests/foreign` has the files of llama.cpp, and the script that makes them anew with its version. The logits that
llama.cpp itself computes of them are there too (`tests/parity/test_foreign_gguf.py`). They are the same within 5e-5,
and within 3e-2 where llama.cpp looks GELU up in a table of fp16. It computes three things otherwise than transformers:
it leaves out Phi 3's window, it rounds where gpt-oss' rope begins to be stretched, and it ranks the groups of DeepSeek
V2's experts as V3's. This project does as transformers does.

Two real checkpoints go through three servers beside transformers: SmolLM2-135M (Q4_1) and Gemma-3-270m (Q4_K_M, beyond
its window; `make gemma`). How to add a family: [adding-a-family.md](adding-a-family.md).
"""

Measured = Mapping[str, Mapping[str, bool | None]]
"""By family and property whether it holds; None: no case of the family asks for it."""


def measure(family: str | None = None) -> dict[str, Any]:
    """Every property of every case, or of a family's: by family and property the worst number of its variants.

    Raises UsageError for a family that has no case, HollowCase for a case that says too little.
    """
    import torch

    from shoal.errors import UsageError
    from tests.support.certify import PROPERTIES, load
    from tests.support.family_cases import CASES, save_checkpoint

    cases = [case for case in CASES if family in (None, case.model_type)]
    if not cases:
        known = ", ".join(dict.fromkeys(case.model_type for case in CASES))
        raise UsageError(f"there is no family {family!r}: choose one of {known}")
    torch.set_num_threads(1)  # the models are tiny: others would only wait for work
    worst: dict[str, dict[str, float]] = {}
    for case in cases:
        numbers = worst.setdefault(case.model_type, {})
        with tempfile.TemporaryDirectory() as folder:
            loaded = load(save_checkpoint(case, folder), case.granted)
            for one in PROPERTIES:
                value = one.measure(loaded, case)
                if value is not None:
                    numbers[one.name] = max(value, numbers.get(one.name, 0.0))
    return {"families": worst, "hardware": hardware(), "commit": commit()}


def verdicts(worst: Mapping[str, Mapping[str, float]]) -> Measured:
    """What holds of each family: below the limit, and offered if it is a codec."""
    from shoal.model.families import FAMILIES
    from tests.support.certify import CODECS, PROPERTIES

    return {
        family: {
            one.name: None
            if one.name not in numbers
            else numbers[one.name] <= one.limit and (one.name not in CODECS or one.name in FAMILIES[family].row_codecs)
            for one in PROPERTIES
        }
        for family, numbers in worst.items()
    }


def page(measured: Measured) -> str:
    """The page for what was measured."""
    from shoal.model.families import FAMILIES
    from tests.support.certify import CODECS, PROPERTIES
    from tests.support.family_cases import CASES

    lines = [
        f"| family | `model_type` | {' | '.join(one.title for one in PROPERTIES)} | variants |",
        f"|--|--|{'--|' * len(PROPERTIES)}--|",
    ]
    unasked = {"gguf": "no", "foreign": "own writer only"}
    for family, held in measured.items():
        no = {
            one.name: "refused" if one.name in CODECS else unasked[one.name] if held[one.name] is None else "FAILS"
            for one in PROPERTIES
        }
        cells = ["yes" if held[one.name] else no[one.name] for one in PROPERTIES]
        names = "; ".join(case.name for case in CASES if case.model_type == family and case.name)
        lines.append(f"| {FAMILIES[family].title} | `{family}` | {' | '.join(cells)} | {names} |")
    return HEAD + "\n".join(lines) + "\n" + TAIL


def run(write: Path | None = None, family: str | None = None) -> dict[str, Any]:
    """`python -m bench families`, of one family or of all; with `write` the page as well. Raises UsageError."""
    from shoal.errors import UsageError

    if write is not None and family is not None:
        raise UsageError("the page has all families: it is not written from one")
    result = measure(family)
    if write is not None:
        write.write_text(page(verdicts(result["families"])))
    families = {
        name: " ".join(f"{key} {value:.1e}" for key, value in row.items()) for name, row in result["families"].items()
    }
    return {"name": "families", **families, "hardware": result["hardware"], "commit": result["commit"]}
