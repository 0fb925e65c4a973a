"""Tiny random parts of pipelines: tokenizers, text encoders, VAEs."""

import torch
from diffusers import AutoencoderKL
from tokenizers import pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    Gemma2Config,
    Gemma2Model,
    GlmConfig,
    GlmModel,
    LlamaConfig,
    LlamaForCausalLM,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2TokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLModel,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)


def tiny_t5_tokenizer() -> T5TokenizerFast:
    """A T5 tokenizer of a few pieces and every ASCII character but the space."""
    pieces = ["▁a", "▁t", "▁ca", "▁cat", "re", "ne", "at", "▁"]
    letters = [chr(code) for code in range(33, 127)]
    scores = {"<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0} | dict.fromkeys(pieces, -2.0) | dict.fromkeys(letters, -4.0)
    return T5TokenizerFast(vocab=list(scores.items()), extra_ids=0)


def tiny_t5(tokenizer: T5TokenizerFast, width: int) -> T5EncoderModel:
    """A two-layer T5 encoder."""
    sizes = {"d_model": width, "d_kv": 6, "d_ff": 29, "num_layers": 2, "num_heads": 2}
    return T5EncoderModel(T5Config(vocab_size=len(tokenizer), **sizes)).eval()


def tiny_vae(channels: int = 16, **overrides) -> AutoencoderKL:
    """A VAE of 4-pixel cells."""
    sizes = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (4, 6, 10),
        "layers_per_block": 1,
        "latent_channels": channels,
        "norm_num_groups": 2,
        "sample_size": 56,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    return AutoencoderKL(**(sizes | overrides)).eval()


def sharpened(transformer: torch.nn.Module) -> torch.nn.Module:
    """Larger query and key weights: fresh ones attend almost evenly, which tests nothing."""
    for name, parameter in transformer.named_parameters():
        if any(part in name for part in ("to_q.", "to_k.", "add_q_proj.", "add_k_proj.")) and parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.4)
    return transformer.eval()


def tiny_qwen_tokenizer(**settings) -> Qwen2TokenizerFast:
    """A byte-level tokenizer of a few pieces, with the form of Qwen3's chat template."""
    # a library's trainer would break ties at random
    merges = [("c", "a"), ("ca", "t"), ("Ġ", "cat"), ("Ġ", "a"), ("r", "e"), ("e", "re"), ("Ġ", "t")]
    pieces = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Qwen2TokenizerFast(vocab=vocab, merges=merges, eos_token="<|im_end|>", **settings)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    )
    return tokenizer


class TextProcessor(ProcessorMixin):
    """A processor of text alone: FLUX.2 dev's own, PixtralProcessor, needs torchvision."""

    def __init__(self, tokenizer=None, chat_template=None):
        super().__init__(tokenizer, chat_template=chat_template)


def tiny_mistral(width: int, layers: int = 30) -> tuple[Mistral3ForConditionalGeneration, TextProcessor]:
    """A small Mistral 3, of which only the language model runs, and what reads its chats."""
    tokenizer = tiny_qwen_tokenizer(padding_side="left", bos_token="<s>")
    tokenizer.add_tokens(["<s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"], special_tokens=True)
    template = (
        "{{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}"
        "[SYSTEM_PROMPT]{{ message.content[0].text }}[/SYSTEM_PROMPT]{% else %}"
        "[INST]{{ message.content[0].text }}[/INST]{% endif %}{% endfor %}"
    )
    text = {"hidden_size": width, "intermediate_size": width + 1, "num_hidden_layers": layers, "head_dim": 6}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": len(tokenizer)}
    vision = {"hidden_size": 8, "intermediate_size": 9, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 4}
    config = Mistral3Config(
        text_config=MistralConfig(**text), vision_config=PixtralVisionConfig(**vision, image_size=28, patch_size=14)
    )
    return Mistral3ForConditionalGeneration(config).eval(), TextProcessor(tokenizer, chat_template=template)


def tiny_qwen(tokenizer: Qwen2TokenizerFast, width: int, layers: int = 4) -> Qwen3ForCausalLM:
    """A small Qwen3."""
    sizes = {"hidden_size": width, "intermediate_size": width + 1, "num_hidden_layers": layers, "head_dim": 6}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), **sizes, **heads)).eval()


def tiny_glm() -> tuple[GlmModel, Qwen2TokenizerFast]:
    """A small GLM, and a tokenizer that puts two special tokens before a prompt and pads before them."""
    tokenizer = tiny_qwen_tokenizer(padding_side="left")
    tokenizer.add_tokens(["[gMASK]", "<sop>"], special_tokens=True)
    before = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("[gMASK]", "<sop>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="[gMASK] <sop> $A", special_tokens=before)
    sizes = {"hidden_size": 14, "intermediate_size": 15, "num_hidden_layers": 3, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": tokenizer.pad_token_id}
    return GlmModel(GlmConfig(vocab_size=len(tokenizer), **sizes, **heads)).eval(), tokenizer


def tiny_gemma(width: int) -> tuple[Gemma2Model, Qwen2TokenizerFast]:
    """A small Gemma 2, and a tokenizer that puts a special token before a prompt."""
    tokenizer = tiny_qwen_tokenizer(bos_token="<bos>")
    tokenizer.add_tokens(["<bos>"], special_tokens=True)
    start = [("<bos>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=start)
    sizes = {"hidden_size": width, "intermediate_size": 15, "num_hidden_layers": 3, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return Gemma2Model(Gemma2Config(vocab_size=len(tokenizer), **sizes, **heads, **ids)).eval(), tokenizer


def tiny_llama(tokenizer: Qwen2TokenizerFast, width: int) -> LlamaForCausalLM:
    """A small Llama of 4 layers."""
    sizes = {"hidden_size": width, "intermediate_size": 15, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    ids = {name: getattr(tokenizer, name) for name in ("eos_token_id", "pad_token_id")}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **heads, **ids)).eval()


def tiny_qwen_vl(tokenizer: Qwen2TokenizerFast, width: int) -> Qwen2_5_VLForConditionalGeneration:
    """A small Qwen2.5-VL, of which only the language model runs."""
    text = {"hidden_size": width, "intermediate_size": width + 1, "num_hidden_layers": 4, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 1, "vocab_size": len(tokenizer)}
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 1], "rope_theta": 1e4}}
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "out_hidden_size": width}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)).eval()


def tiny_qwen3_vl(tokenizer: Qwen2TokenizerFast, width: int) -> Qwen3VLModel:
    """A small Qwen3-VL, of which only the language model runs."""
    text = {"hidden_size": width, "intermediate_size": width + 1, "num_hidden_layers": 4, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 1, "vocab_size": len(tokenizer), "head_dim": 10}
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 1], "rope_theta": 1e4}}
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "out_hidden_size": width}
    return Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision)).eval()
