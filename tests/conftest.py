"""Every test run: shapes in signatures are checked, nothing reaches a hub, one thread per process."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

from jaxtyping import install_import_hook

install_import_hook(["twohop.analysis", "twohop.models", "twohop.store"], "beartype.beartype")
