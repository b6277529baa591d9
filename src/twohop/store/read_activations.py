"""Read a layer of a bundle with h5py and numpy alone: `python read_activations.py text resid_post last 2`."""

import json
import sys

import h5py
import numpy as np


def read(path: str, run: str, kind: str, group: str, layer: int) -> np.ndarray:
    """(row, d_model) as float32; row i is what `questions.json` (or `pictures.json`) says at place i."""
    with h5py.File(path) as file:
        values = file[f"{run}/{kind}/{group}"][:, list(file[f"{run}/layers"]).index(layer)]
        if json.loads(file.attrs["dtype"]) == "bfloat16":  # the upper half of a float32
            values = (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32)


if __name__ == "__main__":
    print(read("activations.h5", *sys.argv[1:4], layer=int(sys.argv[4])))
