"""Settings of a server: what `lens serve` reads from a file and its options, and the `serve` stage from a pipeline."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from lens_core.config.base import Config, Url
from lens_core.config.components import RewriterField, SafetyCheckerField
from lens_core.config.devices import DeviceName
from lens_core.storage import urls

__all__ = [
    "AdmissionSettings",
    "Bounds",
    "EngineSettings",
    "ListenSettings",
    "OutputSettings",
    "RewriteSettings",
    "ServeSettings",
    "ServedModel",
    "ServerBlocks",
    "Tier",
    "WatchSettings",
]

NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
"""Names that clients may say: of models and LoRAs. No separators, so that none is ever a path."""

Name = Annotated[str, StringConstraints(pattern=NAME)]

Tier = Literal["exact", "lossless", "fast"]
"""`exact`: the same bits whatever else is drawn at the time. `lossless`: as exact as the weights, but rounding depends
on the company. `fast`: measured approximations."""


class ServedModel(Config):
    """A model folder, and the LoRAs that requests may name."""

    name: str = Field("lens", pattern=NAME, description="What clients call it.")
    folder: str = Field(description="The model folder.")
    loras: dict[Name, str] = Field({}, description="Files of LoRAs, by the names that clients may use.")
    dtype: Literal["bfloat16", "float16", "float32"] | None = Field(None, description="null: as stored.")


class ListenSettings(Config):
    """Where the server listens, and to whom."""

    host: str = Field("127.0.0.1", description="Other than loopback only with keys, or `insecure`.")
    port: int = Field(8000, ge=0, le=65535, description="0: any that is free.")
    metrics_port: int | None = Field(
        9464,
        ge=0,
        le=65535,
        description="Of the metrics, on the same host; null: none, as with `insecure` if nothing is said.",
    )
    allowed_hosts: list[str] = Field(
        [], description="Further names that the server goes by (the Host header), with a port if it is not the usual."
    )
    keys: str | None = Field(None, description="The file of API keys that `lens serve keys` writes; null: no keys.")
    insecure: bool = Field(False, description="Listen beyond loopback without keys.")
    drain_s: float = Field(
        30.0, gt=0, le=3600, description="How long running requests may finish, and be sent, at the end."
    )

    @model_validator(mode="before")
    @classmethod
    def _hide_metrics(cls, data: Any) -> Any:
        """Without keys, metrics too are for everybody who gets here: only if they are asked for."""
        if isinstance(data, dict) and data.get("insecure") and data.get("keys") is None:
            return {"metrics_port": None, **data}
        return data


class Bounds(Config):
    """What a client may ask for."""

    max_pixels: int = Field(2_163_200, gt=0, le=2**24, description="Of one image; 8450 tokens of 16 by 16.")
    min_side: int | None = Field(None, gt=0, description="In pixels; null: 256, or the model's own side if less.")
    max_side: int = Field(2080, gt=0, le=8192, description="In pixels.")
    max_steps: int = Field(50, gt=0, le=1000, description="Sampler steps.")
    max_images: int = Field(4, gt=0, le=10, description="Of one request (`n`).")
    max_guidance: float = Field(20.0, ge=1, le=100, description="Guidance scale.")
    max_prompt_chars: int = Field(4000, gt=0, le=32_000, description="Of prompt and negative prompt each.")
    max_body_bytes: int = Field(1 << 20, gt=0, description="Of a JSON request.")
    max_upload_bytes: int = Field(20 << 20, gt=0, description="Of a request with pictures.")
    max_streams: int = Field(
        8, gt=0, description="Of one key, on their way: event streams, and images that were drawn before."
    )


class EngineSettings(Config):
    """The process that computes."""

    device: DeviceName = Field("auto", description="Where; with replicas, each takes one.")
    replicas: int = Field(1, gt=0, le=64, description="Engines on this host, each with weights of its own.")
    threads: int | None = Field(None, gt=0, description="Of an engine on the CPU; null: all cores among the replicas.")
    policy: Literal["remaining-time", "first-come", "same-shape"] = Field(
        "remaining-time", description="Who takes the next step; the others are there to be measured against."
    )
    knee_tokens: int | None = Field(None, gt=0, description="Tokens of a step that fill the device; null: measured.")
    stretch: list[float] = Field(
        [1.0, 2.0, 4.5], min_length=1, max_length=3, description="Factors of the knee below 1 s, 4 s, and above."
    )
    ageing: float = Field(0.02, ge=0, le=1, description="Seconds of precedence per second of waiting.")
    starvation: float = Field(
        100.0,
        gt=1,
        description="A request that waited this many times its solo time goes first. Above admission.max_wait_factor: "
        "else overload makes the order oldest first, which is late for everybody.",
    )
    tier: Tier = Field("lossless", description="Of requests that name none.")
    watchdog_factor: float = Field(
        10.0,
        gt=1,
        description="A call hangs when it takes this many times what was predicted, and `watchdog_s` more; the engine "
        "is then started anew.",
    )
    watchdog_s: float = Field(2.0, gt=0, description="Seconds on top of `watchdog_factor` times the prediction.")
    loading_s: float = Field(900.0, gt=0, description="An engine that is not ready by then is started anew.")
    warm_up: bool = Field(True, description="Draw once and measure, before saying ready.")


class AdmissionSettings(Config):
    """How much may wait, and for whom."""

    max_backlog_s: float = Field(10.0, gt=0, description="Predicted seconds of work that may wait in all.")
    max_wait_factor: float = Field(
        40.0, gt=1, description="A request is refused when the wait would be this many times its solo time."
    )
    key_share: float = Field(0.5, gt=0, le=1, description="Of the backlog that one key may hold when others wait too.")
    ticket_s: float = Field(2.0, gt=0, le=60, description="How long a reserved place is kept after its time has come.")


class RewriteSettings(Config):
    """Whether prompts are rewritten before they are drawn."""

    rewriter: RewriterField | None = Field(None, description="By what.")
    default: bool = Field(True, description="Unless a request says otherwise.")
    timeout_s: float = Field(20.0, gt=0, description="Then the prompt is drawn as it is.")
    concurrency: int = Field(4, gt=0, description="Prompts being rewritten at once.")
    cache: int = Field(1024, ge=0, description="Rewritten prompts that are remembered.")
    max_chars: int = Field(4000, gt=0, description="A rewritten prompt is cut there.")


class OutputSettings(Config):
    """What an image carries, and where it goes."""

    prompt_in_image: bool = Field(True, description="Write prompts into the image's receipt; their hashes always are.")
    store: Url | None = Field(None, description="An fsspec URL to write images to; answers then may give their URLs.")
    public_url: str | None = Field(
        None, description="What stored images are reached by; null: the store's own URL, where only this machine asks."
    )
    c2pa_certificate: str | None = Field(None, description="Certificate chain (PEM) to sign with; needs the extra.")
    c2pa_key: str | None = Field(None, description="Its private key (PEM).")
    threads: int = Field(2, gt=0, le=32, description="That encode images.")


class WatchSettings(Config):
    """What is told about the server."""

    log_prompts: bool = Field(False, description="Prompts in the log.")
    traces: str | None = Field(None, description="OTLP endpoint (HTTP) for traces; needs the extra.")


class ServerBlocks(Config):
    """All of a server but its models, which a file names, and a pipeline makes."""

    listen: ListenSettings = Field(ListenSettings(), description="Where, and to whom.")
    bounds: Bounds = Field(Bounds(), description="What may be asked for.")
    engine: EngineSettings = Field(EngineSettings(), description="The process that computes.")
    admission: AdmissionSettings = Field(AdmissionSettings(), description="How much may wait, and for whom.")
    rewrite: RewriteSettings = Field(RewriteSettings(), description="Whether prompts are rewritten.")
    safety: list[SafetyCheckerField] = Field([], description="What may refuse a prompt or an image.")
    output: OutputSettings = Field(OutputSettings(), description="What an image carries, and where it goes.")
    watch: WatchSettings = Field(WatchSettings(), description="What is told about the server.")


class ServeSettings(ServerBlocks):
    """A server."""

    models: list[ServedModel] = Field(min_length=1, max_length=16, description="What is served; the first by default.")

    def at(self, base: str) -> ServeSettings:
        """The same, with relative paths as seen from the folder `base`; components keep theirs."""

        def moved(value: str | None) -> str | None:
            return value and urls.resolve(value, base)

        output = self.output
        paths = {name: moved(getattr(output, name)) for name in ("store", "c2pa_certificate", "c2pa_key")}
        models = [
            model.model_copy(
                update={"folder": moved(model.folder), "loras": {n: moved(path) for n, path in model.loras.items()}}
            )
            for model in self.models
        ]
        return self.model_copy(
            update={
                "models": models,
                "listen": self.listen.model_copy(update={"keys": moved(self.listen.keys)}),
                "output": output.model_copy(update=paths),
            }
        )
