"""Chat templates for tests: templates of other models, variants of Gemma's templates, and hostile
templates."""

from __future__ import annotations

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{{ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ALPACA = """{{ bos_token }}{% if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}
{%- for message in messages if message.role != 'system' %}
{%- if message.role == 'user' %}{{ '### Instruction:\n' + message.content + '\n\n' }}
{%- else %}{{ '### Response:\n' + message.content + eos_token + '\n\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"""
# Like the template of ShieldGemma, which asks if a text violates a guideline.
GUARD = """{{ bos_token }}{% if not guideline is defined %}{{ raise_exception('no guideline') }}{% endif %}
Does this keep to the policy?

<start_of_turn>
Human Question: {{ messages[0].content | trim }}
<end_of_turn>

* {{ guideline }}

"""
# Like the template of TranslateGemma, whose content parts name the languages.
TRANSLATE = """{%- set languages = {'de': 'German', 'en': 'English'} -%}
{{ bos_token }}{% for message in messages %}
{%- if message.role == 'user' %}{% if message.content is string or message.content | length != 1 %}
{{- raise_exception('content has to be one part with its languages') }}
{%- endif %}
{%- set part = message.content[0] %}
{{- '<start_of_turn>user\nFrom ' + languages[part.source_lang_code | replace('_', '-')] + ' into ' +
    languages[part.target_lang_code] + ':\n\n\n' + part.text | trim }}
{%- else %}{{ '<start_of_turn>model\n' + message.content | trim }}{% endif %}
{{- '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
GEMMA_LIKE = """{{ bos_token }}{% set shift = 1 if messages[0].role == 'system' else 0 %}
{%- for message in messages[shift:] %}
{%- set system = messages[0].content + '\n\n' if shift and loop.first else '' %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}
{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\n' + system }}
{%- if message.content is string %}{{ message.content | trim }}
{%- else %}{% for part in message.content %}{{ part.text | trim }}{% endfor %}{% endif %}
{{- '<end_of_turn>\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
TOOLS = GEMMA_LIKE.replace(
    "{{ bos_token }}",
    "{{ bos_token }}{% if tools %}{{ '<start_of_turn>user\nTools: ' ~ tools | tojson ~ '<end_of_turn>\n' }}"
    "{% endif %}",
)
PARTS_ONLY = """{% for message in messages %}[{{ message.role }}]
{%- for part in message.content %}{{ part.text }}{% endfor %}<end_of_turn>{% endfor %}"""

FOREIGN = {
    "ChatML": CHATML,
    "Alpaca": ALPACA,
    "with a system prompt of its own": GEMMA_LIKE.replace("{{ bos_token }}", "{{ bos_token }}Be kind.\n"),
    "without BOS": GEMMA_LIKE.replace("{{ bos_token }}", ""),
    "without trim": GEMMA_LIKE.replace("{{ message.content | trim }}", "{{ message.content }}"),
    "with a role of its own": GEMMA_LIKE.replace("'model' if", "'assistant' if"),
    "with tools": TOOLS,
}

_DOUBLE = "{% set ns = namespace(x='0123456789') %}{% for i in range(90) %}{% set ns.x = "
# These templates would run forever or use up the memory, so gemlet has to end the process that runs them.
ENDLESS = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a large number": "{{ 9 ** (9 ** 9) }}",
    "a list that doubles when it is written": _DOUBLE + "[ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "a list that doubles as JSON": _DOUBLE + "[ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
    "a list that doubles when it is compared": _DOUBLE
    + "[ns.x, ns.x] %}{% endfor %}{{ ns.x | map('string') | list }}",
    "a tuple that doubles as a key": _DOUBLE + "(ns.x, ns.x) %}{% endfor %}{{ {ns.x: 1} }}",
    "slice": "{{ [1] | slice(10 ** 9) | list }}",
    "ranges": "{% for i in range(99999) %}{{ range(99999) | list | length }}{% endfor %}",
    "lipsum": "{{ lipsum(n=10 ** 7) }}",
    "many expressions": "{{ messages }}" * 70000,
}
HOSTILE = {
    "a long text by *": "{{ 'a' * 10 ** 11 }}",
    "a long list by *": "{{ [0] * 10 ** 11 }}",
    "a text that doubles by +": _DOUBLE + "ns.x + ns.x %}{% endfor %}",
    "a text that doubles by ~": _DOUBLE + "ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "a text that doubles by replace": _DOUBLE + "ns.x | replace('0', ns.x) %}{% endfor %}{{ ns.x }}",
    "center": "{{ 'a' | center(10 ** 11) }}",
    "indent": "{{ 'a\nb' | indent(10 ** 11) }}",
    "format by %": "{{ '%99999999999d' | format(1) }}",
    "format by {}": "{{ '{:99999999999d}'.format(1) }}",
    "batch": "{{ [1] | batch(10 ** 11, 0) | list }}",
    "range": "{{ range(10 ** 9) | list }}",
    "wordwrap": "{{ ('a ' * 10 ** 7) | wordwrap(1) }}",
    "urlize": "{{ ('www.a.b ' * 10 ** 7) | urlize }}",
    "sort": "{{ (range(99999) | list * 999) | sort | length }}",
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(90) }}",
    "a loop that calls itself": "{% set a = [0, 0, 0] %}{% for x in a recursive %}{{ loop(a) }}{% endfor %}",
    "much output": "{% for a in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
    "brackets": "{{ " + "(" * 9000 + "1" + ")" * 9000 + " }}",
    "a long sum": "{{ " + "1 + " * 90000 + "1 }}",
    "blocks in blocks": "{% if 1 %}" * 9000 + "{% endif %}" * 9000,
    "a class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a class by attr": "{{ '' | attr('__class__') }}{{ (messages | attr('append'))(1) }}",
    "a class by format": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "a class by format_map": "{{ '{a.__class__.__mro__}'.format_map({'a': messages}) }}{{ 1 / 0 }}",
    "globals of a function": "{{ raise_exception.__globals__['os'] }}{{ 1 / 0 }}",
    "globals of a macro": "{% macro f() %}{% endmacro %}{{ f.__init__.__globals__ }}{{ f._environment.x() }}",
    "the context": "{{ self._TemplateReference__context.environment.x() }}",
    "a change of the messages": "{{ messages.append(1) }}",
    "a change of a dict": "{{ messages[0].update({'role': 'x'}) }}",
    "a private name of a namespace": "{% set ns = namespace(__class__=1) %}{{ ns }}",
    "a file": "{% include '/etc/passwd' %}",
    "a module": "{% import 'os' as os %}{{ os }}",
    "a parent": "{% extends '/etc/passwd' %}",
    "no Jinja": "{% for %}",
    "no end": "{% for a in messages %}",
    "an unknown filter": "{{ messages | shell }}",
    "an unknown tag": "{% python import os %}",
}
