"""A real browser, driven by its own protocol: Chromium without a window, where it is installed."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

_START = 60.0  # seconds
_LOOK = 0.2
_ALL_TEXT = """
(() => {
  const found = [];
  const visit = node => {
    if (node.nodeType === Node.TEXT_NODE && node.textContent.trim()) found.push(node.textContent.trim());
    if (["STYLE", "SCRIPT", "TEMPLATE"].includes(node.nodeName)) return;
    if (node.shadowRoot) visit(node.shadowRoot);
    node.childNodes.forEach(visit);
  };
  visit(document.body);
  return found.join("\\n");
})()
"""


class Browser:
    """A browser with one page. A context manager."""

    def __init__(self, folder: Path) -> None:
        assert CHROMIUM is not None, "tests that need it are skipped without it"
        self._folder = folder / "browser"
        self._process = subprocess.Popen(
            [
                CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                "--remote-debugging-port=0", f"--user-data-dir={self._folder}", "--window-size=1400,1600",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._loop = asyncio.new_event_loop()
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        port = self._port()
        self._session = self._loop.run_until_complete(self._connect(port))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.run_until_complete(self._session.close())
        self._loop.close()
        self._process.terminate()
        self._process.wait(30)

    def _port(self) -> int:
        file, end = self._folder / "DevToolsActivePort", time.monotonic() + _START
        while not (file.exists() and file.read_text().strip()):
            assert time.monotonic() < end, "the browser did not start"
            time.sleep(_LOOK)
        return int(file.read_text().split()[0])

    async def _connect(self, port: int) -> aiohttp.ClientSession:
        session = aiohttp.ClientSession()
        async with session.get(f"http://127.0.0.1:{port}/json") as answer:
            pages = await answer.json()
        page = next(page for page in pages if page["type"] == "page")
        self._socket = await session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)
        return session

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._loop.run_until_complete(asyncio.wait_for(self._asked(method, parameters), _START))

    async def _asked(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_str(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            said = json.loads((await self._socket.receive()).data)
            if said.get("id") == number:
                assert "error" not in said, said
                result: dict[str, Any] = said["result"]
                return result

    def open(self, url: str) -> None:
        """Goes to a page."""
        self._ask("Page.navigate", url=url)

    def text(self) -> str:
        """All text of the page, also that inside its components."""
        return str(self.run(_ALL_TEXT))

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression on the page."""
        return self._ask("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def value_of(self, script: str) -> Any:
        """As ``run``, of a promise once it is kept."""
        return self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)["result"].get(
            "value"
        )

    def wait_for(self, *texts: str, seconds: float = 120.0) -> str:
        """Waits until the page shows all these; gives all of its text."""
        end = time.monotonic() + seconds
        while not all(text in (shown := self.text()) for text in texts):
            assert time.monotonic() < end, f"{texts} did not come:\n{shown}"
            time.sleep(_LOOK)
        return shown

    def screenshot(self, file: Path) -> None:
        """Writes what the page looks like as a PNG."""
        file.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"]))
