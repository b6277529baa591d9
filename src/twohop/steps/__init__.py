"""One module per step: reads artifacts, calls analysis, writes artifacts with lineage."""
