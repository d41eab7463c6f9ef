"""Fixtures that come with lens-core's `testing` extra; Lens is imported only when a test asks for one."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from lens_core.registry import Registry

__all__ = ["lens_registry", "no_network", "tiny_images"]


@pytest.fixture(scope="session")
def lens_registry() -> Registry:
    """Every component that is installed."""
    from lens_core.registry import load_registry

    return load_registry()


@pytest.fixture
def tiny_images() -> list[Any]:
    """Four small PNGs of one colour each, as `lens_core.contracts.ImageItem`."""
    import io

    from PIL import Image

    from lens_core.contracts import ImageItem
    from lens_core.storage.shards import image_key

    items = []
    for colour in ("red", "green", "blue", "white"):
        stream = io.BytesIO()
        Image.new("RGB", (48, 32), colour).save(stream, "PNG")
        data = stream.getvalue()
        items.append(ImageItem(key=image_key(data), data=data))
    return items


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections to anything but this machine fail at once, and model hubs are told that they are offline."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    connect = socket.socket.connect

    def only_loopback(self: socket.socket, address: Any) -> Any:
        host = address[0] if isinstance(address, tuple) else ""
        if self.family != socket.AF_UNIX and host not in {"127.0.0.1", "::1", "localhost"}:
            raise OSError(f"a test tried to reach {address!r}; tests talk to this machine only")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", only_loopback)
