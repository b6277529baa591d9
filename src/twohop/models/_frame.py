"""What stands round a prompt: what the real processor and the chat template write before, after, and for a picture.

Nothing of it is guessed: a processor is called once on a marked text with a picture, and what it hands to its tokenizer
is read. So a prompt made here is, token for token, the one that the processor would make (promise X9).
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from PIL import Image

from twohop.errors import ModelError

START, END = "\x02", "\x03"
"""Marks round the place of the entity; no tokenizer of a language model sees them."""


@dataclass(frozen=True)
class Frame:
    """Texts that every prompt of a model is put between."""

    head: str = ""
    """Before a prompt without a picture."""
    tail: str = ""
    """After it; the position that predicts the answer is its last token's."""
    picture_head: str = ""
    picture_tail: str = ""
    """The same for a prompt with a picture."""
    placeholder: str = ""
    """What the processor is given where the picture stands."""
    special: bool = True
    """The tokenizer adds its own special tokens."""

    @property
    def lead(self) -> str:
        """What separates an answer from the prompt: nothing where the frame ends with a space or a new line."""
        return "" if self.tail[-1:].isspace() else " "


@dataclass(frozen=True)
class Written:
    """What a processor hands to its tokenizer for one marked prompt."""

    head: str
    entity: str
    tail: str
    special: bool = True


@dataclass
class _Recorder:
    """A tokenizer that remembers what it was asked."""

    inner: Any
    texts: list[str] = field(default_factory=list[str])
    kwargs: dict[str, Any] = field(default_factory=dict[str, Any])

    def __call__(self, text: Any, *args: Any, **kwargs: Any) -> Any:
        self.texts, self.kwargs = list(text) if isinstance(text, list) else [str(text)], kwargs
        return self.inner(text, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def find_frame(tokenizer: Any, processor: Any = None, chat: bool = False) -> Frame:
    """The frame of a model's prompts.

    Args:
        tokenizer: of a language model, or the processor's own.
        processor: the whole processor of a vision-language model; None: there are no pictures.
        chat: prompts are the user's turn of the chat template.

    Raises:
        ModelError: no chat template where one is asked for, or the processor does not take a picture inside a text.
    """
    before, after = _chat(tokenizer, processor) if chat else ("", "")
    bos = getattr(tokenizer, "bos_token", None)
    special = not (bos and before.startswith(bos))  # else there would be two
    if processor is None:
        return Frame(before, after, special=special)
    placeholder = _placeholder(tokenizer, processor)
    shown = written(processor, f"{before}{START}{placeholder}{END}{after}", _blank())
    if bos and shown.entity.endswith(bos):
        # PaliGemma: what follows the picture is a text with a start of its own; its processor takes no text alone
        named = Written(f"{bos}{before}", "", shown.tail, shown.special)
    else:
        named = written(processor, f"{before}{START}x{END}{after}")
    special = special and named.special and not (bos and named.head.startswith(bos))
    return Frame(named.head, named.tail, shown.head, shown.tail, placeholder, special)


def written(processor: Any, text: str, picture: Image.Image | None = None) -> Written:
    """What the processor makes of a text whose entity stands between the two marks."""
    return process(processor, text, picture)[0]


def process(processor: Any, text: str, picture: Image.Image | None = None) -> tuple[Written, Mapping[str, Any]]:
    """The same, and the processor's whole output.

    Raises:
        ModelError: the processor refuses the text or the picture, or changes more than the picture's place.
    """
    tokenizer, recorder = processor.tokenizer, _Recorder(processor.tokenizer)
    processor.tokenizer = recorder
    try:
        out = call(processor, text, picture)
    finally:
        processor.tokenizer = tokenizer
    made = recorder.texts[0]
    if made.count(START) != 1 or made.count(END) != 1:
        raise ModelError(
            "the processor does not keep a text as it is", type(processor).__name__, "this family is not supported"
        )
    head, rest = made.split(START)
    entity, tail = rest.split(END)
    return Written(head, entity, tail, bool(recorder.kwargs.get("add_special_tokens", True))), out


def call(processor: Any, text: str, picture: Image.Image | None = None) -> Mapping[str, Any]:
    """The processor's whole output for one text and at most one picture.

    Raises:
        ModelError: the processor refuses them.
    """
    images = {} if picture is None else {"images": [picture]}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # PaliGemma's makes an array of a tensor
            return cast("Mapping[str, Any]", processor(text=[text], return_tensors="pt", **images))
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, RuntimeError) as error:
        raise ModelError(
            f"the processor refuses a prompt: {error}",
            type(processor).__name__,
            "check the folder's tokenizer and processor files: the tokenizer needs the image token",
        ) from error


def count_image_tokens(processor: Any, placeholder: str, token: int, side: int) -> int:
    """Image tokens that the processor writes for a blank square picture of `side` pixels."""
    blank = Image.new("RGB", (side, side), (128, 128, 128))
    return int((call(processor, placeholder, blank)["input_ids"] == token).sum())


def _blank() -> Image.Image:
    return Image.new("RGB", (64, 64), (128, 128, 128))


def _chat(tokenizer: Any, processor: Any) -> tuple[str, str]:
    """What the chat template writes before and after the user's text."""
    made = render(tokenizer, processor, [{"type": "text", "text": f"{START}{END}"}])
    if made.count(f"{START}{END}") != 1:
        raise ModelError("the chat template does not show the user's text", "chat template", "use prompt: plain")
    before, after = made.split(f"{START}{END}")
    return before, after


def template_of(tokenizer: Any, processor: Any) -> str | None:
    """The chat template: the processor's own, else the tokenizer's."""
    found = getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)
    return found if isinstance(found, str) else None


def render(tokenizer: Any, processor: Any, content: list[dict[str, str]]) -> str:
    """One user's turn with the start of the answer.

    Raises:
        ModelError: there is no chat template, or it fails.
    """
    template = template_of(tokenizer, processor)
    if template is None:
        raise ModelError(
            "no chat template", str(getattr(tokenizer, "name_or_path", "") or "tokenizer"), "write prompt: plain"
        )
    settings: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True, "chat_template": template}
    plain = "".join(part.get("text", "") for part in content)
    text = ""
    for turn in (content, plain):  # templates of language models take a text, others a list of parts
        try:
            text = str(tokenizer.apply_chat_template([{"role": "user", "content": turn}], **settings))
        except Exception as error:
            if turn is plain:
                raise ModelError(f"the chat template fails: {error}", "chat template", "use prompt: plain") from error
            continue
        if plain and text.count(plain) == 1 and "{'type'" not in text and '{"type"' not in text:
            return text
    return text


def _placeholder(tokenizer: Any, processor: Any) -> str:
    """What a user writes for a picture: what the chat template writes, or the processor's image token alone."""
    token = getattr(processor, "image_token", None)
    if not isinstance(token, str) or tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
        raise ModelError(
            f"the tokenizer has no image token {token!r}",
            type(processor).__name__,
            "take the tokenizer files of the vision-language model, not of its language model",
        )
    if template_of(tokenizer, processor) is None:
        return token
    text = {"type": "text", "text": f"{START}{END}"}
    try:
        alone, shown = (render(tokenizer, processor, parts) for parts in ([text], [{"type": "image"}, text]))
    except ModelError:
        return token
    before, with_picture = alone.split(START)[0], shown.split(START)[0]
    added = with_picture[len(before) :].strip() if with_picture.startswith(before) else ""
    return added if added.count(token) == 1 else token
