"""What clients send and get: OpenAI's names and shapes, read strictly, and our own extensions in one object, `lens`.

Strict means that nothing is converted: "1" is not 1, false is not 0, and a name nobody knows is a mistake of the client
rather than something to pass over. Limits here are those that no server can lift; `lens_serve.api.orders` holds
requests to the server's own, and the OpenAPI document tells these.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import UploadFile  # noqa: TC002 (pydantic reads annotations at run time)
from pydantic import BaseModel, ConfigDict, Field, Json, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

from lens_serve.api.errors import suggestion
from lens_serve.config import NAME, Tier
from lens_serve.images.encoders import ImageFormat  # noqa: TC001 (pydantic reads annotations at run time)

__all__ = [
    "EditForm",
    "EditLens",
    "Generation",
    "GenerationLens",
    "Image",
    "ImagesAnswer",
    "ImagesLens",
    "ModelAnswer",
    "ModelLens",
    "ModelsAnswer",
    "Quality",
    "StreamEvent",
    "Usage",
]

Quality = Literal["low", "medium", "high"]

SIZE = r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"
"""WIDTHxHEIGHT, in pixels."""


class Asked(BaseModel):
    """What a client sends."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_names(cls, data: Any) -> Any:
        """Name the first parameter that is not known, and the nearest that is."""
        unknown = next((key for key in data if key not in cls.model_fields), None) if isinstance(data, dict) else None
        if unknown is not None:
            ours = GenerationLens.model_fields if "lens" in cls.model_fields else ()
            hint = suggestion(unknown[:64], [*cls.model_fields, *(f"lens.{name}" for name in ours)])
            error = PydanticCustomError("unknown_parameter", "{hint}", {"hint": hint})
            details = InitErrorDetails(type=error, loc=(unknown[:64],), input=None)
            raise ValidationError.from_exception_data(cls.__name__, [details])
        return data


class GenerationLens(Asked):
    """Our own parameters."""

    seed: int | None = Field(None, ge=0, lt=2**63, description="Of the noise; image i of n draws noise (seed, i).")
    steps: int | None = Field(None, ge=1, le=1000, description="Sampler steps; counts for more than `quality`.")
    guidance: float | None = Field(None, ge=1, le=100, allow_inf_nan=False, description="Guidance scale; 1: none.")
    negative_prompt: str | None = Field(None, max_length=32_000, description="What to steer away from.")
    rewrite: bool | None = Field(None, description="Whether the prompt may be rewritten; absent: as the server does.")
    tier: Tier | None = Field(None, description="How exact; absent: the server's own.")
    deadline_ms: int | None = Field(None, ge=1, le=86_400_000, description="After which the images are of no use.")
    lora: str | None = Field(None, pattern=NAME, description="One of the model's LoRAs.")
    lora_scale: float | None = Field(None, ge=-4, le=4, allow_inf_nan=False, description="Its weight; absent: 1.")


class EditLens(GenerationLens):
    """Our own parameters of an edit."""

    mode: Literal["img2img", "inpaint"] | None = Field(
        None, description="Start from the whole image, or redraw where the mask is transparent."
    )
    strength: float | None = Field(
        None, gt=0, le=1, allow_inf_nan=False, description="How far to depart from the image; absent: 0.6."
    )


class Pictures(Asked):
    """What generations and edits have in common."""

    prompt: str = Field(min_length=1, max_length=32_000, description="What to draw.")
    model: str | None = Field(None, pattern=NAME, description="Absent: the server's first.")
    n: int | None = Field(None, ge=1, le=10, description="How many images; absent: 1.")
    size: str | None = Field(
        None, pattern=SIZE, description="WIDTHxHEIGHT, or `auto`: the model's own, or that of the image to edit."
    )
    quality: Literal["low", "medium", "high", "auto"] | None = Field(
        None, description="Half the model's steps, its steps, or twice as many; `auto` is `medium`."
    )
    output_format: ImageFormat | None = Field(None, description="Absent: `png`.")
    output_compression: int | None = Field(None, ge=0, le=100, description="Of `jpeg` and `webp`; absent: 100.")
    response_format: Literal["b64_json", "url"] | None = Field(None, description="`url` needs a server with a store.")
    background: Literal["opaque", "auto"] | None = Field(None, description="Images are opaque.")
    moderation: Literal["auto"] | None = Field(None, description="The server's own.")
    stream: bool | None = Field(None, description="Answer with events.")
    partial_images: int | None = Field(None, ge=0, le=3, description="Previews of each image in the events.")
    user: str | None = Field(None, max_length=512, description="Older name of `safety_identifier`.")
    safety_identifier: str | None = Field(None, max_length=512, description="Your user, hashed; comes back.")


class Generation(Pictures):
    """A request for images."""

    lens: GenerationLens | None = Field(None, description="Our own parameters.")


Number = Annotated[int, Field(strict=False)]
"""Forms hold nothing but text."""


class EditForm(Pictures):
    """A request for images that start from another: a form, whose field `lens` holds JSON."""

    image: UploadFile = Field(description="PNG, JPEG or WebP.")
    mask: UploadFile | None = Field(None, description="PNG or WebP of the same size, transparent where to redraw.")
    n: Number | None = Field(None, ge=1, le=10, description="How many images; absent: 1.")
    output_compression: Number | None = Field(None, ge=0, le=100, description="Of `jpeg` and `webp`; absent: 100.")
    stream: Annotated[bool, Field(strict=False)] | None = Field(None, description="Answer with events.")
    partial_images: Number | None = Field(None, ge=0, le=3, description="Previews of each image in the events.")
    lens: Json[EditLens] | None = Field(None, description="Our own parameters.")

    @model_validator(mode="before")
    @classmethod
    def _know_lists(cls, data: Any) -> Any:
        """OpenAI's clients call a list of pictures `image[]`, though it be of one; `edit` counts them."""
        if isinstance(data, dict) and "image[]" in data:
            data = dict(data)
            listed = data.pop("image[]")
            data.setdefault("image", listed[0] if isinstance(listed, list) else listed)
        return data


class Image(BaseModel):
    """One image, in the answer or at a URL."""

    b64_json: str | None = Field(None, description="The file, base64.")
    url: str | None = Field(None, description="Where it is.")
    revised_prompt: str | None = Field(None, description="What the model was given.")


class TokenDetails(BaseModel):
    """Tokens by kind."""

    text_tokens: int
    image_tokens: int


class Usage(BaseModel):
    """Tokens that the model saw and made, whatever the number of steps."""

    input_tokens: int
    input_tokens_details: TokenDetails
    output_tokens: int
    output_tokens_details: TokenDetails
    total_tokens: int


class ImagesLens(BaseModel):
    """What OpenAI's answer has no place for."""

    seed: int = Field(description="Sent again, it gives the same images.")
    images: list[dict[str, Any]] = Field(description="A receipt for each: how it was made.")


class ImagesAnswer(BaseModel):
    """Images."""

    created: int = Field(description="Unix time.")
    data: list[Image]
    background: Literal["opaque"]
    output_format: ImageFormat
    quality: Quality
    size: str
    usage: Usage
    safety_identifier: str | None = None
    lens: ImagesLens


class EventLens(BaseModel):
    """Which of n images an event is of; a completed one has its receipt."""

    index: int
    seed: int
    receipt: dict[str, Any] | None = None
    revised_prompt: str | None = None


class StreamEvent(BaseModel):
    """The `data` of an event."""

    type: Literal[
        "image_generation.partial_image",
        "image_generation.completed",
        "image_edit.partial_image",
        "image_edit.completed",
    ]
    b64_json: str | None = None
    url: str | None = None
    partial_image_index: int | None = None
    created_at: int
    background: Literal["opaque"]
    output_format: ImageFormat
    quality: Quality
    size: str
    usage: Usage | None = None
    safety_identifier: str | None = None
    lens: EventLens


class ModelBounds(BaseModel):
    """What requests are held to."""

    min_side: int
    max_side: int
    max_pixels: int
    multiple_of: int
    max_steps: int
    max_images: int
    max_guidance: float
    max_prompt_chars: int


class ModelLens(BaseModel):
    """What a model can do here."""

    size: str = Field(description="Its own, which `auto` stands for.")
    steps: int
    guidance: float
    bounds: ModelBounds
    loras: list[str]
    tiers: list[str] = Field(description="What `lens.tier` may say.")
    tier: str = Field(description="Of requests that name none.")
    modes: list[str] = Field(description="What edits it can do.")
    rewriter: bool = Field(description="Whether prompts can be rewritten.")
    rewrite: bool = Field(description="Whether those of requests that do not say are.")
    dtype: str
    licence: str
    hash: str | None = Field(description="Of its artefact.")


class ModelAnswer(BaseModel):
    """A model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    lens: ModelLens


class ModelsAnswer(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[ModelAnswer]
