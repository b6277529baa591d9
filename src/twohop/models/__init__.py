"""Loading, prompts, token groups, sites, interventions, generation; the only room that knows transformers."""

from twohop.models._attention import Knockout
from twohop.models._batch import rows_at_once
from twohop.models._card import FileRecord, ModelCard, read_card
from twohop.models._check import Checked, Fit, Shape, check_folder, compare
from twohop.models._fetch import Fetcher, is_fetched, set_fetcher, snapshot_folder
from twohop.models._model import Model, Run
from twohop.models._open import OpenedModel, check_backbone, checked_folder, open_model, open_tokenizer, opened
from twohop.models._prepare import cache_root, materialise
from twohop.models._prompts import GROUP_MEANINGS, GROUPS, Batch, Picture, Prompt, Tokens, Trunk
from twohop.models._sites import KIND_MEANINGS, KINDS, Patch, Site, SiteKind
from twohop.models._train import assembled_model, train_assembled, training_facts

__all__ = [
    "GROUPS",
    "GROUP_MEANINGS",
    "KINDS",
    "KIND_MEANINGS",
    "Batch",
    "Checked",
    "Fetcher",
    "FileRecord",
    "Fit",
    "Knockout",
    "Model",
    "ModelCard",
    "OpenedModel",
    "Patch",
    "Picture",
    "Prompt",
    "Run",
    "Shape",
    "Site",
    "SiteKind",
    "Tokens",
    "Trunk",
    "assembled_model",
    "cache_root",
    "check_backbone",
    "check_folder",
    "checked_folder",
    "compare",
    "is_fetched",
    "materialise",
    "open_model",
    "open_tokenizer",
    "opened",
    "read_card",
    "rows_at_once",
    "set_fetcher",
    "snapshot_folder",
    "train_assembled",
    "training_facts",
]
