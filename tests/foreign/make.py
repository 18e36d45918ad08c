"""Writes the files of this folder with llama.cpp's own programs.

    PYTHONPATH=$SOURCES/vendor/llama.cpp/gguf-py python -m tests.foreign.make $SOURCES

SOURCES is the unpacked source distribution of llama-cpp-python, which holds llama.cpp's converter; the package itself has to be
installed too, for the quantizer and for the logits that llama.cpp computes. Nothing of it is needed to read the files or to
run the tests. `written_by.json` says which versions wrote the files that are there. The converter's vocabulary part is left
out.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from tests.foreign.cases import FILES, FOREIGN, QUANTIZED, TOKENS, WIDE, path_of, save_original
from tests.support.certify import prompt
from tests.support.family_cases import Case
from tests.support.tiny_models import tiny_tokenizer


def convert(case: Case, path: Path, kind: str) -> None:
    """A case's checkpoint as a GGUF file in "MOSTLY_F16" or "ALL_F32"."""
    import gguf
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    with tempfile.TemporaryDirectory() as folder:
        directory = save_original(case, folder)
        tiny_tokenizer(directory, case.fields["vocab_size"])  # a converter counts its tokens
        architecture = get_model_architecture(ModelBase.load_hparams(directory, False), ModelType.TEXT)
        converter = get_model_class(architecture)(directory, gguf.LlamaFileType[kind], path, model_name="tiny")
        converter.set_vocab = functools.partial(_no_vocabulary, converter, case.fields["vocab_size"])
        converter.write()


def _no_vocabulary(converter: Any, size: int) -> None:
    """In the place of the converter's vocabulary: none, whose size llama.cpp cannot do without."""
    converter._set_vocab_none()
    converter.gguf_writer.add_vocab_size(size)


def computed(path: Path, vocab_size: int) -> torch.Tensor:
    """The logits [TOKENS, vocab] of the prompt that llama.cpp computes, with keys and values in fp32."""
    import llama_cpp as lib

    model_options, options = lib.llama_model_default_params(), lib.llama_context_default_params()
    model_options.n_gpu_layers, model_options.use_mmap = 0, False
    options.n_ctx, options.n_batch, options.n_ubatch, options.n_threads = 64, 64, 64, 1
    options.type_k = options.type_v = 0
    options.flash_attn_type = 0
    model = lib.llama_model_load_from_file(str(path).encode(), model_options)
    if not model:
        raise RuntimeError(f"llama.cpp cannot load {path.name}")
    context = lib.llama_init_from_model(model, options)
    ids = prompt(vocab_size)[:TOKENS]
    batch = lib.llama_batch_init(TOKENS, 0, 1)
    for index, token in enumerate(ids):
        batch.token[index], batch.pos[index], batch.n_seq_id[index] = token, index, 1
        batch.seq_id[index][0], batch.logits[index] = 0, 1
    batch.n_tokens = TOKENS
    if lib.llama_decode(context, batch):
        raise RuntimeError(f"llama.cpp cannot compute {path.name}")
    rows = [np.ctypeslib.as_array(lib.llama_get_logits_ith(context, index), (vocab_size,)) for index in range(TOKENS)]
    logits = torch.from_numpy(np.stack(rows).copy())
    lib.llama_batch_free(batch)
    lib.llama_free(context)
    lib.llama_model_free(model)
    return logits


def quantize(source: Path, path: Path, types: Mapping[str, str]) -> None:
    """A GGUF file with matrices of these types by llama.cpp's quantizer; without types all become fp32."""
    import gguf
    import llama_cpp as lib

    named = [(f"{name}\\.weight".encode(), gguf.GGMLQuantizationType[kind]) for name, kind in types.items()]
    overrides = (lib.llama_model_tensor_override * (len(named) + 1))(*named)
    options = lib.llama_model_quantize_default_params()
    options.nthread, options.allow_requantize = 1, True
    options.ftype = lib.LLAMA_FTYPE_MOSTLY_Q8_0 if types else lib.LLAMA_FTYPE_ALL_F32
    options.tt_overrides = ctypes.cast(overrides, type(options.tt_overrides)) if types else None
    if types:
        options.token_embedding_type = gguf.GGMLQuantizationType[types["token_embd"]]
    if lib.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(options)):
        raise RuntimeError(f"llama.cpp cannot write {path.name}")


def digests(quantized: Path, floats: Path) -> dict[str, tuple[str, str]]:
    """By tensor its type in one file, and a digest over the numbers that the other has in fp32."""
    import gguf

    kinds = {one.name: one.tensor_type.name for one in gguf.GGUFReader(quantized).tensors}
    found = {}
    for one in gguf.GGUFReader(floats).tensors:
        numbers: NDArray[Any] = np.ascontiguousarray(one.data, np.float32)
        found[one.name] = kinds[one.name], hashlib.blake2b(numbers.tobytes(), digest_size=16).hexdigest()
    return found


def main(sources: Path) -> None:
    """Write every file."""
    root = sources / "vendor" / "llama.cpp"
    sys.path.append(str(root))  # behind this project, which has tests too
    import gguf
    import llama_cpp as lib

    if not Path(gguf.__file__).is_relative_to(root):
        raise SystemExit(f"the gguf package is {gguf.__file__}, not the converter's own: see PYTHONPATH above")

    FILES.mkdir(exist_ok=True)
    logits, quantized = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        floats = Path(folder) / "floats.gguf"
        for case in FOREIGN:
            convert(case, path_of(case), "MOSTLY_F16")
            convert(case, floats, "ALL_F32")
            logits[path_of(case).stem] = computed(floats, case.fields["vocab_size"])
        wide = Path(folder) / "wide.gguf"
        convert(WIDE, wide, "ALL_F32")
        for name, types in QUANTIZED.items():
            path = FILES / f"{name}.gguf"
            quantize(wide, path, types)
            quantize(path, floats, {})
            quantized[name] = digests(path, floats)
            logits[name] = computed(floats, WIDE.fields["vocab_size"])
    save_file(logits, FILES / "logits.safetensors")
    (FILES / "quantized.json").write_text(json.dumps(quantized, indent=1) + "\n")
    versions = {"llama-cpp-python": lib.__version__, "llama.cpp": _commit(sources)}
    (FILES / "written_by.json").write_text(json.dumps(versions, indent=1) + "\n")


def _commit(sources: Path) -> str:
    """The version of llama.cpp in these sources, from their list of changes."""
    for line in (sources / "CHANGELOG.md").read_text().splitlines():
        if "llama.cpp@" in line:
            return line.rpartition("@")[2].strip()
    return "unknown"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
