"""Chat templates: rendered as transformers renders them, without importing it.

A template comes with a model and is a stranger's program: it runs in a process of its own, whose time, memory and output are
bounded; see `template_rendering`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from shoal.errors import UsageError
from shoal.model.weights.template_rendering import MAX_CPU_S, environment

Message = Mapping[str, str]

REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Names under which a message's reasoning is given. Templates read the first; gpt-oss's reads the second."""

MAX_TEMPLATE_CHARS = 1 << 20

MAX_WAIT_S = 60.0
"""For a rendering in all; the computing in it is bounded far below, where the system can."""

_PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from shoal.model.weights.template_rendering import main; main()"


class ChatTemplate:
    """A template with the special tokens that it writes. Raises UsageError for one that cannot be parsed."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        if len(source) > MAX_TEMPLATE_CHARS:
            raise UsageError(f"the model's chat template has {len(source)} characters, more than {MAX_TEMPLATE_CHARS}")
        self._special_tokens = dict(special_tokens)
        self._source = source
        try:
            environment().parse(source)  # parsed alone: even compiling computes what is constant
        except Exception as error:
            raise _refused(error) from error

    def render(self, messages: Sequence[Message]) -> str:
        """The text of a conversation up to where the assistant speaks; raises UsageError where the template refuses it."""
        if not messages:
            raise UsageError("a conversation needs at least one message")
        fields = {
            **self._special_tokens,
            "messages": [_with_reasoning(message) for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
        }
        try:
            asked = json.dumps({"template": self._source, "fields": fields})
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"a message cannot be given to the model's chat template: {error}") from error
        answer = _run(asked)
        if "text" not in answer:
            raise _refused(answer.get("error"))
        return str(answer["text"])


def _run(asked: str) -> dict[str, Any]:
    """What the process answers; raises UsageError where it was ended."""
    path = [os.path.abspath(place) for place in sys.path]
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-X", "utf8", "-c", _PROGRAM, *path],
            input=asked.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=MAX_WAIT_S,
            start_new_session=True,  # Ctrl-C is this process's to handle
            check=False,
        )
        answer = json.loads(done.stdout)
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"the model's chat template was stopped after {MAX_WAIT_S:.0f} s") from error
    except ValueError as error:  # it was ended before it could answer
        raise UsageError(
            f"the model's chat template was stopped: it takes too much memory, or computes for more than {MAX_CPU_S} s"
        ) from error
    except OSError as error:
        raise UsageError(f"the model's chat template cannot be run: {error}") from error
    return answer if isinstance(answer, dict) else {}


def _refused(reason: object) -> UsageError:
    return UsageError(f"the model's chat template refuses this conversation: {reason}")


def _with_reasoning(message: Message) -> dict[str, str]:
    """A message without empty fields, its reasoning under each name that templates read."""
    plain = {str(key): value for key, value in message.items() if value is not None}
    reasoning = next((plain[name] for name in REASONING_FIELDS if name in plain), None)
    return plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning}
