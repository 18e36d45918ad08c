"""What a channel may begin with. In a private swarm, a greeting comes before."""

from __future__ import annotations

from typing import Any

from shoal.errors import UnknownQuestion
from shoal.protocol.messages.directory_messages import DIRECTORY_QUESTIONS
from shoal.protocol.messages.message import Message, Question, Vocabulary
from shoal.protocol.messages.session_messages import SESSION_QUESTIONS

QUESTIONS: tuple[Question[Any, Any], ...] = (*DIRECTORY_QUESTIONS, *SESSION_QUESTIONS)

FIRST: Vocabulary[Message] = Vocabulary(
    "a channel that begins", (question.request for question in QUESTIONS), unknown=UnknownQuestion
)
