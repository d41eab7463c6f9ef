"""What is sent for one image, and who can make it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lens_caption.engine.settings import LaneName
    from lens_caption.profiles import Profile, Usage
    from lens_caption.profiles.schema import Lane
    from lens_core.contracts import CaptionOutcome, ImageItem

__all__ = ["PROFILE_LANES", "BadImage", "Endpoint", "PreparedRequest", "RequestCaptioner"]

PROFILE_LANES: dict[LaneName, Lane] = {"sync": "standard", "flex": "flex", "batch": "batch", "files": "standard"}
"""What the profiles call the lanes."""


@dataclass(frozen=True, kw_only=True)
class PreparedRequest:
    """A request, ready to be sent or to be written into a batch; both send these bytes.

    Args:
        key: of the image.
        path: below the endpoint's base URL, such as "/chat/completions".
        body: JSON.
        input_tokens: about how many it has, rather more than less.
        max_output_tokens: the most that it allows.
    """

    key: str
    path: str
    body: bytes
    input_tokens: int
    max_output_tokens: int
    hash: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "hash", hashlib.sha256(self.path.encode() + b"\n" + self.body).hexdigest())

    @property
    def most_tokens(self) -> int:
        """What a rate limit counts when the request is admitted."""
        return self.input_tokens + self.max_output_tokens


@dataclass(frozen=True, kw_only=True)
class BadImage:
    """An image that no request could be made of."""

    key: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where requests go. The headers carry the key: this is never journalled, printed or pickled.

    Args:
        url: up to and with /v1.
        model: that is asked, for messages.
        headers: of every request.
        query: of every request, such as Azure's `api-version`.
        files_url: where files and batches are, if not there.
        lines_root: what stands before the path in the lines of a batch.
        keep_files_s: for how long the server is to keep the files of a batch; None leaves it to the server.
        timeout_s: for one answer.
        concurrency: requests in flight.
        max_attempts: tries of one request in one run.
        max_wait_s: longest pause between two tries.
    """

    url: str
    model: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    query: Mapping[str, str] = field(default_factory=dict)
    files_url: str = ""
    lines_root: str = "/v1"
    keep_files_s: int | None = None
    timeout_s: float = 120
    concurrency: int = 8
    max_attempts: int = 6
    max_wait_s: float = 60

    def address(self, path: str) -> str:
        """Where a path is."""
        return (self.files_url or self.url) + path if path.startswith(("/files", "/batches")) else self.url + path

    def refusal(self, reason: str) -> str:
        """The message when it refuses everything."""
        return f"{self.url} refuses the model {self.model!r}: {reason}"


@runtime_checkable
class RequestCaptioner(Protocol):
    """A captioner whose requests the engine sends."""

    endpoint: Endpoint
    layers: tuple[str, ...]

    @property
    def profile(self) -> Profile:
        """What is known of the model; raises `ConfigError` if nothing is."""
        ...

    def preparer(self, lane: LaneName) -> Callable[[str, bytes], PreparedRequest | BadImage]:
        """A function of an image's key and bytes that makes its request; it can be pickled."""
        ...

    def request_for(self, item: ImageItem, lane: LaneName = "sync") -> PreparedRequest:
        """The request of one image; raises `ImageError`."""
        ...

    def read(self, key: str, answer: Any) -> tuple[CaptionOutcome, Usage | None]:
        """What an answer's JSON says, and what it was billed for; None if it does not say."""
        ...
