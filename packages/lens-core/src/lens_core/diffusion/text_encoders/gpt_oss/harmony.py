"""The text around a prompt, written by the tokenizer's own chat template (OpenAI's "harmony" format).

The chat template would state today's date, and a prompt's features would change overnight; here it states the
template's. The prompt itself never goes through it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from lens_core.errors import ArtifactError

if TYPE_CHECKING:
    from pathlib import Path

    from lens_core.diffusion.text_encoders.gpt_oss.template import Template

__all__ = ["text_around"]

_PLACE = "\ue000"  # private use: no template has a reason to touch it


def text_around(template: Template, tokenizer: Any, *, folder: Path) -> tuple[str, str]:
    """The text before a prompt, up to and with the user turn's header, and the text behind it.

    Args:
        template: the strings and the date to put in.
        tokenizer: gpt-oss's, with its chat template.
        folder: where that lies, for messages.

    Raises:
        ArtifactError: the chat template is missing or is not gpt-oss's.
    """
    try:
        chat_template = tokenizer.get_chat_template()
    except ValueError as error:
        raise ArtifactError(f"{folder} has no chat template: copy gpt-oss's chat_template.jinja there") from error
    messages = [
        {"role": "system", "content": template.system},
        {"role": "user", "content": _PLACE},
        {"role": "assistant", "thinking": template.thinking, "content": ""},
    ]
    try:
        text = tokenizer.apply_chat_template(
            messages, chat_template=_on(template.date) + chat_template, tokenize=False, add_generation_prompt=False
        )
    except (TemplateError, TypeError) as error:
        raise ArtifactError(f"{folder}: the chat template fails: {' '.join(str(error).split())}") from error
    before, _, after = text.split("<|return|>")[0].partition(_PLACE)
    harmony = before.endswith("<|message|>") and after.startswith("<|end|>")
    if not harmony or not {"<|message|>", "<|end|>"} <= tokenizer.get_added_vocab().keys():
        raise ArtifactError(f"{folder} is not gpt-oss's: no prompt stands between <|message|> and <|end|> there")
    return before, after


def _on(date: str) -> str:
    """A piece of Jinja that stands before a chat template and hides the function that tells it today's date.

    transformers offers no other way: it hands a template nothing that can be called.
    """
    return (
        "{%- macro strftime_now(format) -%}"
        "{%- if format != '%Y-%m-%d' -%}{{ raise_exception('unknown date format ' + format) }}{%- endif -%}"
        + date
        + "{%- endmacro -%}{{ '' }}"
    )
