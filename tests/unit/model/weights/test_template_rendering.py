"""What the process of a chat template does; tests/unit/model/weights/test_chat_template.py has it as a whole."""

from __future__ import annotations

import io
import json

import pytest
from jinja2 import TemplateError

from shoal.model.weights import template_rendering
from shoal.model.weights.template_rendering import MAX_ERROR_CHARS, main, rendered


def test_a_text_of_a_bounded_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted while it is written."""
    monkeypatch.setattr(template_rendering, "MAX_RENDERED_CHARS", 10)
    template = "{% for _ in range(n) %}{{ 'x' }}{% endfor %}"
    assert rendered(template, {"n": 10}) == "x" * 10
    with pytest.raises(TemplateError, match="more than 10 characters"):
        rendered(template, {"n": 11})


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ('{"template": "{{ a }}", "fields": {"a": "\\ud800ü"}}', {"text": "\ud800ü"}),
        ('{"template": "{{ 1 // 0 }}", "fields": {}}', {"error": "integer division or modulo by zero"}),
        ('{"template": "{{ [][0].x }}", "fields": {}}', {"error": "list object has no element 0"}),
        ('{"fields": {}}', {"error": "'template'"}),
    ],
)
def test_an_answer_for_everything(
    asked: str, answer: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The text or the error, as JSON."""
    monkeypatch.setattr(template_rendering, "_bound", lambda: None)
    monkeypatch.setattr("sys.stdin", io.StringIO(asked))
    main()
    assert json.loads(capsys.readouterr().out) == answer


def test_an_error_of_a_bounded_length(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It is a stranger's text."""
    asked = {"template": "{{ raise_exception('x' * 9999) }}", "fields": {}}
    monkeypatch.setattr(template_rendering, "_bound", lambda: None)
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(asked)))
    main()
    assert json.loads(capsys.readouterr().out) == {"error": "x" * MAX_ERROR_CHARS}
