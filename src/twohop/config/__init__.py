"""params.yaml as typed, frozen, documented models; the only reader of the file."""

from twohop.config._analysis import (
    CaptionRecipe,
    CrossRecipe,
    EarlyRecipe,
    ExtractActivations,
    MeasureResolution,
    NativeRecipe,
    PatchActivations,
    PlotFigures,
    PrepareModel,
    RecoverRecall,
    RenderReport,
    RunBenchmark,
    ScoreAttribution,
    TrainProbes,
    TrainProjector,
)
from twohop.config._base import Section
from twohop.config._catalogue import (
    AssembledVlm,
    HubRepository,
    Loading,
    LocalFolder,
    ModelEntry,
    PackageBackbone,
    RandomModel,
)
from twohop.config._data import BuildQuestions, CurateEntities, FetchImages
from twohop.config._load import load_params, parse_params
from twohop.config._params import Params, art_source, section_keys
from twohop.config._resources import BEFORE_CARD, WIDTHS, ModelSize, Needs, needs, read_size
from twohop.config._shipped import CATALOG, ShippedModel, shipped_models
from twohop.config._short import ShortEntry
from twohop.config._sources import TableSource, WikidataSource, source_pictures, source_table, source_tables

__all__ = [
    "BEFORE_CARD",
    "CATALOG",
    "WIDTHS",
    "AssembledVlm",
    "BuildQuestions",
    "CaptionRecipe",
    "CrossRecipe",
    "CurateEntities",
    "EarlyRecipe",
    "ExtractActivations",
    "FetchImages",
    "HubRepository",
    "Loading",
    "LocalFolder",
    "MeasureResolution",
    "ModelEntry",
    "ModelSize",
    "NativeRecipe",
    "Needs",
    "PackageBackbone",
    "Params",
    "PatchActivations",
    "PlotFigures",
    "PrepareModel",
    "RandomModel",
    "RecoverRecall",
    "RenderReport",
    "RunBenchmark",
    "ScoreAttribution",
    "Section",
    "ShippedModel",
    "ShortEntry",
    "TableSource",
    "TrainProbes",
    "TrainProjector",
    "WikidataSource",
    "art_source",
    "load_params",
    "needs",
    "parse_params",
    "read_size",
    "section_keys",
    "shipped_models",
    "source_pictures",
    "source_table",
    "source_tables",
]
