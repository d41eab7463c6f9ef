"""Tiny random vision models with their preprocessing, made on the spot."""

from __future__ import annotations

import json

PREPROCESSOR = {
    "do_resize": True,
    "size": {"height": 32, "width": 32},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.5, 0.25, 0.2],
    "image_processor_type": "ViTImageProcessor",
}


def vit(folder, labels=("normal", "nsfw", "watermark"), *, seed=0, **options):
    """A ViT classifier whose answers differ from image to image; returns the folder."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=32,
        patch_size=8,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
        initializer_range=0.5,
        **options,
    )
    ViTForImageClassification(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return folder


def clip(folder, *, seed=0):
    """A CLIP of two tiny towers; returns the folder."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(seed)
    tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = CLIPConfig(
        vision_config={**tower, "image_size": 32, "patch_size": 8, "initializer_range": 0.5, "initializer_factor": 8.0},
        text_config={**tower, "vocab_size": 40},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    crop = {"do_center_crop": True, "crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR | crop))
    return folder
