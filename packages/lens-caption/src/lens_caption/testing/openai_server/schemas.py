"""Requests as the API takes them, to the letter: what it would refuse, these models refuse.

Both APIs come down to a `Prompt`, which is all that the rest of the server knows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

__all__ = [
    "BatchRequest",
    "ChatRequest",
    "ImagePart",
    "Line",
    "Prompt",
    "ResponsesRequest",
    "first_fault",
    "strict_schema_fault",
]

Detail = Literal["low", "high", "auto", "original"]
Tier = Literal["auto", "default", "flex", "priority", "scale", "fast"]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
Name = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
Metadata = Annotated[
    dict[Annotated[str, StringConstraints(max_length=64)], Annotated[str, StringConstraints(max_length=512)]],
    Field(max_length=16),
]


@dataclass(frozen=True, kw_only=True)
class ImagePart:
    """An image of a request: a data URL, or the id of an uploaded file."""

    url: str = ""
    file_id: str = ""
    detail: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What is asked, whichever API asks it.

    Args:
        api: "chat" or "responses".
        model: as named by the client.
        texts: all texts, instructions and schemas included, in order.
        images: all images, in order.
        messages: how many messages there are.
        max_output: the most output tokens; None leaves it open.
        max_name: the parameter that said so.
        temperature: None leaves it to the model.
        effort: of reasoning; None leaves it to the model.
        tier: as asked for.
        json: how the answer is to be formatted: None for text, {} for any JSON, else a schema.
        strict: whether the schema binds.
    """

    api: str
    model: str
    texts: list[str]
    images: list[ImagePart]
    messages: int
    max_output: int | None = None
    max_name: str = ""
    temperature: float | None = None
    effort: str | None = None
    tier: str = "auto"
    json: dict[str, Any] | None = field(default=None)
    strict: bool = False


class _Strict(BaseModel):
    # `strict`: the API takes no "3" for 3.
    model_config = ConfigDict(extra="forbid", strict=True)


class _Common(_Strict):
    """What both APIs take."""

    model: str = Field(min_length=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    service_tier: Tier | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    stream: Literal[False] | None = None
    user: str | None = None
    safety_identifier: str | None = Field(None, max_length=64)
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None


# --- chat completions ---


class _ImageUrl(_Strict):
    url: str
    detail: Detail = "auto"


class _ChatText(_Strict):
    type: Literal["text"]
    text: str


class _ChatImage(_Strict):
    type: Literal["image_url"]
    image_url: _ImageUrl


class _UserMessage(_Strict):
    role: Literal["user"]
    content: str | list[Annotated[_ChatText | _ChatImage, Field(discriminator="type")]]
    name: Name | None = None


class _OtherMessage(_Strict):
    role: Literal["system", "developer", "assistant"]
    content: str | list[_ChatText]
    name: Name | None = None


class _TextFormat(_Strict):
    type: Literal["text", "json_object"]


class _JsonSchema(_Strict):
    name: Name
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class _ChatSchemaFormat(_Strict):
    type: Literal["json_schema"]
    json_schema: _JsonSchema


class ChatRequest(_Common):
    """The body of `POST /v1/chat/completions`."""

    messages: list[Annotated[_UserMessage | _OtherMessage, Field(discriminator="role")]] = Field(min_length=1)
    max_tokens: int | None = Field(None, gt=0)
    max_completion_tokens: int | None = Field(None, gt=0)
    reasoning_effort: Effort | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    response_format: Annotated[_TextFormat | _ChatSchemaFormat, Field(discriminator="type")] | None = None
    n: Literal[1] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)

    def prompt(self) -> Prompt:
        """What is asked."""
        texts: list[str] = []
        images: list[ImagePart] = []
        for message in self.messages:
            parts = [message.content] if isinstance(message.content, str) else message.content
            for part in parts:
                if isinstance(part, _ChatImage):
                    images.append(ImagePart(url=part.image_url.url, detail=part.image_url.detail))
                else:
                    texts.append(part if isinstance(part, str) else part.text)
        schema = self.response_format.json_schema if isinstance(self.response_format, _ChatSchemaFormat) else None
        any_json: dict[str, Any] | None = {} if self.response_format and self.response_format.type != "text" else None
        return Prompt(
            api="chat",
            model=self.model,
            texts=texts,
            images=images,
            messages=len(self.messages),
            max_output=self.max_completion_tokens or self.max_tokens,
            max_name="max_tokens" if self.max_tokens else "max_completion_tokens",
            temperature=self.temperature,
            effort=self.reasoning_effort,
            tier=self.service_tier or "auto",
            json=schema.schema_ if schema else any_json,
            strict=bool(schema and schema.strict),
        )


# --- responses ---


class _InputText(_Strict):
    type: Literal["input_text"]
    text: str


class _InputImage(_Strict):
    type: Literal["input_image"]
    image_url: str | None = None
    file_id: str | None = None
    # The specification lists it among the required ones.
    detail: Detail


class _OutputText(_Strict):
    type: Literal["output_text"]
    text: str
    annotations: list[Any] = []


class _InputMessage(_Strict):
    type: Literal["message"] = "message"
    role: Literal["user", "system", "developer"]
    content: str | list[Annotated[_InputText | _InputImage, Field(discriminator="type")]]


class _AssistantMessage(_Strict):
    type: Literal["message"] = "message"
    role: Literal["assistant"]
    content: str | list[_OutputText]


class _ResponsesSchemaFormat(_JsonSchema):
    type: Literal["json_schema"]


class _TextOptions(_Strict):
    format: Annotated[_TextFormat | _ResponsesSchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class _Reasoning(_Strict):
    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class ResponsesRequest(_Common):
    """The body of `POST /v1/responses`."""

    input: str | list[Annotated[_InputMessage | _AssistantMessage, Field(discriminator="role")]] = Field(min_length=1)
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, gt=0)
    text: _TextOptions | None = None
    reasoning: _Reasoning | None = None
    truncation: Literal["auto", "disabled"] | None = None
    background: Literal[False] | None = None
    include: list[str] | None = None

    def prompt(self) -> Prompt:
        """What is asked."""
        texts = [self.instructions] if self.instructions else []
        images: list[ImagePart] = []
        messages = [_InputMessage(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        for message in messages:
            parts = [message.content] if isinstance(message.content, str) else message.content
            for part in parts:
                if isinstance(part, _InputImage):
                    images.append(ImagePart(url=part.image_url or "", file_id=part.file_id or "", detail=part.detail))
                else:
                    texts.append(part if isinstance(part, str) else part.text)
        shape = self.text.format if self.text else None
        schema = shape if isinstance(shape, _ResponsesSchemaFormat) else None
        any_json: dict[str, Any] | None = {} if shape and shape.type != "text" else None
        return Prompt(
            api="responses",
            model=self.model,
            texts=texts,
            images=images,
            messages=len(messages) + bool(self.instructions),
            max_output=self.max_output_tokens,
            max_name="max_output_tokens",
            temperature=self.temperature,
            effort=self.reasoning.effort if self.reasoning else None,
            tier=self.service_tier or "auto",
            json=schema.schema_ if schema else any_json,
            strict=bool(schema and schema.strict),
        )


# --- batches ---


class _ExpiresAfter(_Strict):
    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2_592_000)


class BatchRequest(_Strict):
    """The body of `POST /v1/batches`."""

    input_file_id: str = Field(min_length=1)
    # The last is that of Azure's older API.
    endpoint: Literal["/v1/responses", "/v1/chat/completions", "/chat/completions"]
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: _ExpiresAfter | None = None


class Line(_Strict):
    """A line of a batch's input file; its body is checked when it is its turn."""

    custom_id: str = Field(min_length=1)
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


def first_fault(error: ValidationError) -> tuple[str, str, bool]:
    """Of what is wrong with a request: where, what, and whether it is a parameter that nobody knows."""
    # Where several shapes are possible, the one that came furthest is the one that was meant.
    fault = max(error.errors(), key=lambda one: len(one["loc"]))
    where = ".".join(map(str, fault["loc"]))
    return where, f"Invalid '{where}': {fault['msg']}", fault["type"] == "extra_forbidden"


def strict_schema_fault(schema: Any, path: str = "") -> str | None:
    """Why a schema cannot be strict, or None: every object closed, and every property required."""
    if not path and (not isinstance(schema, dict) or schema.get("type") != "object"):
        return "schema must be a JSON Schema of 'type: \"object\"'"
    if isinstance(schema, list):
        return next(filter(None, (strict_schema_fault(part, f"{path}/{n}") for n, part in enumerate(schema))), None)
    if not isinstance(schema, dict):
        return None
    context = f"In context=({path or 'the root'})"
    if schema.get("type") == "object" or "properties" in schema:
        properties = schema.get("properties")
        if not isinstance(properties, dict):
            return f"{context}, an object needs 'properties'"
        if schema.get("additionalProperties") is not False:
            return f"{context}, 'additionalProperties' is required to be supplied and to be false."
        missing = sorted(set(properties) - set(schema.get("required", ())))
        if missing:
            return f"{context}, 'required' must include every key in properties. Missing '{missing[0]}'."
    if any(word in schema for word in ("allOf", "not", "if", "patternProperties", "dependentSchemas")):
        word = next(word for word in ("allOf", "not", "if", "patternProperties", "dependentSchemas") if word in schema)
        return f"{context}, '{word}' is not permitted."
    for key in ("properties", "$defs", "definitions"):
        for name, part in schema.get(key, {}).items():
            if fault := strict_schema_fault(part, f"{path}/{key}/{name}"):
                return fault
    for key in ("items", "anyOf"):
        if key in schema and (fault := strict_schema_fault(schema[key], f"{path}/{key}")):
            return fault
    return None
