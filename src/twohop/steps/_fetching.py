"""Downloads for jobs: in a process of its own, the only one that is allowed to ask a hub.

What arrives is compared with the commit's hashes there, and with the model card here; so the downloader is no part of
the code that a step's results depend on.
"""

import os
import subprocess
import sys
from pathlib import Path

from twohop.errors import ModelError

ASKED_OFFLINE = "TWOHOP_HUB_OFFLINE"
"""What HF_HUB_OFFLINE was before the command line set it for everything but downloads."""


def fetch(model: str, revision: str, into: Path) -> None:
    """Let `twohop models fetch` download a model; its progress goes to this process's standard error.

    Raises:
        ModelError: it failed; with what it said.
    """
    words = [
        sys.executable,
        "-m",
        "twohop",
        "models",
        "fetch",
        "--id",
        model,
        "--revision",
        revision,
        "--into",
        str(into),
    ]
    env = {**os.environ, "HF_HUB_OFFLINE": os.environ.get(ASKED_OFFLINE, os.environ.get("HF_HUB_OFFLINE", "0"))}
    with subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said: list[str] = []
        try:
            for line in process.stderr:
                if said or line.startswith("error: "):
                    said.append(line.rstrip())
                else:
                    sys.stderr.write(line)
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        text = "\n".join(said).removeprefix("error: ") or f"the download ended with exit code {process.returncode}"
        raise ModelError(text)
