"""GradDrop on a decoder whose effects cancel by construction; `tests/models/test_attend.py` has real attention."""

import pytest
import torch
from toy_decoder import EMBEDDING, ToyDecoder, ToyPatch, ToySite

from twohop.analysis import Contrast, Drop, Node, Runner, attribute, attribute_star, patch_nodes


def cancelling() -> tuple[ToyDecoder, torch.Tensor, torch.Tensor]:
    """Layer 0 writes x, layer 1 writes tanh(-x): to first order the two cancel, but not for a large x."""
    decoder = ToyDecoder(n_layers=3, linear=False)
    eye = torch.eye(5, dtype=torch.float64)
    decoder.weights = torch.stack([eye, -eye, torch.zeros_like(eye)])
    clean = torch.zeros(1, 1, 5, dtype=torch.float64)
    return decoder, clean, clean + torch.tensor([1.5, -1.0, 0.7, 1.2, -0.4], dtype=torch.float64)


def test_graddrop_finds_a_node_whose_effects_cancel() -> None:
    decoder, clean, corrupted = cancelling()
    node = ToySite("mlp_write", 0)
    runner, pair = Runner(decoder.run, ToyPatch), Contrast(torch.tensor([0]), torch.tensor([3]))
    twins = decoder.batch(clean, slice(0, 1)), decoder.batch(corrupted, slice(0, 1))
    drops = [Drop((ToySite("mlp_write", n),), frozenset({ToySite("mlp_write", n)})) for n in range(3)]
    plain = attribute(runner, *twins, pair, [node], EMBEDDING)
    star = attribute_star(runner, *twins, pair, [node], [], drops)
    activations = decoder.run(twins[1], capture=[node]).activations
    truth = patch_nodes(
        runner, lambda n: decoder.batch(clean, slice(0, 1)), activations, [Node(node, torch.tensor([True]))], pair, 1
    )
    assert abs(float(truth)) > 0.1
    assert float(plain.magnitudes[node, "last"]) == pytest.approx(0.0, abs=1e-12)
    # drop of layer 1: the direct effect alone; of layer 2, which writes nothing: still cancelled; its own is left out
    head = decoder.head[:, 0] - decoder.head[:, 3]
    direct = abs(float(activations[node][0, 0] @ head))
    assert float(star.magnitudes[node, "last"]) == pytest.approx(direct / 2)
    assert float(star.nodes[node, "last"]) == pytest.approx(0.0, abs=1e-12)


def test_a_single_layer_has_nothing_to_drop() -> None:
    decoder, clean, corrupted = cancelling()
    node = ToySite("mlp_write", 2)
    runner, pair = Runner(decoder.run, ToyPatch), Contrast(torch.tensor([0]), torch.tensor([3]))
    twins = decoder.batch(clean, slice(0, 1)), decoder.batch(corrupted, slice(0, 1))
    star = attribute_star(runner, *twins, pair, [node], [], [Drop((node,), frozenset({node}))])
    assert torch.equal(star.magnitudes[node, "last"], star.nodes[node, "last"].abs())
