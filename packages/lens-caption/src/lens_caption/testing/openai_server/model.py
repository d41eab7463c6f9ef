"""The "model": reads a request as strictly as the API, looks at the pixels, answers, and bills."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image
from pydantic import ValidationError

from lens_caption.testing.openai_server.answers import Reply, body_of, error_body
from lens_caption.testing.openai_server.azure import POLICY_VIOLATION
from lens_caption.testing.openai_server.ledger import LedgerEntry
from lens_caption.testing.openai_server.pixels import (
    caption_of,
    caption_without_looking,
    number_in_text,
    number_of,
    numbered_image,
)
from lens_caption.testing.openai_server.schemas import (
    ChatRequest,
    ImagePart,
    ResponsesRequest,
    first_fault,
    strict_schema_fault,
)
from lens_caption.testing.openai_server.structured import fill
from lens_caption.testing.openai_server.tokens import PriceList, facts_of, image_tokens, message_tokens, text_tokens
from lens_core.errors import ImageError
from lens_core.images import decode, header

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from decimal import Decimal

    from lens_caption.testing.openai_server.azure import Azure
    from lens_caption.testing.openai_server.clock import Clock
    from lens_caption.testing.openai_server.ledger import Ledger
    from lens_caption.testing.openai_server.schemas import Prompt

__all__ = ["ENDPOINTS", "Asked", "Look", "Model", "ModelSettings", "Refused"]

ENDPOINTS: dict[str, type[ChatRequest] | type[ResponsesRequest]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/responses": ResponsesRequest,
    "/chat/completions": ChatRequest,  # in the batches of Azure's older API
}

_KINDS = ("jpeg", "png", "webp", "gif")
_REASONING = {"none": 0, "minimal": 16, "low": 64, "medium": 256, "high": 1024, "xhigh": 4096}
_DEFAULT_OUTPUT = 4096
_REMEMBERED = 4096
_PREFIX = 1000
_DRAFT_SIDE = 96

Look = Literal["pixels", "draft", "header"]


class Refused(Exception):
    """A request that the API would refuse."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        *,
        more: Mapping[str, Any] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.body = error_body(code, message, param=param)
        self.body["error"].update(more or {})


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """What of the server concerns the answers; `FakeServer` says what each means."""

    words: int = 0
    like: Mapping[str, str] = field(default_factory=dict)
    prices: Mapping[str, tuple[Decimal | str, Decimal | str]] = field(default_factory=dict)
    look: Look = "pixels"
    prefix_cache: bool = False
    max_data_url_chars: int | None = None
    allow: frozenset[str] = frozenset()
    text_only: bool = False
    retired: frozenset[str] = frozenset({"no-such-model"})
    azure: Azure | None = None


@dataclass(frozen=True, kw_only=True)
class Received:
    """An image as it came: sha256 of the file, what it shows, what it costs."""

    digest: str
    caption: str
    number: int | None
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request that is fit to be answered."""

    prompt: Prompt
    images: list[Received]
    input_tokens: int
    cache_key: str

    @property
    def digest(self) -> str:
        """sha256 of the first image's file; of the text if there is none."""
        return self.images[0].digest if self.images else hashlib.sha256(self.cache_key.encode()).hexdigest()

    @property
    def number(self) -> int | None:
        """That the first image bears."""
        return self.images[0].number if self.images else None

    @property
    def most_tokens(self) -> int:
        """What the limits count when it is admitted."""
        return self.input_tokens + (self.prompt.max_output or _DEFAULT_OUTPUT)


class Model:
    """Reads and answers; safe to use from several threads.

    Args:
        settings: what it is like.
        ledger: where it bills.
        clock: for the times in answers and ledger.
        file_of: gives an uploaded image's bytes by its id, or raises `KeyError`.
    """

    def __init__(self, settings: ModelSettings, ledger: Ledger, clock: Clock, file_of: Callable[[str], bytes]):
        self.settings = settings
        self._ledger = ledger
        self._clock = clock
        self._file_of = file_of
        self._prices = PriceList(settings.prices, settings.like)
        self._lock = threading.Lock()
        self._answered = 0
        self._seen: OrderedDict[str, tuple[int, int, str, int | None]] = OrderedDict()
        self._recent: deque[tuple[str, str]] = deque(maxlen=64)
        self._cached: dict[str, str] = {}

    def read(self, path: str, value: Any) -> Asked:
        """Check a request and look at its images.

        Args:
            path: from `ENDPOINTS`.
            value: the body, parsed.

        Raises:
            Refused: with status and body.
        """
        if isinstance(value, dict):
            value = {key: item for key, item in value.items() if key not in self.settings.allow}
        try:
            prompt = ENDPOINTS[path].model_validate(value).prompt()
        except ValidationError as error:
            where, message, unknown = first_fault(error)
            raise Refused(400, "unknown_parameter" if unknown else "invalid_value", message, where) from None
        self._check(prompt)
        images = [self._receive(part, prompt) for part in prompt.images]
        if self.settings.azure and any(image.number in self.settings.azure.filters for image in images):
            message = "The prompt was filtered by the content management policy."
            raise Refused(400, "content_filter", message, "prompt", more=POLICY_VIOLATION)
        if not self.settings.text_only and not images:
            raise Refused(400, "invalid_request", "The fake server wants an image with every request.")
        if not any(text.strip() for text in prompt.texts):
            raise Refused(400, "invalid_request", "The fake server wants a text with every request.")
        texts = [*prompt.texts, *([repr(prompt.json)] if prompt.json else [])]
        key = "\0".join([prompt.model, *texts, *(part.url[:_PREFIX] for part in prompt.images)])
        tokens = message_tokens(texts, prompt.messages) + sum(image.tokens for image in images)
        return Asked(prompt=prompt, images=images, input_tokens=tokens, cache_key=key)

    def answer(self, asked: Asked, fault: str = "ok", *, custom_id: str = "", batch: str = "") -> dict[str, Any]:
        """Answer and bill: the body of the answer.

        Args:
            asked: from `read`.
            fault: what the answer suffers from.
            custom_id: for the ledger.
            batch: id of the batch that asks.
        """
        prompt = asked.prompt
        text, ending, reasoning = self._say(asked, fault)
        tier = "default" if fault == "downgraded" or prompt.tier in {"auto", "scale", "fast"} else prompt.tier
        billed_tier = "batch" if batch else tier
        served = prompt.model if "-20" in prompt.model else f"{prompt.model}-2026-01-01"
        output_tokens = reasoning + text_tokens(text)
        natural = {"stop": "ok", "length": "length" if text else "empty"}.get(ending, ending)
        with self._lock:
            self._answered += 1
            number = f"{asked.digest[:12]}-{self._answered}-{len(self._ledger)}"
        reply = Reply(
            id=number,
            created=int(self._clock.now()),
            model="another-model-2026-01-01" if fault == "renamed" else served,
            tier="default" if batch else tier,
            text=text,
            ending=ending,
            refused=fault == "refusal",
            input_tokens=asked.input_tokens,
            output_tokens=output_tokens,
            reasoning_tokens=reasoning,
            choices=fault != "empty-choices",
        )
        body = body_of(prompt.api, reply)
        entry = LedgerEntry(
            image=asked.digest,
            model=prompt.model,
            input_tokens=asked.input_tokens,
            output_tokens=output_tokens,
            outcome=natural if fault == "ok" else fault,
            custom_id=custom_id,
            tier=billed_tier,
            cost=self._prices.cost(prompt.model, billed_tier, asked.input_tokens, output_tokens),
            reasoning_tokens=reasoning,
            number=asked.number,
            response_id=body["id"],
            batch=batch,
            at=self._clock.now(),
        )
        self._ledger.add(entry)
        if self.settings.azure:
            self.settings.azure.annotate(body)
        return body

    def _check(self, prompt: Prompt) -> None:
        """What a parameter means to a model, rather than to the schema."""
        if prompt.model in self.settings.retired:
            message = f"The model `{prompt.model}` does not exist or you do not have access to it."
            raise Refused(404, "model_not_found", message, "model")
        facts = facts_of(prompt.model, self.settings.like)
        known = facts.price is not None
        effort = prompt.effort or facts.effort
        if facts.reasons and prompt.max_output and prompt.max_name == "max_tokens":
            message = "Unsupported parameter: 'max_tokens' is not supported with this model. "
            raise Refused(400, "unsupported_parameter", f"{message}Use 'max_completion_tokens' instead.", "max_tokens")
        if facts.reasons and effort != "none" and prompt.temperature not in {None, 1}:
            message = f"Unsupported value: 'temperature' does not support {prompt.temperature} with this model."
            raise Refused(400, "unsupported_value", message, "temperature")
        if known and not facts.reasons and prompt.effort is not None:
            name = "reasoning_effort" if prompt.api == "chat" else "reasoning.effort"
            message = f"Unsupported parameter: '{name}' is not supported with this model."
            raise Refused(400, "unsupported_parameter", message, name)
        if known and not facts.reasons and any(part.detail == "original" for part in prompt.images):
            raise Refused(400, "invalid_value", "Invalid value: 'original' is not supported with this model.", "detail")
        if prompt.strict and (fault := strict_schema_fault(prompt.json)):
            raise Refused(400, "invalid_json_schema", f"Invalid schema for response_format: {fault}", "response_format")

    def _receive(self, part: ImagePart, prompt: Prompt) -> Received:
        limit = self.settings.max_data_url_chars
        if limit is not None and prompt.api == "responses" and len(part.url) > limit:
            message = (
                "Invalid 'input[0].content[1].image_url'. Expected a valid URL, but got a value with an invalid format."
            )
            raise Refused(400, "invalid_value", message, "input[0].content[1].image_url")
        try:
            data = self._file_of(part.file_id) if part.file_id else _bytes_of(part.url)
            digest = hashlib.sha256(data).hexdigest()
            width, height, caption, number = self._look(digest, data)
        except KeyError:
            raise Refused(400, "invalid_image", f"No such file: {part.file_id}") from None
        except (ImageError, ValueError) as error:
            raise Refused(400, "invalid_image", f"the image cannot be used: {error}") from None
        facts = facts_of(prompt.model, self.settings.like)
        tokens = image_tokens(facts, width, height, part.detail)
        return Received(digest=digest, caption=caption, number=number, tokens=tokens)

    def _look(self, digest: str, data: bytes) -> tuple[int, int, str, int | None]:
        """Width, height, caption and number of an image; remembered, since clients ask again."""
        with self._lock:
            if digest in self._seen:
                self._seen.move_to_end(digest)
                return self._seen[digest]
        if self.settings.look == "header":
            info = header(data)
            text = caption_without_looking(digest, info.width, info.height, self.settings.words)
            seen: tuple[int, int, str, int | None] = (info.width, info.height, text, None)
        else:
            info = header(data)
            pixels = decode(data) if self.settings.look == "pixels" else _small_copy(data)
            text = caption_of(pixels, self.settings.words, size=(info.width, info.height))
            seen = (info.width, info.height, text, number_of(pixels))
        with self._lock:
            self._seen[digest] = seen
            if len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
        return seen

    def _say(self, asked: Asked, fault: str) -> tuple[str, str, int]:
        """The text, why it ends, and the tokens of reasoning before it."""
        prompt = asked.prompt
        caption = "\n".join(image.caption for image in asked.images) or "No image came with this question."
        if self.settings.prefix_cache:
            with self._lock:
                caption = self._cached.setdefault(asked.cache_key, caption)
        if fault == "swapped":
            caption = self._about_another(asked.digest)
        elif asked.images:
            with self._lock:
                self._recent.append((asked.digest, caption))
        caption = _spoilt(caption, fault)
        text = caption if prompt.json is None or fault == "schema-invalid" else fill(prompt.json, caption)
        facts = facts_of(prompt.model, self.settings.like)
        reasoning = _REASONING[prompt.effort or facts.effort] if facts.reasons or prompt.effort else 0
        limit = prompt.max_output or _DEFAULT_OUTPUT
        if fault in {"refusal", "content-filter"}:
            return "", "content_filter" if fault == "content-filter" else "stop", min(reasoning, limit)
        if fault == "refusal-prose":
            text = "I'm sorry, I can't help with that."
        if fault == "empty" or reasoning >= limit:
            return "", "length", limit
        room = limit - reasoning
        if fault == "length":
            room = min(room, text_tokens(text) // 2)
        if text_tokens(text) <= room:
            return text, "stop", reasoning
        return text.encode()[: room * 9 // 2].decode(errors="ignore"), "length", reasoning

    def _about_another(self, digest: str) -> str:
        """The caption of an image that was asked about lately; of one that nobody sent, if there is none."""
        with self._lock:
            others = [caption for other, caption in self._recent if other != digest]
        return others[-1] if others else caption_of(numbered_image(0), self.settings.words)


def _small_copy(data: bytes) -> np.ndarray:
    """The pixels of a smaller copy, which a JPEG gives at a third of the cost: uint8 [height, width, 3].

    Raises:
        ValueError: the image is damaged.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.draft("RGB", (_DRAFT_SIDE, _DRAFT_SIDE))
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(str(error)) from None


def _bytes_of(url: str) -> bytes:
    """The bytes in a data URL; raises `ValueError`."""
    head, comma, payload = url.partition(",")
    if not comma or head not in {f"data:image/{kind};base64" for kind in _KINDS}:
        raise ValueError("only base64 data URLs of jpeg, png, webp and gif images")
    try:
        data = base64.b64decode(payload, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from None
    kind = header(data).format
    if head != f"data:image/{kind};base64":
        raise ValueError(f"its type says {head[5:].partition(';')[0]}, and it is {kind}")
    return data


def _spoilt(caption: str, fault: str) -> str:
    """The caption with the fault that its text has."""
    if fault == "loop":
        return " ".join([caption.partition(". ")[0].rstrip(".") + "."] * 12)
    if fault == "boilerplate":
        return f"The image shows {caption[0].lower()}{caption[1:]}"
    if fault == "reasoning-leak":
        return f"<think>The user wants a caption. Let me look at the image.</think>{caption}"
    if fault == "wrong-language":
        number = number_in_text(caption)
        shown = "" if number is None else f", avec le numéro {number} (number {number})"
        return (
            "Une grille de cases sombres et claires remplit toute la surface, avec des couleurs vives et des bords "
            f"nets qui rappellent un vieux jeu de société posé sur une table{shown}."
        )
    return caption
