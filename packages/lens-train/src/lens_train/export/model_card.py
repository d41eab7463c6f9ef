"""The README.md of a model folder, in the form that the Hugging Face hub calls a model card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["model_card"]


def model_card(
    name: str,
    *,
    stats: Mapping[str, Any],
    parents: Sequence[Mapping[str, str]],
    licence: str,
    start: str | None = None,
    adapter: str | None = None,
    grid: str | None = None,
) -> str:
    """The text of the card.

    Args:
        name: of the model: its stage.
        stats: of the train stage: parameters, steps, images, training_images, training_flops, image_size.
        parents: name, type and hash of the artefacts it was made from.
        licence: what the weights may be used for; "" where nobody said.
        start: the model that it goes on from.
        adapter: its kind, where one was trained: lora, dora or lokr.
        grid: the file of sample pictures beside the card.
    """
    height, width = stats["image_size"]
    lines = ["---", "library_name: lens", "pipeline_tag: text-to-image", "license: other", "---", "", f"# {name}", ""]
    kind = f"A {adapter} on" if adapter else "Every weight trained on from" if start else "Trained from scratch"
    lines += [f"{kind} `{start}`." if start else f"{kind}.", ""]
    if grid:
        lines += [f"![Sample pictures]({grid})", ""]
    lines += [
        "| | |",
        "|---|---|",
        f"| parameters trained | {stats['parameters']:,} |",
        f"| images in the data | {stats['training_images']:,} |",
        f"| steps, images seen | {stats['steps']:,}, {stats['images']:,} |",
        f"| training FLOPs | {stats['training_flops']:.3g} |",
        f"| draws by default | {width} x {height} pixels |",
        "",
        "Made from:",
        "",
        *(f"- {parent['type']} `{parent['name']}`, {parent['hash']}" for parent in parents),
        "",
        "## Licence",
        "",
        licence or "Nobody has said what these weights may be used for. Ask whoever made them.",
        "",
        "The terms of the captioning service, and of the model it goes on from, may set limits of their own.",
        "",
    ]
    if adapter:
        comfyui = "" if adapter == "dora" else " and `lora-comfyui.safetensors` for ComfyUI"
        lines += [f"The adapter alone is in `lora.safetensors` for Lens and diffusers{comfyui}.", ""]
    return "\n".join(lines)
