"""Tiny stand-ins for the embedded parts, as folders: a Llama with SmolLM2's spare tokens and a CLIP tower."""

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

D_MODEL, D_VISION, IMAGE_PX = 32, 24, 64
SPARE = ("<|im_end|>", "<|im_start|>", "<gh_stars>", "<jupyter_script>")
NAMES = ("Chad", "Peru", "Mali", "North Chad")


def write_parts(top: Path) -> tuple[Path, Path]:
    """Folders of the language model and of the tower."""
    torch.manual_seed(0)
    letters = [*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,:", "Ġ", "Ċ"]
    words = [*SPARE, *letters]
    raw = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], unk_token="<|im_end|>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPARE])
    end, start = SPARE[:2]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=start, eos_token=end, pad_token=end)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(top / "backbone")
    llama = LlamaConfig(
        vocab_size=len(words),
        hidden_size=D_MODEL,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=0,
        bos_token_id=1,
    )
    LlamaForCausalLM(llama).save_pretrained(top / "backbone")
    write_tower(top / "tower", IMAGE_PX)
    return top / "backbone", top / "tower"


def write_tower(out: Path, image_px: int) -> None:
    """A tower whose biases and norms are far from their start, so that nothing of the mapping is vacuous."""
    torch.manual_seed(1)
    clip = CLIPVisionConfig(
        hidden_size=D_VISION,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=image_px,
        patch_size=16,
        hidden_act="quick_gelu",
        initializer_range=0.3,
    )
    tower = CLIPVisionModel(clip)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    tower.save_pretrained(out)
