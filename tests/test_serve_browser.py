"""The page in a real browser: headless Chromium, driven over its DevTools pipe, which needs neither a driver nor a further package."""

from __future__ import annotations

import itertools
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import service
from bars import make_frame

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--lang=en-US", "--remote-debugging-pipe"),
)
WAIT_S = 30.0

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}: apt-get install chromium runs these tests")


class Browser:
    """One page of a Chromium of its own. https://chromedevtools.github.io/devtools-protocol: JSON messages that end with a zero byte."""

    def __init__(self, profile: Path) -> None:
        to_browser, self.write = os.pipe()
        self.read, from_browser = os.pipe()
        self.numbers, self.buffer, self.events, self.session = itertools.count(1), b"", [], ""
        # Chromium reads commands from file 3 and answers on file 4; dash cannot move a file whose number has two digits
        ends = ["bash", "-c", f'exec "$@" 3<&{to_browser} 4>&{from_browser}', "bash"]
        command = [*ends, str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, pass_fds=(to_browser, from_browser), **quiet)
        os.close(to_browser)
        os.close(from_browser)
        pages = [target for target in self.call("Target.getTargets")["targetInfos"] if target["type"] == "page"]
        self.session = self.call("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self.session = ""
        self.call("Browser.close")
        self.process.wait(WAIT_S)
        os.close(self.write)
        os.close(self.read)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": self.session} if self.session else {})
        os.write(self.write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + WAIT_S
        while True:
            while b"\0" in self.buffer:
                one, self.buffer = self.buffer.split(b"\0", 1)
                answer = json.loads(one)
                if answer.get("id") == number:
                    assert "error" not in answer, (method, answer)
                    return answer["result"]
                self.events.append(answer)
            ready, _, _ = select.select([self.read], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"Chromium did not answer {method}"
            more = os.read(self.read, 1 << 20)
            assert more, f"Chromium ended at {method}"
            self.buffer += more

    def run(self, code: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        found = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, code: str) -> Any:
        """Waits until an expression is true."""
        deadline = time.monotonic() + WAIT_S
        while not (value := self.run(code)):
            assert time.monotonic() < deadline, f"{code} did not come true; the page says: {self.run('document.body?.innerText')}"
            time.sleep(0.02)
        return value

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.until(f"document.readyState === 'complete' && location.href.startsWith({json.dumps(url)})")

    def choose(self, *files: Path) -> None:
        """Files, as if chosen in the dialogue of #file."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def drop(self, name: str, content: str) -> None:
        """A file, as if dropped somewhere on the page."""
        self.run(
            f"""(() => {{ const given = new DataTransfer();
            given.items.add(new File([{json.dumps(content)}], {json.dumps(name)}));
            for (const kind of ["dragenter", "dragover", "drop"])
              document.body.dispatchEvent(new DragEvent(kind, {{dataTransfer: given, bubbles: true, cancelable: true}})); }})()"""
        )

    def text(self, selector: str) -> str:
        return self.run(f"document.querySelector({json.dumps(selector)}).textContent")

    def count(self, selector: str) -> int:
        return self.run(f"document.querySelectorAll({json.dumps(selector)}).length")

    def status(self, kind: str) -> str:
        """What the page says once it is at rest, which must be of a kind: done or wrong."""
        found = self.until("['done', 'wrong'].find((kind) => document.querySelector('#status').className === kind)")
        assert found == kind, self.text("#status")
        return self.text("#status")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with service.running(service.load_serve().create_app(service.forecaster(), "tiny")) as url:
        yield url


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    one = Browser(tmp_path_factory.mktemp("profile"))
    yield one
    one.close()


@pytest.fixture
def page(browser, address) -> Browser:
    browser.events.clear()
    browser.open(address + "/")
    browser.until("document.querySelector('#model').textContent === 'tiny'")
    browser.run("document.querySelector('#samples').value = 20")
    return browser


def csv(n: int = 40) -> str:
    return make_frame(n).to_csv(index=False)


def test_a_csv_that_is_dropped_becomes_a_fan_chart(page):
    page.drop("mine.csv", csv())
    said = page.status("done")
    assert said.startswith("mine: 24 bars forecast from 40")
    assert page.count("#chart svg .candles rect") == 40
    assert page.count("#chart svg .fan polygon") == 2
    points = page.run("document.querySelector('.fan .median').points.length")
    assert points == 25  # the last close and 24 bars
    assert page.count("#table tbody tr") == 24
    last = make_frame(40)["close"].iloc[-1]
    assert float(page.text("#facts dd").replace(",", "")) == pytest.approx(last, rel=1e-3)
    edges = page.run("['.wide', '.half'].map((name) => document.querySelector('.fan ' + name).getBBox().height)")
    assert edges[0] > edges[1] > 0


def test_the_forecast_can_be_downloaded_as_a_csv(page, tmp_path):
    page.drop("mine.csv", csv())
    page.status("done")
    page.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.run("document.querySelector('#download').click()")
    file, deadline = tmp_path / "forecast.csv", time.monotonic() + WAIT_S
    while not file.exists():
        assert time.monotonic() < deadline, list(tmp_path.iterdir())
        time.sleep(0.02)
    lines = file.read_text().splitlines()
    assert lines[0] == "timestamps,close_5,close_25,close_50,close_75,close_95,prob_up"
    assert len(lines) == 25


def test_a_file_that_is_chosen_is_forecast_with_the_settings_given(page, tmp_path):
    (tmp_path / "chosen.csv").write_text(csv())
    page.run("document.querySelector('#horizon').value = 7")
    page.choose(tmp_path / "chosen.csv")
    page.status("done")
    assert page.text("#heading") == "chosen: the next 7 bars"
    first = page.text("#table")
    page.run("document.querySelector('#seed').value = 5; document.querySelector('#status').className = ''")
    page.run("document.querySelector('#go').click()")
    page.status("done")
    assert page.text("#table") != first


def test_a_wrong_csv_is_told_by_row_and_column_and_a_right_one_is_read_after_it(page):
    frame = make_frame(20).astype({"low": object})
    frame.loc[3, "low"] = "x"
    page.drop("wrong.csv", frame.to_csv(index=False))
    assert "wrong.csv, row 5, column 'low': 'x' is not a number" in page.status("wrong")
    assert page.run("document.querySelector('#result').hidden && document.querySelector('#go').disabled")
    page.drop("picture.png", "\\x89PNG")
    page.until("document.querySelector('#status').textContent.includes('picture.png')")
    page.drop("right.csv", csv())
    assert page.status("done").startswith("right")


def test_a_market_that_closes_needs_its_exchange(page):
    frame = make_frame(48)
    session = [f"{hour:02}:{minute:02}" for hour in range(9, 16) for minute in range(0, 60, 5)]
    open_then = [time for time in session if "09:35" <= time <= "11:30" or "13:05" <= time <= "15:00"]
    frame["timestamps"] = [f"2024-06-17 {time}" for time in open_then]
    page.drop("stock.csv", frame.to_csv(index=False))
    assert "this market closes" in page.status("wrong")
    page.run("{ const one = document.querySelector('#calendar'); one.value = 'XSHG'; one.dispatchEvent(new Event('change')); }")
    page.until("document.querySelector('#status').className === 'done'")
    assert page.text("#table tbody td") == "2024-06-18 09:35:00"


def test_a_setting_beyond_its_limit_is_told_with_its_field(page):
    page.run("document.querySelector('#horizon').max = 9999; document.querySelector('#horizon').value = 600")
    page.drop("mine.csv", csv())
    assert "horizon: Input should be less than or equal to 512" in page.status("wrong")


def test_the_page_speaks_english_and_chinese(page):
    page.run("document.querySelector('#sample').click()")
    page.status("done")
    words = page.run("import('/static/words.js').then(({WORDS}) => Object.values(WORDS).map((said) => Object.keys(said).sort().join()))")
    assert words[0] == words[1]
    page.run("document.querySelector('#language').click()")
    assert page.run("document.documentElement.lang") == "zh-CN"
    assert page.text("h1") == "Kronos 预测"
    assert "根" in page.text("#status") and "K 线" in page.run("document.querySelector('#chart svg').getAttribute('aria-label')")
    page.run("document.querySelector('#language').click()")
    assert page.text("h1") == "Kronos forecast"


def test_it_can_be_used_without_a_mouse_and_without_seeing_the_picture(page):
    page.run("document.querySelector('#sample').click()")
    page.status("done")
    controls = "[...document.querySelectorAll('input, button, a, summary')]"
    unnamed = page.run(f"{controls}.filter((one) => !(one.labels?.length || one.textContent.trim())).map((one) => one.id)")
    assert unnamed == []
    assert page.run("document.querySelector('#status').getAttribute('aria-live')") == "polite"
    assert "24 forecast bars" in page.run("document.querySelector('#chart svg[role=img]').getAttribute('aria-label')")
    page.run("document.querySelector('#chart').focus()")
    page.call("Input.dispatchKeyEvent", type="keyDown", key="End", code="End", windowsVirtualKeyCode=35)
    assert "90 %" in page.text("#chart output")
    page.call("Input.dispatchKeyEvent", type="keyDown", key="Home", code="Home", windowsVirtualKeyCode=36)
    assert page.text("#chart output").startswith("2024-") or " O " in page.text("#chart output").replace("\n", " ")


def test_nothing_is_asked_of_another_host_and_nothing_goes_wrong_inside(page, address):
    page.run("document.querySelector('#sample').click()")
    page.status("done")
    page.open(address + "/docs")
    page.until("document.querySelectorAll('.fields').length >= 4")
    asked = {event["params"]["request"]["url"] for event in page.events if event["method"] == "Network.requestWillBeSent"}
    assert {f"{address}/predict", f"{address}/openapi.json"} <= asked
    assert all(url.startswith((address, "data:", "blob:")) for url in asked), asked
    assert [event for event in page.events if event["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")] == []
