"""Tokenizers beside a checkpoint: what ends a text, what a conversation becomes, and what is missing or damaged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers

from shoal.errors import CheckpointError, ModelNotFound, UsageError
from shoal.model.weights import tokenizer_cache
from shoal.model.weights.model_source import demo_model_path, open_checkpoint
from shoal.model.weights.tokenizer import Tokenizer, load_tokenizer
from shoal.model.weights.tokenizer_cache import TokenizerCache
from tests.support.tiny_models import tiny_llama, tiny_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}{{ message.role }}:{{ message.content }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny model with a tokenizer of all bytes."""
    tiny_llama(tmp_path / "tiny", vocab_size=258)
    return tiny_tokenizer(tmp_path / "tiny", 258)


def edit(path: Path, **changes: object) -> None:
    """Change fields of a JSON file, or make it; None takes a field away."""
    held = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({key: value for key, value in {**held, **changes}.items() if value is not None}))


def opened(model: Path) -> Tokenizer:
    """The tokenizer of a directory."""
    return load_tokenizer(open_checkpoint(str(model)))


@pytest.mark.parametrize("text", ["sea", "", " two  spaces . ", "Grüße, 世界 🌊"])
def test_text_comes_back(model: Path, text: str) -> None:
    """Every text survives, spaces before full stops too; special tokens are left out."""
    tokenizer = opened(model)
    tokens = tokenizer.encode(text)
    assert len(tokens) == len(text.encode())
    assert tokenizer.decode([0, *tokens, 1]) == text


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        (5, None, {1, 5}),
        ([5, 6], None, {1, 5, 6}),
        (None, 7, {1, 7}),
        (5, [7, 9], {1, 5, 7, 9}),
        (None, None, {1}),
        (5, ["</s>", None, 9.0], {1, 5}),
        (5, {"id": 3}, {1, 5}),
        (5, "none", {1, 5}),
        (5, False, {1, 5}),
    ],
)
def test_end_tokens_come_from_everywhere(model: Path, config: object, generation: object, expected: set[int]) -> None:
    """config.json, generation_config.json and the tokenizer each name some or none; what is no token id is ignored."""
    edit(model / "config.json", eos_token_id=config)
    (model / "generation_config.json").unlink()
    if generation is not None:
        edit(model / "generation_config.json", eos_token_id=generation)
    assert opened(model).eos_token_ids == expected


def test_where_nothing_names_an_end_token_the_familys_counts(model: Path) -> None:
    """As transformers takes it: files leave out what is at its class's default."""
    edit(model / "config.json", eos_token_id=None)
    edit(model / "tokenizer_config.json", eos_token=None)
    (model / "generation_config.json").unlink()
    assert opened(model).eos_token_ids == {2}


def test_a_damaged_generation_config_is_named(model: Path) -> None:
    """Stopping at the wrong token would be worse than an error."""
    (model / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"generation_config\.json is not JSON"):
        opened(model)


def test_a_model_without_a_chat_template_says_so(model: Path) -> None:
    """Chatting needs one; plain text does not."""
    tokenizer = opened(model)
    assert not tokenizer.has_chat_template
    with pytest.raises(UsageError, match="chat template"):
        tokenizer.encode_chat([{"role": "user", "content": "hi"}])


def test_a_conversation_in_the_models_template(model: Path) -> None:
    """Up to where the assistant speaks, with the special tokens of the template alone."""
    edit(model / "tokenizer_config.json", chat_template=TEMPLATE)
    tokenizer = opened(model)
    assert tokenizer.has_chat_template
    said = tokenizer.encode_chat([{"role": "user", "content": "hi"}])
    assert said == [0, *tokenizer.encode("user:hiassistant:")]


@pytest.mark.parametrize(("template", "role"), [(TEMPLATE, "system"), ("{{ 1 + 'a' }}", "user"), ("{% if %}", "user")])
def test_a_template_that_refuses_is_a_mistake(model: Path, template: str, role: str) -> None:
    """Roles that a template rejects, and templates that are broken, are told apart from a fault of ours."""
    edit(model / "tokenizer_config.json", chat_template=template)
    with pytest.raises(UsageError, match="template refuses"):
        opened(model).encode_chat([{"role": role, "content": "hi"}])


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    """Weights alone are not enough for a client."""
    tiny_llama(tmp_path / "bare")
    with pytest.raises(ModelNotFound, match=r"no tokenizer can be loaded for .*bare"):
        opened(tmp_path / "bare")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model": {"type": "BPE"}}', "\0"])
def test_a_damaged_tokenizer_is_named(model: Path, text: str) -> None:
    """Whatever transformers stumbles over."""
    (model / "tokenizer.json").write_text(text)
    with pytest.raises(ModelNotFound, match=r"no tokenizer can be loaded for .*tiny"):
        opened(model)


def test_code_of_a_repository_is_not_run(model: Path) -> None:
    """A tokenizer that brings its own class neither runs nor asks whether it may."""
    ran = model / "ran"
    (model / "mine.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    edit(model / "tokenizer_config.json", tokenizer_class="Mine", auto_map={"AutoTokenizer": ["mine.Mine", None]})
    try:
        assert opened(model).decode([]) == ""
    except ModelNotFound as error:
        assert "no tokenizer" in str(error)
    assert not ran.exists()


def test_the_tokenizer_inside_a_gguf_file() -> None:
    """SmolLM2's file holds tokenizer, chat template and end token."""
    try:
        path = demo_model_path()
    except ModelNotFound:
        pytest.skip("the demo's model is not installed")
    tokenizer = opened(path)
    assert tokenizer.decode(tokenizer.encode("A shoal of fish.")) == "A shoal of fish."
    assert tokenizer.eos_token_ids == {0, 2}  # <|endoftext|> ends a text too, though the file names <|im_end|> alone
    tokens = tokenizer.encode_chat([{"role": "user", "content": "hi"}])
    assert tokens[-3:] == tokenizer.encode_chat([{"role": "user", "content": "you"}])[-3:]


def test_a_special_token_is_known_by_its_text(model: Path) -> None:
    """One text for one token: no part of it, nothing around it, and no token that text is decoded from."""
    tokenizer = opened(model)
    assert tokenizer.special_token("</s>") == 1
    assert [tokenizer.special_token(text) for text in ("", "a", "</s", "</s>\n", "</s></s>")] == [None] * 5


TEXTS = [
    "",
    "The sea is salty.",
    " two  spaces , and a full stop .",
    "don't  we 'll\n\n\tsee",
    "Grüße, 世界 🌊👩‍👩‍👧 ﬁ",
    "\udc80".encode("utf-8", "surrogatepass").decode("utf-8", "replace"),
    "<s>special</s> <|im_start|> tokens",
    "a" * 1000,
]
"""Words, spaces, emoji, bytes, special tokens in a text."""


def by_transformers(path: Path) -> object:
    """transformers' own tokenizer of a directory or a GGUF file."""
    from transformers import AutoTokenizer

    if path.suffix == ".gguf":
        return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    return AutoTokenizer.from_pretrained(str(path))


def sentencepiece_like(folder: Path) -> Path:
    """A model whose tokenizer marks spaces, falls back to bytes and puts a token at the beginning, as Llama 2's does."""
    tiny_llama(folder, vocab_size=300)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "s", "e", "a", "t", "▁s", "se"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    bpe = tokenizers.models.BPE(
        vocabulary, [("▁", "s"), ("s", "e")], unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    backend = tokenizers.Tokenizer(bpe)
    backend.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    backend.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": True,
        "model_max_length": 50,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(params=["bytes", "sentencepiece", "gguf"])
def path(request: pytest.FixtureRequest, model: Path, tmp_path: Path) -> Path:
    """Models with tokenizers of several kinds."""
    if request.param == "bytes":
        return model
    if request.param == "sentencepiece":
        return sentencepiece_like(tmp_path / "pieces")
    try:
        return demo_model_path()
    except ModelNotFound:
        pytest.skip("the demo's model is not installed")


def test_token_ids_and_texts_are_those_of_transformers(path: Path, tmp_path: Path) -> None:
    """Converted just now and read from the cache, in both directions; any tokens decode to the same text."""
    reference = by_transformers(path)
    cache = TokenizerCache(tmp_path / "cache")
    talk = [{"role": "user", "content": "Grüße 🌊"}]
    for _ in range(2):
        tokenizer = load_tokenizer(open_checkpoint(str(path)), cache)
        if tokenizer.has_chat_template:
            said = reference.apply_chat_template(talk, add_generation_prompt=True)  # type: ignore[attr-defined]
            assert tokenizer.encode_chat(talk) == said["input_ids"]
        for text in TEXTS:
            token_ids = reference(text)["input_ids"]  # type: ignore[operator]
            assert tokenizer.encode(text) == token_ids
            for some in (token_ids, token_ids[1:], token_ids[:-1], token_ids[::-1], [*range(40), *token_ids]):
                expected = reference.decode(  # type: ignore[attr-defined]
                    some, skip_special_tokens=True, clean_up_tokenization_spaces=False
                )
                assert tokenizer.decode(some) == expected


def test_the_second_start_needs_no_transformers(path: Path, tmp_path: Path) -> None:
    """What was converted once is read by a process that never imports it."""
    cache = tmp_path / "cache"
    load_tokenizer(open_checkpoint(str(path)), TokenizerCache(cache))
    program = (
        "import sys; from pathlib import Path; from shoal.model.weights.model_source import open_checkpoint\n"
        "from shoal.model.weights.tokenizer import load_tokenizer, TokenizerCache\n"
        f"load_tokenizer(open_checkpoint({str(path)!r}), TokenizerCache(Path({str(cache)!r}))).encode('sea')\n"
        "assert 'transformers' not in sys.modules and 'huggingface_hub' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_changed_file_is_converted_again(model: Path, tmp_path: Path) -> None:
    """The cache goes by content: a template that was added since is there."""
    cache = TokenizerCache(tmp_path / "cache")
    assert not load_tokenizer(open_checkpoint(str(model)), cache).has_chat_template
    (model / "chat_template.jinja").write_text(TEMPLATE)
    assert load_tokenizer(open_checkpoint(str(model)), cache).has_chat_template
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_cached_data_that_is_of_no_use_is_converted_again(model: Path, tmp_path: Path) -> None:
    """A file that is whole and in form, but whose tokenizer the library does not take."""
    cache = TokenizerCache(tmp_path / "cache")
    load_tokenizer(open_checkpoint(str(model)), cache)
    (file,) = (tmp_path / "cache").iterdir()
    fields = json.loads(file.read_bytes().partition(b"\n")[2])
    fields["tokenizer"] = {"version": "1.0"}
    body = json.dumps(fields).encode()
    file.write_bytes(tokenizer_cache._head(file, body) + b"\n" + body)
    tokenizer = load_tokenizer(open_checkpoint(str(model)), cache)
    assert tokenizer.decode(tokenizer.encode("sea")) == "sea"


def test_named_templates_without_a_default_are_named(model: Path) -> None:
    """None of them is picked by chance."""
    named = [{"name": "rag", "template": "x"}, {"name": "tool_use", "template": "y"}]
    edit(model / "tokenizer_config.json", chat_template=named)
    with pytest.raises(UsageError, match="no default chat template, only rag, tool_use"):
        opened(model).encode_chat([{"role": "user", "content": "hi"}])


def test_several_threads_load_at_once(model: Path, tmp_path: Path) -> None:
    """In a process that has not loaded transformers yet, as when three models are opened first thing."""
    program = (
        "import sys, threading; from pathlib import Path; from concurrent.futures import ThreadPoolExecutor\n"
        "from shoal.model.weights.model_source import open_checkpoint\n"
        "from shoal.model.weights.tokenizer import load_tokenizer, TokenizerCache\n"
        "barrier = threading.Barrier(4)\n"
        "def load(name):\n"
        "    barrier.wait()\n"
        f"    return load_tokenizer(open_checkpoint({str(model)!r}), TokenizerCache(Path({str(tmp_path)!r}) / name))\n"
        "with ThreadPoolExecutor(4) as pool:\n"
        "    assert len(list(pool.map(load, 'abcd'))) == 4\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)
