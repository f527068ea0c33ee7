"""The page in a browser: a chat, its thoughts and tools, the picture, the keyboard."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import localmoe
from browser import Browser, find
from scripted import ScriptedEngine
from server_tools import EndlessEngine, Serve, until
from serving import HERMES, Served

COMMAND = find()
needs_browser = pytest.mark.skipif(
    COMMAND is None, reason="needs Chromium: install Debian's package chromium, or the like"
)
CALL = (
    '<tool_call>{"name": "calculator", "arguments": {"expression": "2 * (3 + 4) ^ 2"}}</tool_call>'
)
ANSWER = "It is **98**:\n\n- one `code`\n- two <b>tags</b>\n\n```py\nprint(1)\n```"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert COMMAND is not None
    with Browser(COMMAND, tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def page(browser: Browser) -> Iterator[Browser]:
    browser.console.clear()
    browser.requests.clear()
    yield browser
    # A chat that is left open would keep its server from ending.
    browser.call("Page.navigate", url="about:blank")
    browser.wait("location.href === 'about:blank'")


def script(prompt: str) -> str:
    if "98" in prompt:
        return f"<think>I know it now.</think>{ANSWER}"
    if "calculator" in prompt:
        return f"<think>I need to calculate.</think>{CALL}"
    if "forever" in prompt:
        return "word " * 600
    return f"<think>Easy.</think>{ANSWER}"


def talk(served: Served, page: Browser, text: str, **view: Any) -> None:
    page.open(served.url, **view)
    page.wait("model !== ''")
    page.run("document.getElementById('ask').focus()")
    page.type(text)
    page.press("Enter", 13, "\r")


def test_the_page_holds_all_that_it_needs_and_its_policy_says_so(serve: Serve) -> None:
    response = httpx.get(serve([]).url)
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert policy.count("'sha256-") == 2
    assert response.headers["x-content-type-options"] == "nosniff"
    outside = re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?!data:|#)([^\"'\s)>]+)", response.text)
    assert outside == []
    assert re.findall(r"\son\w+\s*=", response.text) == []
    assert "innerHTML" not in response.text


@needs_browser
def test_thoughts_are_folded_and_text_is_text(serve: Serve, page: Browser) -> None:
    served = serve(script)
    talk(served, page, "hello")
    page.wait("!running && document.querySelector('.meta')")
    assert page.run("document.querySelector('.user').innerText.trim()") == "hello"
    assert page.run("document.querySelector('details.thoughts').open") is False
    assert page.run("document.querySelector('details.thoughts div').textContent") == "Easy."
    said = "document.querySelector('.said')"
    assert page.run(f"{said}.querySelector('strong').textContent") == "98"
    assert page.run(f"{said}.querySelectorAll('li').length") == 2
    assert page.run(f"{said}.querySelector('pre code').textContent") == "print(1)\n"
    assert page.run(f"{said}.querySelectorAll('b').length") == 0, "a model writes no markup"
    assert "tokens" in page.run("document.querySelector('.meta').textContent")
    assert page.console == []
    assert {url.partition("?")[0] for url in page.requests} <= {
        f"{served.url}/", f"{served.url}/live", f"{served.url}/v1/chat/completions"
    }  # fmt: skip


@needs_browser
def test_a_model_without_experts_has_no_map(serve: Serve, page: Browser) -> None:
    page.open(serve(script).url, width=400, height=800)
    page.wait("model !== ''")
    shown = "[...document.querySelectorAll('.moe')].filter(e => e.offsetParent).length"
    assert page.run("document.querySelectorAll('.moe').length") > 3
    assert page.run(shown) == 0
    assert page.run("document.getElementById('log').clientHeight") > 450
    page.run("begin({ ...shape, layers: [0], experts: 4, experts_of_layer: [4] })")
    page.size(1440, 900)
    assert page.run(shown) == page.run("document.querySelectorAll('.moe').length")


@needs_browser
def test_tools_are_called_in_the_page_and_shown(serve: Serve, page: Browser) -> None:
    engine = ScriptedEngine(script=script, chat_template=HERMES)
    served = serve(engine)
    page.open(served.url)
    page.run("document.getElementById('tools').checked = true")
    page.wait("model !== ''")
    page.run("ask('how much?')")
    page.wait("!running && document.querySelector('.said strong')")
    card = page.run("document.querySelector('.card').innerText")
    assert "calculator" in card
    assert "2 * (3 + 4) ^ 2" in card
    assert card.rstrip().endswith("98")
    assert "<think>I need to calculate.</think>" in engine.prompts[1]
    assert page.run("calculate('-2 ** 2 + 7 % 4 / 2')") == "-2.5"
    for wrong in ("2 +", "(1", "alert(1)", "1 2"):
        assert page.run(f"runTool({{function: {{name: 'calculator', arguments: JSON.stringify("
                        f"{{expression: '{wrong}'}})}}}})").startswith("Error"), wrong  # fmt: skip
    assert page.console == []


@needs_browser
def test_the_keyboard_is_enough(serve: Serve, page: Browser) -> None:
    engine = EndlessEngine(script, "forever")
    served = serve(engine)
    talk(served, page, "forever")
    until(engine.stands.is_set)
    page.wait("document.querySelector('.said')?.textContent.length > 10")
    page.press("Escape", 27)
    page.wait("!running")
    assert "stopped" in page.run("document.querySelector('.meta').textContent")
    until(lambda: not served.service.worker.is_busy)
    assert served.service.ledger.finishes["cancelled"] == 1
    assert page.run("document.activeElement.id") == "ask"
    page.run(
        "document.getElementById('skip'); document.body.focus(); document.activeElement.blur()"
    )
    reached = set()
    for _ in range(12):
        page.press("Tab", 9)
        reached.add(page.run("document.activeElement.id || document.activeElement.className"))
    assert {"fresh", "open-options", "log", "ask", "send"} <= reached
    page.run("document.getElementById('fresh').click()")
    assert page.run("turns.length === 0 && !document.getElementById('empty').hidden")


@needs_browser
def test_a_server_with_a_key_asks_for_it(serve: Serve, page: Browser) -> None:
    served = serve(script, api_keys=("0123456789abcdef",))
    page.open(served.url)
    page.wait("document.getElementById('state').textContent.includes('key')")
    page.run("ask('hello')")
    page.wait("document.querySelector('.wrong') && document.getElementById('options').open")
    assert "key is needed" in page.run("document.querySelector('.wrong').textContent")
    page.run("document.getElementById('key').focus()")
    page.type("0123456789abcdef")
    page.press("Enter", 13, "\r")
    page.wait("!document.getElementById('options').open && model !== ''")
    page.run("ask('hello')")
    page.wait("!running && document.querySelector('.said strong')")


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_and_can_be_read(serve: Serve, page: Browser, dark: bool) -> None:
    served = serve(script)
    talk(served, page, "hello", width=400, height=800, dark=dark)
    page.wait("!running && document.querySelector('.meta')")
    assert page.run("document.documentElement.scrollWidth") <= 400
    assert page.run("document.getElementById('send').getBoundingClientRect().bottom") <= 800
    assert page.run("document.getElementById('log').clientHeight") > 150
    # WCAG's contrast, of each text against the ground that lies behind it.
    contrasts = page.run(_CONTRASTS)
    assert len(contrasts) > 10
    assert {text: ratio for text, ratio in contrasts if ratio < 4.5} == {}
    names = page.run(
        "[...document.querySelectorAll('button, input, textarea, [role=img]')]"
        ".filter(e => !e.textContent.trim() && !e.labels?.length && !e.ariaLabel"
        " && !e.hidden && e.offsetParent).map(e => e.id)"
    )
    assert names == [], "without a name for screen readers"


_CONTRASTS = """(() => {
  const paper = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgb = (colour) => {
    paper.clearRect(0, 0, 1, 1); paper.fillStyle = colour; paper.fillRect(0, 0, 1, 1);
    return [...paper.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const found = rgb(getComputedStyle(node).backgroundColor);
      if (found[3] > 250) return found;
    }
    return [255, 255, 255];
  };
  const texts = [...document.querySelectorAll('body *')].filter((node) => node.offsetParent &&
    !node.matches('.sr, script, style') &&
    [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()));
  return texts.map((node) => {
    const a = light(rgb(getComputedStyle(node).color)), b = light(ground(node));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    return [node.textContent.trim().slice(0, 40), ratio];
  });
})()"""


@needs_browser
def test_the_map_lights_up_by_hit_and_miss(
    serve: Serve, page: Browser, zoo_model: Callable[[str], Path]
) -> None:
    settings = localmoe.Settings(context_tokens=512, threads=1, slots=9)
    with localmoe.load(zoo_model("qwen3moe"), settings) as engine:
        served = serve(engine, max_tokens=60, sampling={"temperature": 0})
        page.open(served.url)
        page.wait("shape !== null && held !== null")
        page.run("ask('hello')")
        page.wait("trail.length > 0 && !running")
        counted = page.run("[shape.layers.length * shape.experts, held.length, "
                           "held.reduce((sum, one) => sum + one, 0)]")  # fmt: skip
        assert counted[0] == counted[1]
        assert 0 < counted[2] <= 9
        assert page.run("Math.min(...trail)") < 1
        label = page.run("document.getElementById('map').getAttribute('aria-label')")
        assert "were read" in label
        page.run("for (const kind of KINDS) heat[kind].fill(0); heat.miss[0] = 1; draw(drawn)")
        where = "grid.cell * grid.scale / 2, grid.rowHeight * grid.scale / 2, 1, 1"
        pixel = page.run(f"[...$('map').getContext('2d').getImageData({where}).data]")
        assert pixel[0] > pixel[2] + 60, "a miss is orange"
        assert page.run("$('speed').textContent") != "–"
        assert page.console == []
        page.call("Page.navigate", url="about:blank")
        served.server.end()
        assert served.service.worker.join(30)


@needs_browser
def test_it_comes_back_when_the_server_does(serve: Serve, page: Browser) -> None:
    halt = threading.Event()
    served = serve(ScriptedEngine(script=script, chat_template=HERMES, pause=halt))
    talk(served, page, "hello")
    until(lambda: served.service.worker.is_busy)
    served.server.end()
    page.wait("document.querySelector('.wrong')")
    page.wait("document.getElementById('state').dataset.phase === 'off'")
    assert "stopped" in page.run("document.querySelector('.wrong').textContent")
