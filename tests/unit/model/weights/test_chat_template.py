"""Chat templates: what transformers renders, for templates as the families have them, and what is refused."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from shoal.errors import UsageError
from shoal.model.weights.chat_template import MAX_TEMPLATE_CHARS, ChatTemplate
from shoal.model.weights.template_rendering import MAX_CPU_S

LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""  # noqa: E501
LLAMA3 = """{{- bos_token }}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""
QWEN3 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {{- "# Tools\\n\\n" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "<|im_end|>\\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in message.content %}
            {%- set reasoning_content = message.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and reasoning_content %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""  # noqa: E501
GEMMA2 = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"""  # noqa: E501
GEMMA3 = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '

' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '

' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '
' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
"""
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" + (tools | tojson) + "][/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported!") }}
    {%- endif %}
{%- endfor %}
"""
GPT_OSS = """{%- macro render_date() -%}
Current date: {{ strftime_now("%Y-%m-%d") }}
{%- endmacro -%}
{%- if not model_identity is defined %}
    {%- set model_identity = "You are ChatGPT, a large language model trained by OpenAI." %}
{%- endif -%}
<|start|>system<|message|>{{ model_identity + "\\n" }}{{ render_date() }}

Reasoning: {{ reasoning_effort if reasoning_effort is defined else "medium" }}

# Valid channels: analysis, commentary, final.<|end|>
{%- if messages[0].role == "developer" or messages[0].role == "system" %}
    {%- set developer_message = messages[0].content %}
    {%- set loop_messages = messages[1:] %}
    {{- "<|start|>developer<|message|># Instructions\\n\\n" + developer_message + "<|end|>" }}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set last_tool_call = namespace(name=none) %}
{%- for message in loop_messages -%}
    {%- if message.role == 'assistant' -%}
        {%- if loop.last and not add_generation_prompt %}
            {%- if "thinking" in message %}
                {{- "<|start|>assistant<|channel|>analysis<|message|>" + message.thinking + "<|end|>" }}
            {%- endif %}
            {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|return|>" }}
        {%- elif "thinking" in message %}
            {{- "<|start|>assistant<|channel|>analysis<|message|>" + message.thinking + "<|end|>" }}
            {%- set last_tool_call.name = none %}
        {%- else %}
            {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|end|>" }}
        {%- endif %}
    {%- elif message.role == 'user' -%}
        {{- "<|start|>user<|message|>" + message.content + "<|end|>" }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|start|>assistant
{%- endif -%}"""
PHI = """{% for message in messages %}{% if (message['role'] == 'system') %}{{'<|im_start|>system<|im_sep|>' + message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'user') %}{{'<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'assistant') %}{{'<|im_start|>assistant<|im_sep|>'}}{% generation %}{{message['content'] + '<|im_end|>'}}{% endgeneration %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"""  # noqa: E501
OLMO2 = """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ '<|system|>
' + message['content'] + '
' }}{% elif message['role'] == 'user' %}{{ '<|user|>
' + message['content'] + '
' }}{% elif message['role'] == 'assistant' %}{% if not loop.last %}{{ '<|assistant|>
'  + message['content'] + eos_token + '
' }}{% else %}{{ '<|assistant|>
'  + message['content'] + eos_token }}{% endif %}{% endif %}{% if loop.last and add_generation_prompt %}{{ '<|assistant|>
' }}{% endif %}{% endfor %}"""
GLM4 = """[gMASK]<sop>
{%- for item in messages if item['role'] != 'skipped' %}
{%- if item['role'] == 'assistant' and loop.index0 > 40 %}{% break %}{% endif %}
<|{{ item['role'] }}|>
{{ item['content'] }}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""
DEEPSEEK = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_first=false, is_tool=false, system_prompt='', is_first_sp=true) %}{%- for message in messages %}{%- if message['role'] == 'system' %}{%- if ns.is_first_sp %}{% set ns.system_prompt = ns.system_prompt + message['content'] %}{% set ns.is_first_sp = false %}{%- else %}{% set ns.system_prompt = ns.system_prompt + '\\n\\n' + message['content'] %}{%- endif %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<｜User｜>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' and message['content'] is not none %}{{'<｜Assistant｜>' + message['content'] + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}{% if add_generation_prompt and not ns.is_tool %}{{'<｜Assistant｜>'}}{% endif %}"""  # noqa: E501, RUF001
FALCON = """{% for message in messages %}{% if not loop.first %}{{ '
' }}{% endif %}{{ {'system': 'System', 'user': 'User', 'assistant': 'Falcon'}[message['role']] + ': ' + message['content'] }}{% endfor %}{% if add_generation_prompt %}{{ '
Falcon:' }}{% endif %}"""  # noqa: E501
TOOLBOX = """{% set seen = dict(a=1) %}{{ seen | tojson(indent=2) }}{{ dict.fromkeys(['x'], 3) | tojson }}
{% for message in messages %}
    {% if message.content == 'skip' %}{% continue %}{% endif %}
  {{ message.content | tojson }}{{ tools is none }}{{ documents is none }}{{ unk_token is defined }}
{% endfor %}"""

TEMPLATES = {
    "llama 2": LLAMA2,
    "llama 3": LLAMA3,
    "smollm2, qwen 2": CHATML,
    "qwen 3": QWEN3,
    "gemma 2": GEMMA2,
    "gemma 3": GEMMA3,
    "mistral, mixtral": MISTRAL,
    "gpt-oss": GPT_OSS,
    "phi 3 and 4": PHI,
    "olmo 2": OLMO2,
    "glm 4": GLM4,
    "deepseek": DEEPSEEK,
    "falcon": FALCON,
    "what templates may use": TOOLBOX,
}

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def talk(*turns: tuple[str, str]) -> list[dict[str, Any]]:
    """Messages by role and text."""
    return [{"role": role, "content": text} for role, text in turns]


CONVERSATIONS = [
    talk(("user", "Why is the sea salty?")),
    talk(("user", " spaced  \n"), ("assistant", "<b>&\"'</b> 🌊"), ("user", "skip")),
    talk(("system", "Be brief."), ("user", "Grüße, 世界")),
    [
        {"role": "user", "content": "a", "name": None},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d", "thinking": "deep"},
        {"role": "user", "content": "e"},
    ],
    talk(("assistant", "first")),
]


def by_transformers(template: str, messages: list[dict[str, Any]]) -> str | None:
    """What transformers renders; None where the template refuses."""
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0, "</s>": 1, "<pad>": 2}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **SPECIAL)
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception:
        return None


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("messages", CONVERSATIONS, ids=lambda messages: "-".join(one["role"][0] for one in messages))
def test_a_conversation_is_rendered_as_transformers_does(name: str, messages: list[dict[str, Any]]) -> None:
    """Character by character, and refused where transformers refuses."""
    expected = by_transformers(TEMPLATES[name], messages)
    if expected is None:
        with pytest.raises(UsageError, match="template refuses"):
            ChatTemplate(TEMPLATES[name], SPECIAL).render(messages)
    else:
        assert ChatTemplate(TEMPLATES[name], SPECIAL).render(messages) == expected


def test_every_template_renders_something() -> None:
    """No case is hollow: each template takes the plain question, and today's date is in those that ask for it."""
    rendered = {name: ChatTemplate(text, SPECIAL).render(CONVERSATIONS[0]) for name, text in TEMPLATES.items()}
    assert all("Why is the sea salty?" in text for text in rendered.values())
    assert datetime.now().strftime("%Y-%m-%d") in rendered["gpt-oss"]


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{{ 1 + 'a' }}",
        "{{ 1 // 0 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ namespace(_x=1) }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ cycler.__init__.__globals__.os }}",
    ],
)
def test_what_a_template_does_wrong_is_one_error(template: str) -> None:
    """Whatever it raises, and whatever the sandbox forbids."""
    with pytest.raises(UsageError, match="template refuses"):
        ChatTemplate(template, SPECIAL).render(CONVERSATIONS[0])


GROWS = (
    "{% set ns = namespace(text='xxxxxxxx') %}{% for i in range(99) %}{% set ns.text = ns.text + ns.text %}{% endfor %}"
)
LOOPS = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
CALLS = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}"
WITHOUT_END = {
    "loops in loops": LOOPS,
    "loops that write": LOOPS.replace("{% endfor %}", "{{ 'text' }}{% endfor %}", 1),
    "a macro that calls itself": CALLS,
    "a number": "{{ 9 ** (9 ** (9 ** 9)) }}",
    "a number that is known early": "{% if 10 ** (10 ** 10) %}{% endif %}",
    "a text": "{{ 'x' * 10 ** 11 }}",
    "a text that grows": GROWS,
    "a field's width": "{{ '%99999999999d' % 1 }}",
    "a field's width, again": "{{ '{:99999999999}'.format(1) }}",
    "a margin": "{{ 'x' | center(99999999999) }}",
    "words": "{{ lipsum(n=99999999) }}",
    "lists": "{{ ([1] * 999999999) | sort }}",
    "JSON": "{{ messages | tojson(indent=99999999999) }}",
    "much text": "{{ 'x' * 17000000 }}",
}


@pytest.mark.parametrize("template", WITHOUT_END.values(), ids=WITHOUT_END)
def test_a_template_without_end_is_ended(template: str) -> None:
    """Its time, its memory and what it writes are bounded, and it is told to whom it belongs."""
    began = time.process_time() + os.times().children_user + os.times().children_system
    with pytest.raises(UsageError, match="the model's chat template"):
        ChatTemplate(template, SPECIAL).render(CONVERSATIONS[0])
    took = time.process_time() + os.times().children_user + os.times().children_system - began
    assert took < MAX_CPU_S + 3


NESTED: dict[str, Callable[[int], str]] = {
    "conditions": lambda depth: "{% if 1 %}" * depth + "1" + "{% endif %}" * depth,
    "loops": lambda depth: "{% for i in [1] %}" * depth + "1" + "{% endfor %}" * depth,
    "brackets": lambda depth: "{{" + "(" * depth + "1" + ")" * depth + "}}",
}


@pytest.mark.parametrize("depth", [5, 500, 50_000])
@pytest.mark.parametrize("kind", NESTED)
def test_nested_templates_are_rendered_or_refused(kind: str, depth: int) -> None:
    """However deep, this process lives on."""
    try:
        assert ChatTemplate(NESTED[kind](depth), SPECIAL).render(CONVERSATIONS[0]) == "1"
    except UsageError:
        assert depth > 5


def test_what_is_no_data_is_not_given_to_a_template() -> None:
    """It says so."""
    with pytest.raises(UsageError, match="cannot be given"):
        ChatTemplate(CHATML, SPECIAL).render([{"role": "user", "content": object()}])  # type: ignore[dict-item]


def test_an_interpreter_that_cannot_be_run_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an error of ours."""
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(UsageError, match="cannot be run"):
        ChatTemplate(CHATML, SPECIAL).render(CONVERSATIONS[0])


def test_a_template_of_any_length_is_not_read() -> None:
    """A bound for what is parsed here."""
    with pytest.raises(UsageError, match="more than"):
        ChatTemplate("x" * (MAX_TEMPLATE_CHARS + 1), SPECIAL)


def test_a_template_that_cannot_be_compiled_is_refused() -> None:
    """As early as it is known."""
    with pytest.raises(UsageError, match="template refuses"):
        ChatTemplate("{% if %}", SPECIAL)


def test_an_empty_conversation_is_refused() -> None:
    """There is nothing to answer."""
    with pytest.raises(UsageError, match="at least one message"):
        ChatTemplate(CHATML, SPECIAL).render([])
