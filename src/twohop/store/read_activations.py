"""Read a bundle with h5py and numpy alone: `python read_activations.py` in its folder."""

import json

import h5py
import numpy as np


def read(path: str, run: str, kind: str, group: str, layer: int) -> np.ndarray:
    """(row, d_model) as float32; row i is entry i of questions.json (run `pictures`: of pictures.json)."""
    with h5py.File(path) as file:
        values = file[f"{run}/{kind}/{group}"][:, list(file[f"{run}/layers"]).index(layer)]
        if json.loads(file.attrs["dtype"]) == "bfloat16":  # the upper half of a float32
            values = (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32)


if __name__ == "__main__":
    values = read("activations.h5", "text", "resid_post", "last", layer=2)
    with open("questions.json") as file:
        for question, row in zip(json.load(file)[:3], values, strict=False):
            print(question["prompt"].format(entity=question["name"]), row[:4])
