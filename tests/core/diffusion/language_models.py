"""Tiny random language models with tokenizers, made on the spot: Qwen3, and gpt-oss with a chat template."""

from __future__ import annotations

import json

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GptOssConfig, GptOssModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

HARMONY = tuple(
    f"<|{name}|>"
    for name in (
        *("startoftext", "endoftext", "return", "constrain", "channel", "start", "end", "message", "call"),
        *("endofprompt", "reserved_200000", "reserved_200001", "reserved_200017"),
    )
)
TEMPLATE = {"system": "Say what is to be seen.", "thinking": "One picture, then.", "date": "2026-05-23"}
WORDS = [
    "a red circle on a white field",
    "two blue squares left of a green star",
    "system developer user assistant analysis final channel instructions date reasoning medium",
]

# Turns in the manner of OpenAI's: the system turn becomes the developer's, the date is asked for inside a macro.
CHAT = """{%- macro about() -%}
  {{- "Current date: " + strftime_now("%Y-%m-%d") + "\\n\\nReasoning: medium" }}
{%- endmacro -%}
{{- "<|start|>system<|message|>" }}{{- about() }}{{- "<|end|>" }}
{%- for message in messages -%}
  {%- if message.role == "system" -%}
    {{- "<|start|>developer<|message|># Instructions\\n\\n" + message.content + "\\n\\n<|end|>" }}
  {%- elif message.role == "user" -%}
    {{- "<|start|>user<|message|>" + message.content + "<|end|>" }}
  {%- else -%}
    {{- "<|start|>assistant<|channel|>analysis<|message|>" + message.thinking + "<|end|>" }}
    {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|return|>" }}
  {%- endif -%}
{%- endfor -%}"""


def tokenizer(special=HARMONY, other=(), chat=CHAT, size=400):
    """A byte-level tokenizer that learned a few words."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        WORDS, trainers.BpeTrainer(vocab_size=size, show_progress=False, initial_alphabet=alphabet)
    )
    made.add_special_tokens(list(special))
    made.add_tokens([AddedToken(word, special=False) for word in other])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made)
    wrapped.chat_template = chat
    return wrapped


def shake(model):
    """Make every weight random, so that nothing is one or zero by initialisation."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def qwen3(folder, *, layers=4, words=None):
    """A folder as the Hub has it: model and tokenizer side by side."""
    words = words or tokenizer(("<|im_start|>", "<|im_end|>", "<|endoftext|>"), ("<think>", "</think>"), chat=None)
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
    )
    shake(Qwen3Model(config)).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def gpt_oss_config(**changes):
    small = {
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
    }
    return GptOssConfig(**small | changes)


def gpt_oss(folder, *, words=None, template=TEMPLATE):
    """A model folder, as far as a text encoder looks at it."""
    shake(GptOssModel(gpt_oss_config())).save_pretrained(folder / "text_encoder")
    (words or tokenizer()).save_pretrained(folder / "tokenizer")
    if template is not None:
        (folder / "lens.json").write_text(json.dumps({"format_version": 1, "template": template}))
    return folder
