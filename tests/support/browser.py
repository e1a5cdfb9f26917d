"""A headless Chromium, driven through a pipe: what a page draws, says and asks a network for."""

import base64
import io
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

CHROMIUM = shutil.which("chromium")
_FLAGS = [
    *("--headless", "--no-sandbox", "--hide-scrollbars", "--mute-audio", "--no-first-run"),
    *("--disable-quic", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-extensions", "--remote-debugging-pipe"),
]
_SOFTWARE_GL = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


class Browser:
    """One page in a browser of its own.

    Args:
        page: an HTML file.
        width, height: of the window in CSS pixels.
        dark: the colour scheme of the system.
        gl: whether it has WebGL, computed on the CPU.
    """

    def __init__(self, page, *, width=1200, height=900, dark=False, gl=True):
        self.requests, self.errors = [], []
        self._replies, self._count, self._rest = {}, 0, b""
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_browser, self._to = os.pipe()
        self._from, from_browser = os.pipe()
        flags = [*_FLAGS, *(_SOFTWARE_GL if gl else ["--disable-gpu", "--disable-3d-apis"])]
        environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
        # The protocol is on descriptors 3 and 4, which the shell copies.
        script = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, CHROMIUM, *flags, f"--user-data-dir={self._profile.name}"],
            pass_fds=(to_browser, from_browser),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=Path(page).resolve().as_uri())
        self.wait("document.readyState === 'complete'")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self._to)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._from)
        self._profile.cleanup()

    def call(self, method, **arguments):
        """A command of the DevTools protocol and its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": arguments}
        if self._session:
            message["sessionId"] = self._session
        content = json.dumps(message).encode() + b"\0"
        while content:
            content = content[os.write(self._to, content) :]
        while self._count not in self._replies:
            self._receive()
        reply = self._replies.pop(self._count)
        assert "error" not in reply, f"{method}: {reply}"
        return reply["result"]

    def resize(self, width, height):
        """Give the window another size."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def run(self, expression):
        """The value of an expression, awaited."""
        result = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression, seconds=60):
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(expression):
            assert time.monotonic() < end, f"never: {expression}; {self.errors}"
            time.sleep(0.05)

    def screenshot(self, path=None, *, whole=False):
        """What is seen, (height, width, 3) in [0, 1]; ``whole``: also below the window."""
        from matplotlib.image import imread

        shown = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        content = base64.b64decode(shown["data"])
        if path:
            Path(path).write_bytes(content)
        return imread(io.BytesIO(content))[..., :3]

    def pdf(self, path):
        """Print the page."""
        Path(path).write_bytes(base64.b64decode(self.call("Page.printToPDF")["data"]))

    def _receive(self):
        while b"\0" not in self._rest:
            part = os.read(self._from, 1 << 20)
            assert part, "the browser is gone"
            self._rest += part
        content, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(content)
        if "id" in message:
            self._replies[message["id"]] = message
            return
        name, facts = message["method"], message["params"]
        if name == "Network.requestWillBeSent":
            url = facts["request"]["url"]
            if url.partition(":")[0] not in ("data", "blob", "file", "about"):
                self.requests.append(url)
        elif name == "Runtime.exceptionThrown":
            self.errors.append(str(facts["exceptionDetails"]))
        elif name == "Runtime.consoleAPICalled" and facts["type"] in ("error", "warning"):
            self.errors.append(str([x.get("value", x.get("description")) for x in facts["args"]]))
        elif name == "Log.entryAdded" and facts["entry"]["level"] in ("error", "warning"):
            self.errors.append(facts["entry"]["text"])
