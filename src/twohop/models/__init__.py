"""Loading, prompts, token groups, sites, interventions, generation; the only room that knows transformers."""

from twohop.models._card import FileRecord, ModelCard, read_card
from twohop.models._model import Model, Run
from twohop.models._open import open_model, open_tokenizer
from twohop.models._prepare import materialise
from twohop.models._prompts import GROUPS, Batch, Prompt, Tokens
from twohop.models._sites import KINDS, Patch, Site

__all__ = [
    "GROUPS",
    "KINDS",
    "Batch",
    "FileRecord",
    "Model",
    "ModelCard",
    "Patch",
    "Prompt",
    "Run",
    "Site",
    "Tokens",
    "materialise",
    "open_model",
    "open_tokenizer",
    "read_card",
]
