"""The server in a process of its own, for benchmarks and long kill tests: it shares no interpreter with its client."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import urllib.request
from typing import Any

__all__ = ["ServerProcess"]

_PATIENCE_S = 20


class ServerProcess:
    """`python -m lens_caption.testing.openai_server` as a context manager.

    Args:
        arguments: options of the command line; the port is a free one.

    Raises:
        RuntimeError: the options are wrong, or it did not start; the message is what it said.
    """

    def __init__(self, *arguments: str):
        command = [sys.executable, "-m", "lens_caption.testing.openai_server", "--port", "0", *arguments]
        # A file, since a pipe that nobody reads would stop a server that complains for long.
        self._complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._complaints, text=True)
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        if not said.startswith("listening on "):
            self.process.communicate()
            self._complaints.seek(0)
            last = self._complaints.read().strip().rpartition("\n")[2]
            self._complaints.close()
            raise RuntimeError(f"the fake server did not start: {last}")
        self.url = said.split()[-1]
        """What to set as `base_url`."""

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *details: object) -> None:
        self.stop()

    def ask(self, path: str, value: Any = None) -> Any:
        """What one of the server's own paths says, such as `ask("/_ledger?entries=1")`; a value is posted."""
        data = None if value is None else json.dumps(value).encode()
        request = urllib.request.Request(self.url.removesuffix("/v1") + path, data)
        with urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer:
            return json.loads(answer.read())

    def stop(self) -> str:
        """End it; its last line, with what it billed."""
        self.process.terminate()
        said, _ = self.process.communicate(timeout=_PATIENCE_S)
        self._complaints.close()
        return said.strip()
