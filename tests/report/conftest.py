import pytest

from study_tables import MODELS, PAIRS, write_study
from twohop.figures import CAPTIONS, load_study, summarise


@pytest.fixture(scope="package")
def study(tmp_path_factory):
    return load_study(write_study(tmp_path_factory.mktemp("results")), MODELS)


@pytest.fixture(scope="package")
def summary(study):
    found = summarise(study, [(a, b) for a, b in PAIRS], 100, 0)
    return {**found, "captions": {name: caption(found) for name, caption in CAPTIONS.items()}}
