"""A page in headless Chromium, driven over its DevTools: for tests of what a report does."""

import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = "needs Chromium (Debian: apt-get install chromium) and websocket-client"


class Page:
    """One page: what is evaluated in it, and what it has complained of or asked the network for."""

    def __init__(self, socket):
        self.socket, self.numbers = socket, itertools.count(1)
        self.complaints, self.requests = [], []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def _note(self, message):
        method, what = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(what["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(what["exceptionDetails"])
        elif method == "Log.entryAdded" and what["entry"]["level"] in ("warning", "error"):
            self.complaints.append(what["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append([each.get("value") for each in what["args"]])

    def open(self, path, width=1280, height=900, dark=False):
        """Show a file; the seconds until it is drawn."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.requests.clear()
        self.complaints.clear()
        begun = time.perf_counter()
        self.call("Page.navigate", url=Path(path).resolve().as_uri())
        address = json.dumps(Path(path).name)
        while not self.ask(
            f"decodeURI(location.pathname).endsWith({address}) && document.readyState === 'complete'"
        ):
            time.sleep(0.01)
        return time.perf_counter() - begun

    def ask(self, expression):
        """The value of an expression in JavaScript; of a promise, what it promises."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key):
        for kind in ("keyDown", "keyUp"):
            text = {"text": key} if kind == "keyDown" and len(key) == 1 else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, **text)

    def choose(self, id, value):
        """Set a control, as a person does."""
        self.ask(
            f"(() => {{ const it = document.getElementById({json.dumps(id)}); it.value = "
            f"{json.dumps(str(value))}; for (const kind of ['input', 'change']) "
            "it.dispatchEvent(new Event(kind, {bubbles: true})); })()"
        )

    def texts(self, selector):
        return self.ask(
            f"[...document.querySelectorAll({json.dumps(selector)})].map(x => x.textContent)"
        )

    def overflow(self):
        """What is wider than the page, except inside of what scrolls by itself."""
        return self.ask(
            """[...document.querySelectorAll('body *')].filter(x => !x.closest('.scroll, nav ul, svg')
            && !x.classList.contains('skip')
            && x.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
            .map(x => x.tagName + '.' + x.className + ' ' + x.textContent.slice(0, 40))
            .concat(document.documentElement.scrollWidth > innerWidth ? ['the page'] : [])"""
        )

    def picture(self, path):
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 14000)}
        found = self.call(
            "Page.captureScreenshot", captureBeyondViewport=True, clip={**clip, "scale": 1}
        )
        Path(path).write_bytes(base64.b64decode(found["data"]))


@contextmanager
def open_browser():
    """A page of a browser that knows nobody."""
    from websocket import create_connection

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        flags += ["--remote-debugging-port=0", "--remote-allow-origins=*", "--no-first-run"]
        flags += ["--disable-background-networking", f"--user-data-dir={folder}", "about:blank"]
        with subprocess.Popen(
            [CHROMIUM, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                port = _wait_for(Path(folder) / "DevToolsActivePort", process)
                yield Page(create_connection(_address(port), timeout=60, suppress_origin=True))
            finally:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()


def _wait_for(path, process):
    for _ in range(600):
        lines = path.read_text().split() if path.exists() else []
        if len(lines) == 2:
            return int(lines[0])
        assert process.poll() is None, "Chromium ended before it began"
        time.sleep(0.05)
    raise TimeoutError("Chromium does not answer")


def _address(port):
    from urllib.request import urlopen

    with urlopen(f"http://127.0.0.1:{port}/json/list", timeout=20) as answer:
        return next(x for x in json.load(answer) if x["type"] == "page")["webSocketDebuggerUrl"]
