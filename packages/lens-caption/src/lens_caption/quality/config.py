"""Settings of the gates, the judge and the canaries."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lens_caption.engine.settings import BudgetSettings
from lens_core.config.base import Config
from lens_core.config.endpoints import OPENAI_URL, EndpointUrl

__all__ = [
    "Action",
    "BoilerplateGate",
    "GatesConfig",
    "JudgeConfig",
    "LanguageGate",
    "LengthGate",
    "LoopsGate",
    "ReasoningGate",
    "RefusalGate",
    "RepeatedCaptionGate",
    "SharedSentenceGate",
    "WatchSettings",
]

Action = Literal["reject", "flag", "skip"]
"""No "off" among them: YAML reads that as false."""

LANGUAGES = ("ar", "de", "el", "en", "es", "fr", "he", "hi", "it", "ja", "ko", "nl", "pt", "ru", "th", "uk", "zh")
"""What the check by script and small words knows."""


class LengthGate(Config):
    """Too few or too many words; in Chinese, Japanese and Thai, characters."""

    action: Action = Field("reject", description="What becomes of a caption that fails: reject, flag or skip.")
    min_words: int = Field(3, ge=0, description="Fewer are too short.")
    max_words: int = Field(500, gt=0, description="More are too long.")

    @model_validator(mode="after")
    def _ordered(self) -> LengthGate:
        if self.min_words > self.max_words:
            raise ValueError("min_words is larger than max_words")
        return self


class RefusalGate(Config):
    """An apology, or a request for an image, in place of a caption."""

    action: Action = Field("reject", description="What becomes of a caption that fails: reject, flag or skip.")


class BoilerplateGate(Config):
    """An opening that says nothing, such as "The image shows"."""

    action: Action = Field("reject", description="What becomes of a caption that fails: reject, flag or skip.")
    also: tuple[str, ...] = Field((), description="Further openings, compared without case.")


class LoopsGate(Config):
    """A model that repeats itself."""

    action: Action = Field("reject", description="What becomes of a caption that fails: reject, flag or skip.")
    max_repeats: int = Field(4, ge=2, description="A phrase may occur this often in a row, if the whole row is short.")
    min_loop_words: int = Field(12, ge=2, description="A row of repeats is a loop from this many words on.")
    max_same_sentence: int = Field(2, ge=1, description="One sentence may occur this often.")
    max_repeated_share: float = Field(
        0.4, gt=0, le=1, description="Largest share of four-word phrases that occurred before in the caption."
    )


class LanguageGate(Config):
    """A caption in another language than the one asked for; what it quotes does not count."""

    action: Action = Field("reject", description="What becomes of a caption that fails: reject, flag or skip.")
    languages: tuple[str, ...] = Field(("en",), min_length=1, description="ISO 639-1 codes of what is welcome.")
    detector: Literal["words", "py3langid"] = Field(
        "words",
        description="words looks at script and small words; py3langid is a classifier of 97 languages, by an extra.",
    )
    min_words: int = Field(8, ge=1, description="Shorter captions are judged by their script alone.")

    @model_validator(mode="after")
    def _known(self) -> LanguageGate:
        unknown = [code for code in self.languages if code not in LANGUAGES]
        if self.detector == "words" and unknown:
            raise ValueError(f"detector 'words' does not know {unknown[0]!r}; it knows {', '.join(LANGUAGES)}")
        return self


class ReasoningGate(Config):
    """Thinking aloud, marks of a chat template, or the instruction itself."""

    action: Action = Field("reject", description="What becomes of a caption that fails: reject, flag or skip.")


class SharedSentenceGate(Config):
    """A sentence that stands in the captions of many images."""

    action: Action = Field("flag", description="What becomes of a caption that fails: reject, flag or skip.")
    min_words: int = Field(8, ge=1, description="Shorter sentences are shared by chance.")
    min_images: int = Field(5, ge=2, description="Images that must share it.")
    min_share: float = Field(0.001, ge=0, le=1, description="Share of all captions that must have it as well.")


class RepeatedCaptionGate(Config):
    """One caption for images that look different: a server that answers about another image."""

    action: Action = Field("reject", description="What becomes of a caption that fails: reject, flag or skip.")
    min_words: int = Field(15, ge=1, description="Shorter captions repeat by right.")
    min_bits: int = Field(11, ge=1, le=64, description="Differing bits of 64 from which two images look different.")


class GatesConfig(Config):
    """Every gate with its threshold; each can reject, only flag, or be skipped."""

    length: LengthGate = Field(LengthGate(), description="Words.")
    refusal: RefusalGate = Field(RefusalGate(), description="Apologies in place of a caption.")
    reasoning: ReasoningGate = Field(ReasoningGate(), description="Thinking aloud and marks of templates.")
    boilerplate: BoilerplateGate = Field(BoilerplateGate(), description="Openings that say nothing.")
    loops: LoopsGate = Field(LoopsGate(), description="Repetition inside a caption.")
    language: LanguageGate = Field(LanguageGate(), description="The language asked for.")
    shared_sentence: SharedSentenceGate = Field(SharedSentenceGate(), description="Sentences that many images share.")
    repeated_caption: RepeatedCaptionGate = Field(
        RepeatedCaptionGate(), description="One caption for images that look different."
    )


class WatchSettings(Config):
    """What is watched while captions come in, for servers that answer about another image than the one asked about."""

    action: Literal["stop", "mark"] = Field(
        "stop",
        description="stop ends the run with its state saved, and the captions in doubt are asked for again by the next "
        "run; mark goes on and flags them.",
    )
    canaries: int | None = Field(
        1000, ge=1, description="One generated image of known content after so many images; null sends none."
    )
    repeats: int | None = Field(
        15, ge=1, description="Alarm when images that look different get one caption of so many words; null: never."
    )
    sentences: float | None = Field(
        0.2, gt=0, le=1, description="Alarm when this share of the last 1,000 captions has one sentence; null: never."
    )


class JudgeConfig(Config):
    """A vision model that checks a sample of the captions, sentence by sentence, behind an OpenAI-style endpoint.

    The API key comes from an environment variable, never from this file.
    """

    model: str = Field(min_length=1, description="The judge's name at the endpoint; best another than the captioner.")
    base_url: EndpointUrl = Field(OPENAI_URL, description="The endpoint, up to and with /v1.")
    api_key_env: str = Field("OPENAI_API_KEY", description="Name of the environment variable that holds the API key.")
    recipe: str = Field("check-1", description="The recipe that asks for a verdict on each sentence.")
    sample: int = Field(50, ge=2, description="Captions of each shard that are judged at first.")
    max_sample: int = Field(400, ge=2, description="The sample of a shard grows up to this while it is undecided.")
    max_wrong: float = Field(0.1, gt=0, lt=1, description="Share of wrong sentences that a shard may have.")
    escalate: bool = Field(
        True, description="Judge all of a bad shard, and reject its wrong captions; otherwise only report it."
    )
    controls: bool = Field(
        True, description="Slip in a sentence from another caption each time, to see what the judge overlooks."
    )
    max_calls: int = Field(2000, ge=1, description="Captions put to the judge, at most; the rest is not judged.")
    max_side: int = Field(768, ge=32, le=4096, description="Images are scaled down to this before they are sent.")
    jpeg_quality: int = Field(85, ge=30, le=100, description="Quality of the JPEG that is sent.")
    max_output_tokens: int = Field(1500, gt=0, le=32768, description="Longer answers are not used.")
    # No verdict depends on these. They are kept out of the stage's key, so that a run goes on when they change.
    budget: BudgetSettings | None = Field(
        None, exclude=True, description="What the judge may spend, over all runs; null: no bound but max_calls."
    )
    rpm: int | None = Field(None, gt=0, exclude=True, description="Requests per minute; null takes the server's word.")
    tpm: int | None = Field(None, gt=0, exclude=True, description="Tokens per minute; null takes the server's word.")
    timeout_s: float = Field(120, gt=0, le=3600, exclude=True, description="Seconds to wait for one answer.")
    max_attempts: int = Field(4, ge=1, le=20, exclude=True, description="Tries per caption and run.")
    max_wait_s: float = Field(30, ge=0, le=3600, exclude=True, description="Longest pause between two tries.")
    concurrency: int = Field(8, ge=1, le=256, exclude=True, description="Requests in flight.")
    profiles: str | None = Field(
        None, min_length=1, description="Folder of your own model profiles; null takes LENS_CAPTION_PROFILES, if set."
    )
    seed: int = Field(0, ge=0, description="Of the sample and of the order of sentences.")
