"""A real headless Chromium, driven through its DevTools protocol over two pipes: no driver and no library."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from select import select
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
DEADLINE = 60.0
KEYS = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, "Escape": 27, "Enter": 13, " ": 32, "Tab": 9}


def find_chromium() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class _Navigated(Exception):
    """There is no answer, since the page is another one by now; or the question was wrong."""


class Page:
    """One tab: what it says on its console is kept."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._rest, self._numbers, self._session = write, read, b"", count(1), None
        self.complaints: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        self.requests: list[str] = []

    def open(self, path: Path, *, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        self.resize(width, height)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[theme])
        self._call("Page.navigate", url=path.absolute().as_uri())
        self.wait("document.readyState === 'complete'")

    def resize(self, width: int, height: int) -> None:
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        told = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until `condition` holds; the page may be read again meanwhile."""
        until = time.monotonic() + DEADLINE
        while time.monotonic() < until:
            with suppress(_Navigated):
                if self.run(f"!!({condition})"):
                    return
            time.sleep(0.05)
        raise AssertionError(f"this never came true: {condition}")

    def press(self, key: str) -> None:
        code = {"key": key, "windowsVirtualKeyCode": KEYS[key], "code": key.replace(" ", "Space")}
        text = {"Enter": "\r", " ": " "}.get(key)
        self._call("Input.dispatchKeyEvent", type="keyDown", **code, **({"text": text} if text else {}))
        self._call("Input.dispatchKeyEvent", type="keyUp", **code)

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        told = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(told["data"]))

    def names(self) -> list[tuple[str, str]]:
        """What a screen reader finds: the role and the name of every node."""
        nodes = self._call("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node["ignored"] and "role" in node
        ]

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            told = self._receive()
            if told.get("id") == number:
                if "error" in told:
                    raise _Navigated(f"{method}: {told['error']['message']}")
                return told["result"]
            self._note(told)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select([self._read], [], [], DEADLINE)
            part = os.read(self._read, 1 << 20) if ready else b""
            assert part, "Chromium is gone, or says nothing any more"
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)

    def _note(self, told: dict[str, Any]) -> None:
        parameters = told.get("params", {})
        match told.get("method"):
            case "Runtime.exceptionThrown":
                details = parameters["exceptionDetails"]
                self.complaints.append(details.get("exception", {}).get("description", details["text"]))
            case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "warning", "assert"):
                self.complaints.append(str([part.get("value") for part in parameters["args"]]))
            case "Log.entryAdded":
                self.complaints.append(parameters["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """Start Chromium and yield a tab."""
    there, our_write = os.pipe()
    our_read, back = os.pipe()
    program = find_chromium()
    assert program is not None
    options = (
        "--headless=new --no-sandbox --disable-gpu --hide-scrollbars --no-first-run --disable-extensions "
        f"--disable-background-networking --disable-dev-shm-usage --remote-debugging-pipe --user-data-dir={profile}"
    )
    process = subprocess.Popen(
        # The protocol wants to be read from descriptor 3 and written to 4.
        ["bash", "-c", f'exec "$0" "$@" 3<&{there} 4>&{back} 2>/dev/null', program, *options.split(), "about:blank"],
        pass_fds=(there, back),
        stdout=subprocess.DEVNULL,
    )
    os.close(there)
    os.close(back)
    try:
        yield Page(our_write, our_read)
    finally:
        with suppress(OSError):
            os.close(our_write)
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(our_read)
