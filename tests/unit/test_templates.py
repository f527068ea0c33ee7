"""Chat templates: what real ones need, and what hostile ones must not do."""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Iterator

import pytest

from fake_engine import ByteTokenizer, FakeEngine
from localmoe.chat.allowance import TemplateLimits
from localmoe.chat.messages import Message
from localmoe.chat.template_sandbox import BoundedEnvironment
from localmoe.chat.templates import ChatTemplate, renderer_for
from localmoe.errors import ChatError

TALK = [Message("system", "be nice"), Message("user", "a <b> & 'c'\n")]


def render(source: str, **options: str) -> str:
    return ChatTemplate(source, **options).render(TALK)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ messages | tojson }}", '[{"role": "system", "content": "be nice"}, {"role": "user", '
         '"content": "a <b> & \'c\'\\n"}]'),
        ("{{ {'b': 1, 'a': 'é'} | tojson(indent=1, sort_keys=true) }}",
         '{\n "a": "é",\n "b": 1\n}'),
        ("{{ [1] | tojson(separators=(',', ':')) }}", "[1]"),
        ("  {% if true %}\n  x\n  {% endif %}\n", "  x\n"),
        ("{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
         "system"),
        ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ loop.index }}"
         "{{ loop.length }}{% endfor %}", "22"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "be nice"),
        ("{{ bos_token ~ messages[-1]['content'] | trim ~ eos_token }}", "<s>a <b> & 'c'</s>"),
        ("{% set ns = namespace(n=0) %}{% for m in messages[::-1] if m.role != 'x' %}"
         "{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "2"),
        ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f('a') + f(1) }}", "[a][1]"),
        ("{% set x %}{{ messages | length }}!{% endset %}{{ x * 2 }}", "2!2!"),
        ("{{ 'a,b'.split(',') | join('-') }}{{ '+'.join(['x', 'y']) }}", "a-bx+y"),
        ("{{ 'aXa'.replace('a', 'b') }}{{ 'aa' | replace('a', 'c', 1) }}", "bXbca"),
        ("{{ '%s:%d' | format('a', 3) }}{{ '{:>3}'.format(7) }}{{ '%d' % 4 }}", "a:3  74"),
        ("{{ messages | map(attribute='role') | list | join(',') }}", "system,user"),
        ("{{ messages | join(',', attribute='role') }}{{ [1, 2] | sum }}", "system,user3"),
        ("{{ tools is none }}{{ add_generation_prompt }}{{ missing is defined }}",
         "TrueTrueFalse"),
        ("{% set l = [] %}{% set _ = l.append('a') %}{% set _ = l.append('b') %}{{ l.pop(0) }}"
         "{{ l | length }}", "a1"),
        ("{{ ('{\"a\": [1]}' | from_json).a[0] }}", "1"),
        ("{{ messages | map(attribute='role') | tojson }}", '["system", "user"]'),
        ("{{ 2 ** 3 * 2 }}{{ 'x\ny' | indent(2) }}", "16x\n  y"),
    ],
)  # fmt: skip
def test_what_templates_use_works(source: str, expected: str) -> None:
    assert render(source, bos_text="<s>", eos_text="</s>") == expected


def test_one_template_at_a_time_whatever_the_thread() -> None:
    environment = BoundedEnvironment(TemplateLimits())
    template = environment.load_source("{% for x in xs %}{{ x }}{% endfor %}")
    ended: list[str] = []

    def other() -> None:
        environment.render(template, {"xs": ["b"]})
        ended.append("other")

    thread = threading.Thread(target=other)

    def items() -> Iterator[str]:
        yield "a"
        thread.start()
        thread.join(0.2)  # it would end by then if it did not wait for its turn
        yield from "aa"
        ended.append("first")

    assert environment.render(template, {"xs": items()}) == "aaa"
    thread.join(30)
    assert ended == ["first", "other"]


def test_strftime_now_is_the_date_of_today() -> None:
    before = datetime.datetime.now().strftime("%Y-%m-%d")
    rendered = render("{{ strftime_now('%Y-%m-%d') }}")
    assert before <= rendered <= datetime.datetime.now().strftime("%Y-%m-%d")


def test_raise_exception_gives_its_reason() -> None:
    with pytest.raises(ChatError, match="refused the messages: System role not supported"):
        render("{{ raise_exception('System role not supported') }}")


@pytest.mark.parametrize(
    "source", ["{% if %}", "{{", "{% foo %}", "{{ x | nofilter }}", "{{" + "(" * 9000 + "}}"]
)
def test_what_is_no_template_is_refused_when_it_is_read(source: str) -> None:
    with pytest.raises(ChatError, match="--raw"):
        ChatTemplate(source)


GROW = "{% set ns = namespace(x='aaaa') %}{% for i in range(99) %}{% set ns.x = EXPR %}{% endfor %}"


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% set l = range(99999) | list %}{% for i in l %}{% for j in l %}{% endfor %}{% endfor %}",
        "{{ ([range(99999)] * 90000) | map('list') | list | length }}",
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(40) }}",
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{% for i in range(99) recursive %}{{ loop(range(99)) }}{% endfor %}",
        GROW.replace("EXPR", "ns.x + ns.x"),
        GROW.replace("EXPR", "ns.x ~ ns.x"),
        GROW.replace("EXPR", "ns.x * 9"),
        GROW.replace("EXPR", "ns.x | replace('a', ns.x)"),
        GROW.replace("EXPR", "ns.x.replace('a', ns.x)"),
        GROW.replace("EXPR", "[ns.x, ns.x] | join"),
        GROW.replace("EXPR", "ns.x.join([ns.x, ns.x])"),
        GROW.replace("EXPR", "'%s%s' | format(ns.x, ns.x)"),
        GROW.replace("EXPR", "'%s%s' % (ns.x, ns.x)"),
        GROW.replace("EXPR", "'{0}{0}'.format(ns.x)"),
        GROW.replace("EXPR", "[ns.x, ns.x] | string"),
        GROW.replace("EXPR", "[ns.x, ns.x]") + "{{ ns.x }}",
        GROW.replace("EXPR", "[ns.x, ns.x]") + "{{ ns.x | tojson }}",
        GROW.replace("{% set ns.x = EXPR %}", "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"),
        "{{ 'a' * 10000000000 }}",
        "{{ 'a'.ljust(10000000000) }}",
        "{{ 'a' | center(10000000000) }}",
        "{{ 'a' | indent(10000000000, true) }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ '{:>10000000000}'.format(1) }}",
        "{{ '%*d' | format(10000000000, 1) }}",
        "{{ [1] | tojson(indent=10000000000) }}",
        "{{ 9 ** 9 ** 9 }}" + "{{ (9 ** 999) ** 999 }}",
        "{{ strftime_now('%Y' * 1000) }}",
        "{{ [[1]] | sum(start=[]) }}",
        "{{ lipsum(10000) }}",
        "{% set l = [] %}{% for i in range(99999) %}{% set _ = l.append('a' * 999) %}{% endfor %}",
        "{% set l = [] %}{% set _ = l.append(l) %}{{ l }}",
        "{% set l = [] %}{% set _ = l.append(l) %}{{ l | tojson }}",
        "{{ ('[' * 100000) | from_json }}",
        "{{ ('[' * 10000000) | from_json }}",
    ],
)
def test_a_template_that_would_take_all_time_or_memory_is_stopped(source: str) -> None:
    start = time.monotonic()
    with pytest.raises(ChatError):
        render(source)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages.pop() }}",
        "{{ [].extend([1]) }}",
        "{{ raise_exception.__globals__.x }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
        "{{ messages[0].update({'a': 1}) }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_template_cannot_leave_the_sandbox(source: str) -> None:
    with pytest.raises(ChatError):
        render(source)


def test_the_clock_stops_a_template_too() -> None:
    limits = TemplateLimits(seconds=0.05, steps=10**12, characters=10**12)
    template = ChatTemplate(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        limits=limits,
    )
    with pytest.raises(ChatError, match=r"longer than 0\.05 s"):
        template.render(TALK)


def test_each_rendering_has_its_own_allowance() -> None:
    limits = TemplateLimits(steps=100)
    template = ChatTemplate("{% for i in range(60) %}{% endfor %}ok", limits=limits)
    assert [template.render(TALK) for _ in range(5)] == ["ok"] * 5


def test_the_checkpoints_own_template_is_used() -> None:
    engine = FakeEngine(chat_template="{{ bos_token }}{{ messages[0].role }}{{ eos_token }}")
    renderer, note = renderer_for(engine)
    assert (renderer.render(TALK), note) == ("<s>system</s>", None)


def test_without_a_template_chatml_is_used_if_the_vocabulary_has_it_and_said() -> None:
    renderer, note = renderer_for(FakeEngine())
    assert note is not None
    assert "ChatML" in note
    assert renderer.render(TALK) == (
        "<|im_start|>system\nbe nice<|im_end|>\n<|im_start|>user\na <b> & 'c'\n<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_without_a_template_and_without_its_markers_the_way_out_is_named() -> None:
    with pytest.raises(ChatError, match="--raw"):
        renderer_for(FakeEngine(tokenizer=ByteTokenizer(chatml=False)))
