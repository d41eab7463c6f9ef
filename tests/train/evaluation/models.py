"""Tiny random detectors and CLIPs, made on the spot."""

from __future__ import annotations

import json

from core.vision_models import PREPROCESSOR

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
SPECIAL = ("<|startoftext|>", "<|endoftext|>", "<unk>")
WORDS = [*SPECIAL, *COLOURS, "a", "photo", "of", "-", "colored", "object", "dog", "bus"]


def detr(folder, labels=("N/A", "dog", "cat", "bus", "mouse"), *, sees=None, seed=0, queries=12):
    """A DETR whose answers differ from image to image; returns the folder.

    `sees=("dog", 3.0)` makes it see dogs everywhere: every query's logit of that class is so much above the others.
    """
    import torch
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    torch.manual_seed(seed)
    config = DetrConfig(
        backbone_config=ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
        ),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=queries,
        init_std=1.0,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    model = DetrForObjectDetection(config)
    with torch.no_grad():
        if sees:
            model.class_labels_classifier.weight.zero_()
            model.class_labels_classifier.bias.zero_()
            model.class_labels_classifier.bias[labels.index(sees[0])] = sees[1]
    model.save_pretrained(folder)
    processor = {
        "image_processor_type": "DetrImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 48, "longest_edge": 80},
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.5, 0.25, 0.2],
        "do_pad": True,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def clip(folder, *, seed=0):
    """A CLIP that reads `WORDS`; returns the folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = CLIPConfig(
        vision_config={**tower, "image_size": 32, "patch_size": 8, "initializer_range": 0.5, "initializer_factor": 8.0},
        text_config={
            **tower,
            "vocab_size": len(WORDS),
            "max_position_embeddings": 16,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "initializer_factor": 8.0,
        },
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>", special_tokens=[("<|startoftext|>", 0), ("<|endoftext|>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<|endoftext|>", eos_token="<|endoftext|>"
    ).save_pretrained(folder)
    crop = {"do_center_crop": True, "crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR | crop))
    return folder


def rt_detr(folder, labels=("dog", "cat", "bus"), *, seed=0):
    """An RT-DETR, which is sure of each class apart from the others; returns the folder."""
    import torch
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig

    torch.manual_seed(seed)
    config = RTDetrConfig(
        backbone_config=RTDetrResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 8, 16, 16],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            out_features=["stage2", "stage3", "stage4"],
        ),
        encoder_hidden_dim=16,
        encoder_in_channels=[8, 16, 16],
        encoder_layers=1,
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        d_model=16,
        num_queries=8,
        decoder_in_channels=[16, 16, 16],
        decoder_ffn_dim=16,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_n_points=2,
        num_denoising=0,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    RTDetrForObjectDetection(config).save_pretrained(folder)
    processor = {"image_processor_type": "RTDetrImageProcessor", "size": {"height": 64, "width": 64}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder
