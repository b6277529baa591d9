import pytest

from study_tables import MODELS, PAIRS, write_study
from twohop.figures import Study, load_study, summarise


@pytest.fixture(scope="package")
def study(tmp_path_factory) -> Study:
    return load_study(write_study(tmp_path_factory.mktemp("results")), MODELS)


@pytest.fixture(scope="package")
def summary(study):
    return summarise(study, [(a, b) for a, b in PAIRS], 100, 0)
