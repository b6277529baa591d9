"""The base of every section of params.yaml: frozen, closed, documented."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One section of params.yaml; unknown keys are refused and values are never coerced from another type."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
