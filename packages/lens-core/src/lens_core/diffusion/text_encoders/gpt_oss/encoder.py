"""gpt-oss as a text encoder: the released template around the prompt, the residual stream after four layers."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lens_core.diffusion.text_encoders.causal_lm.encoder import FrozenLanguageModel
from lens_core.diffusion.text_encoders.causal_lm.pretrained import PretrainedFiles
from lens_core.diffusion.text_encoders.causal_lm.tokens import PromptTokens
from lens_core.diffusion.text_encoders.gpt_oss.harmony import text_around
from lens_core.diffusion.text_encoders.gpt_oss.template import Template, check_prefix
from lens_core.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import torch

    from lens_core.diffusion.text_encoders.gpt_oss.config import GptOssConfig

__all__ = ["GptOssEncoder"]


class GptOssEncoder(FrozenLanguageModel):
    """gpt-oss behind its template."""

    @classmethod
    def fit(cls, config: GptOssConfig, captions: Iterable[str], *, seed: int = 0) -> GptOssEncoder:
        """The encoder to train a denoiser with, from the model folder `config.path`; captions and seed change nothing.

        Raises:
            ConfigError: there is no path, or it leads nowhere.
            ArtifactError: the folder has no lens.json with a template, or is damaged.
        """
        files, folder = PretrainedFiles.find(config.path)
        return cls._load(config, files, template=_template_in(folder), where=str(folder / "lens.json"), dtype=None)

    @classmethod
    def from_folder(
        cls, config: GptOssConfig, folder: Path, *, template: Mapping[str, str] | None, dtype: torch.dtype | None
    ) -> GptOssEncoder:
        """The encoder of a model folder.

        Args:
            config: its settings.
            folder: the model folder, with `text_encoder/` and `tokenizer/`.
            template: `lens.json`'s template.
            dtype: of weights and features; None keeps that of the files.

        Raises:
            ArtifactError: files are missing or damaged, or the template is not the released one.
        """
        files = PretrainedFiles.of_model_folder(folder)
        return cls._load(config, files, template=template, where=str(folder / "lens.json"), dtype=dtype)

    @classmethod
    def _load(
        cls,
        config: GptOssConfig,
        files: PretrainedFiles,
        *,
        template: Mapping[str, str] | None,
        where: str,
        dtype: torch.dtype | None,
    ) -> GptOssEncoder:
        released = config.template == "released"
        said = Template.read(template, released=released, where=where)
        tokenizer = files.load_tokenizer()
        before, after = text_around(said, tokenizer, folder=files.tokenizer)
        tokens = PromptTokens(tokenizer, before=before, after=after, drop_prefix=True, max_tokens=config.max_tokens)
        if released:
            check_prefix(len(tokens.prefix), words=len(tokenizer))
        encoder = cls(config, files=files, layers=config.layers, tokens=tokens, dtype=dtype)
        encoder.template = asdict(said)
        return encoder


def _template_in(folder: Path) -> Any:
    path = folder / "lens.json"
    try:
        lens = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    return lens.get("template") if isinstance(lens, dict) else None
