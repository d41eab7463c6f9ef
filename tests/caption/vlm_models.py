"""Tiny random vision-language models with processor and chat template, made on the spot."""

from __future__ import annotations

import itertools
import json

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def tokenizer(special=(), words=()):
    """One token per byte, the special ones, and words that are one token each."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=bytes_only,
        eos_token="<end>",
        pad_token="<pad>",
        bos_token="<s>",
        additional_special_tokens=["<image>", *special],
    )
    made.add_tokens([AddedToken(word, normalized=False) for word in words])
    return made


def llava(folder, *, seed=0, words=()):
    """A LLaVA: CLIP's tower, a Llama, images cut to squares; returns the folder."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(seed)
    letters = tokenizer(words=words)
    image = letters.convert_tokens_to_ids("<image>")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**TOWER, image_size=28, patch_size=14),
        text_config=LlamaConfig(**TOWER, vocab_size=len(letters), max_position_embeddings=4096, initializer_range=0.5),
        image_token_id=image,
        image_token_index=image,
        image_seq_length=4,
        vision_feature_layer=-1,
    )
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = LlavaProcessor(
        pixels,
        letters,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    return _save(folder, LlavaForConditionalGeneration(config), processor)


def idefics3(folder, *, seed=0):
    """An Idefics3, as SmolVLM is: images cut into tiles, so that prompts differ in length; returns the folder."""
    import torch
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor, LlamaConfig
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    torch.manual_seed(seed)
    tiles = [f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3)]
    letters = tokenizer(["<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *tiles])
    pad = letters.pad_token_id
    config = Idefics3Config(
        vision_config={**TOWER, "image_size": 32, "patch_size": 8},
        text_config=LlamaConfig(
            **TOWER, vocab_size=len(letters), max_position_embeddings=4096, initializer_range=0.5, pad_token_id=pad
        ),
        image_token_id=letters.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=pad,
    )
    pixels = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = Idefics3Processor(pixels, letters, image_seq_len=4, chat_template=TEMPLATE)
    return _save(folder, Idefics3ForConditionalGeneration(config), processor)


def parrot(folder, answer):
    """A LLaVA that answers one thing about every image: after the prompt's last blank, and then it ends."""
    import torch
    from safetensors.torch import load_file, save_file

    llava(folder, words=[answer])
    letters = tokenizer(words=[answer])
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if name.endswith(("o_proj.weight", "down_proj.weight")) and "language_model" in name:
            weights[name] = torch.zeros_like(weights[name])
    (embedding,) = (name for name in weights if name.endswith("embed_tokens.weight"))
    (head,) = (name for name in weights if name.endswith("lm_head.weight"))
    # Each token's vector passes unchanged: two of them decide what follows.
    weights[embedding] = torch.zeros_like(weights[embedding])
    weights[head] = torch.zeros_like(weights[head])
    chain = [letters.encode(" ")[0], letters.convert_tokens_to_ids(answer), letters.eos_token_id]
    for axis, (now, then) in enumerate(itertools.pairwise(chain)):
        weights[embedding][now, axis] = 1.0
        weights[head][then, axis] = 1.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def change(folder, file, **values):
    """Other values in one of a folder's JSON files; None removes one."""
    path = folder / file
    data = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in data.items() if value is not None}))


def ends_with_any_letter_of(folder, share):
    """Let a random model end: every so many-th token does it, the same ones each time."""
    from transformers import AutoTokenizer

    count = len(AutoTokenizer.from_pretrained(folder))
    change(folder, "generation_config.json", eos_token_id=list(range(0, count, share)))


def _save(folder, model, processor):
    letters = processor.tokenizer
    model.generation_config.eos_token_id = letters.eos_token_id
    model.generation_config.pad_token_id = letters.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
