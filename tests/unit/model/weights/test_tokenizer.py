"""Tokenizers beside a checkpoint: what ends a text, what a conversation becomes, and what is missing or damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoal.errors import CheckpointError, ModelNotFound, UsageError
from shoal.model.weights.model_source import demo_model_path, open_checkpoint
from shoal.model.weights.tokenizer import Tokenizer, load_tokenizer
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
    assert tokenizer.eos_token_ids == {2}
    tokens = tokenizer.encode_chat([{"role": "user", "content": "hi"}])
    assert tokens[-3:] == tokenizer.encode_chat([{"role": "user", "content": "you"}])[-3:]
