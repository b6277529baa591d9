"""Loading, prompts, token groups, sites, interventions, generation; the only room that knows transformers."""

from twohop.models._attention import Knockout
from twohop.models._card import FileRecord, ModelCard, read_card
from twohop.models._model import Model, Run
from twohop.models._open import OpenedModel, open_model, open_tokenizer, opened
from twohop.models._prepare import materialise
from twohop.models._prompts import GROUP_MEANINGS, GROUPS, Batch, Prompt, Tokens
from twohop.models._sites import KIND_MEANINGS, KINDS, Patch, Site, SiteKind
from twohop.models._train import assembled_model, cross_namer, train_assembled, training_facts

__all__ = [
    "GROUPS",
    "GROUP_MEANINGS",
    "KINDS",
    "KIND_MEANINGS",
    "Batch",
    "FileRecord",
    "Knockout",
    "Model",
    "ModelCard",
    "OpenedModel",
    "Patch",
    "Prompt",
    "Run",
    "Site",
    "SiteKind",
    "Tokens",
    "assembled_model",
    "cross_namer",
    "materialise",
    "open_model",
    "open_tokenizer",
    "opened",
    "read_card",
    "train_assembled",
    "training_facts",
]
