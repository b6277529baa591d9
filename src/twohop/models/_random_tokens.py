"""The tokenizers of the tiny random models: one byte-level BPE, with the special tokens of each language family."""

from dataclasses import dataclass, field
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

VOCABULARY = 384
"""Tokens that a tiny tokenizer learns, all bytes among them; tokens for pictures come on top."""
END, IMAGE = "<|im_end|>", "<image>"
CORPUS = (
    "Consider the country France. The capital of this country is Paris.",
    "Consider the country Japan. This country is in the continent of Asia.",
    "Consider the country Brazil. The official language of this country is Portuguese.",
    "The name of this country is Germany. This is the flag of Canada. The country is called Kenya.",
    "United States, United Kingdom, South Africa, New Zealand, Saint Lucia, North Macedonia, Ireland, Iceland",
)
"""Text that the tiny tokenizer learns its merges from: names of one and of several tokens come out of it."""


@dataclass(frozen=True)
class Vocabulary:
    """Special tokens of a language family."""

    end: str
    """Ends a turn."""
    begin: str | None = None
    """Opens every text when there is one; the tokenizer writes it by itself."""
    pad: str | None = None
    """Fills up rows; `end` when there is none."""
    others: tuple[str, ...] = ()
    """Marks of turns."""
    added: tuple[str, ...] = ()
    """Tokens after the learnt ones, without merges: those for pictures."""
    named: dict[str, str] = field(default_factory=dict[str, str])
    """Attributes of the tokenizer that a processor reads, e.g. {"image_token": "<image>"}."""
    pattern: str | None = None
    """How words are split; as GPT-2 does when absent."""
    chat_template: str | None = None
    """Jinja template of the family's own style."""


def tiny_tokenizer(vocabulary: Vocabulary | None = None) -> Any:
    """A byte-level BPE tokenizer with a few merges; it can write any text. Llama's when no family is named."""
    wanted = vocabulary or Vocabulary(END, added=(IMAGE,))
    raw: Any = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if wanted.pattern is not None:
        split = pre_tokenizers.Split(Regex(wanted.pattern), behavior="isolated", invert=False)
        raw.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
        raw.normalizer = normalizers.NFC()
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[t for t in (wanted.end, wanted.begin, wanted.pad, *wanted.others) if t is not None],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS, trainer)
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in wanted.added])
    roles: dict[str, Any] = {"eos_token": wanted.end, "pad_token": wanted.pad or wanted.end}
    if wanted.begin is not None:
        roles["bos_token"] = wanted.begin
        raw.post_processor = processors.TemplateProcessing(
            single=f"{wanted.begin}:0 $A:0",
            pair=f"{wanted.begin}:0 $A:0 $B:1",
            special_tokens=[(wanted.begin, raw.token_to_id(wanted.begin))],
        )
    named = dict(wanted.named)
    if "bos_token" in named:
        roles["bos_token"] = named.pop("bos_token")
    if named:
        roles["extra_special_tokens"] = named
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **roles)
    tokenizer.chat_template = wanted.chat_template
    return tokenizer


# The templates below are ours: the shape of each family's turns, with pictures, without tools or system prompts.

_CONTENT = (
    "{%% if message['content'] is string %%}{{ message['content'] }}{%% else %%}"
    "{%% for part in message['content'] %%}"
    "{%% if part['type'] == 'image' %%}{{ '%s' }}{%% else %%}{{ part['text'] }}{%% endif %%}"
    "{%% endfor %%}{%% endif %%}"
)


def chat_template(before: str, role: str, after: str, prompt: str, image: str) -> str:
    """A chat template: `before` opens the text, `role` and `after` stand around each message, `prompt` asks.

    Args:
        before: jinja that is written once.
        role: jinja that opens the message `message`.
        after: jinja that closes it.
        prompt: plain text that opens the answer.
        image: plain text for a picture.
    """
    content = _CONTENT % image.replace("\n", "\\n")
    return (
        f"{before}{{% for message in messages %}}{role}{content}{after}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ '{prompt}' }}}}{{% endif %}}"
    )


def vicuna(image: str = f"{IMAGE}\n") -> str:
    """LLaVA-1.5: USER: ... ASSISTANT: ..."""
    role = "{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' }}"
    after = "{{ ' ' if message['role'] == 'user' else '" + END + "' }}"
    return chat_template("", role, after, "ASSISTANT:", image)


def chatml(image: str = "<image>\n") -> str:
    """Qwen, LLaVA-OneVision, InternVL: <|im_start|>user ... <|im_end|>."""
    role = "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    return chat_template("", role, "{{ '<|im_end|>\\n' }}", "<|im_start|>assistant\\n", image)


def instruct(image: str = "[IMG]") -> str:
    """Mistral: [INST] ... [/INST]."""
    role = "{{ '[INST]' if message['role'] == 'user' else '' }}"
    after = "{{ '[/INST]' if message['role'] == 'user' else eos_token }}"
    return chat_template("{{ bos_token }}", role, after, "", image)


def gemma_turns(image: str = "<start_of_image>") -> str:
    """Gemma: <start_of_turn>user ... <end_of_turn>."""
    role = "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n' }}"
    return chat_template("{{ bos_token }}", role, "{{ '<end_of_turn>\\n' }}", "<start_of_turn>model\\n", image)


def headers(
    image: str = "<|image|>", marks: tuple[str, str, str] = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
) -> str:
    """Llama 3.2 and 4: a header with the role, two line ends, the text, an end of turn."""
    opening, closing, end = marks
    role = f"{{{{ '{opening}' + message['role'] + '{closing}\\n\\n' }}}}"
    prompt = f"{opening}assistant{closing}\\n\\n"
    return chat_template("{{ bos_token }}", role, f"{{{{ '{end}' }}}}", prompt, image)


def utterances(image: str = IMAGE) -> str:
    """Idefics3, SmolVLM: User: ... <end_of_utterance>."""
    role = "{{ message['role'] | capitalize + ': ' }}"
    return chat_template("", role, "{{ '<end_of_utterance>\\n' }}", "Assistant:", image)


def prefix(image: str = IMAGE) -> str:
    """PaliGemma has no turns: pictures, then the text; its processor adds the begin and the line end."""
    return chat_template("", "", "", "", image)
