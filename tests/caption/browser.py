"""A real Chromium, driven over its DevTools socket: what a page shows, asks for, complains about and runs."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
import time

import aiohttp
import pytest

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
    "--remote-debugging-port=0",
]


class DevToolsError(Exception):
    """Chromium refuses a command."""


class Browser:
    """One tab. `asked` are the addresses it asked for, `complaints` what it said of policies and errors."""

    def __init__(self, profile):
        chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        if chromium is None:
            # A visitor's checkout may lack a browser; our own CI may not.
            lacking = pytest.fail if os.environ.get("CI") else pytest.skip
            lacking("this test opens a page in a browser, and there is none: apt-get install -y chromium")
        self.asked, self.complaints, self.dialogs = [], [], []
        self._number = 0
        self._loop = asyncio.new_event_loop()
        self._process = subprocess.Popen(
            [chromium, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._session = self._socket = None
        try:
            self._run(self._connect(profile / "DevToolsActivePort"))
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def call(self, method, **parameters):
        """A DevTools command and its result."""
        return self._run(self._call(method, parameters))

    def size(self, width, height):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def open(self, url):
        """Go to an address and wait until it is loaded."""
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def see(self, expression):
        """The value of an expression in the page."""
        told = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def wait(self, expression, seconds=60):
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while not self._is_true(expression):
            assert time.monotonic() < end, f"{expression} never came true; {self.see('document.body.innerText')}"
            time.sleep(0.05)

    def reload(self):
        """Load the page anew and wait until it is there: not the old one, which is complete already."""
        self.see("window.isOld = true")
        self.call("Page.reload")
        self.wait("!window.isOld && document.readyState === 'complete'")

    def _is_true(self, expression):
        try:
            return self.see(expression)
        except DevToolsError:  # the page has just gone, and another comes
            return False

    def settle(self, seconds=0.4):
        """Give the page time to do what it should not."""
        self.see(f"new Promise(done => setTimeout(done, {int(seconds * 1000)}))")

    def press(self, key, *, control=False):
        """A key, as a person presses it."""
        codes = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39}
        text = "\r" if key == "Enter" else key if len(key) == 1 else ""
        common = {"key": key, "windowsVirtualKeyCode": codes.get(key) or ord(key.upper()), "modifiers": 2 * control}
        self.call(
            "Input.dispatchKeyEvent", type="keyDown", **common, **({"text": text} if text and not control else {})
        )
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text):
        self.call("Input.insertText", text=text)

    def picture(self, path, *, full=False):
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self):
        if self._session is not None:
            self._run(self._session.close())
        self._process.kill()
        self._process.wait()
        self._loop.close()

    def _run(self, work):
        return self._loop.run_until_complete(asyncio.wait_for(work, 150))

    async def _connect(self, file):
        end = time.monotonic() + 120
        while not (file.exists() and len(file.read_text().splitlines()) == 2):
            assert time.monotonic() < end, "Chromium does not start"
            assert self._process.poll() is None, f"Chromium ended with {self._process.returncode}"
            await asyncio.sleep(0.05)
        port = file.read_text().splitlines()[0]
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            pages = [target for target in await answer.json(content_type=None) if target["type"] == "page"]
        self._socket = await self._session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)

    async def _call(self, method, parameters):
        self._number += 1
        await self._socket.send_str(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads((await self._socket.receive()).data)
            if message.get("id") == self._number:
                if "error" in message:
                    raise DevToolsError(message["error"])
                return message["result"]
            await self._event(message)

    async def _event(self, message):
        name, told = message.get("method"), message.get("params", {})
        if name == "Network.requestWillBeSent":
            self.asked.append(told["request"]["url"])
        elif name == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(told["exceptionDetails"])[:500])
        elif name == "Log.entryAdded":
            self.complaints.append(told["entry"]["text"])
        elif name == "Runtime.consoleAPICalled":
            self.complaints.append(json.dumps(told["args"])[:500])
        elif name == "Page.javascriptDialogOpening":
            self.dialogs.append(told["message"])
            self._number += 1
            await self._socket.send_str(
                json.dumps({"id": self._number, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}})
            )
