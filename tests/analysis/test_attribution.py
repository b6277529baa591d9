import pytest
import torch
from toy_decoder import EMBEDDING, ToyBatch, ToyDecoder, ToyPatch, ToySite

from twohop.analysis import Contrast, Node, Runner, attribute, group_scores, patch_nodes
from twohop.errors import DataError


def twins(batch: int = 3, seq: int = 6, d_model: int = 5, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    clean = torch.randn(batch, seq, d_model, generator=draw, dtype=torch.float64)
    corrupted = clean.clone()
    corrupted[:, 1:3] += scale * torch.randn(batch, 2, d_model, generator=draw, dtype=torch.float64)
    return clean, corrupted


def contrast(batch: int = 3) -> Contrast:
    return Contrast(torch.arange(batch), torch.arange(batch) + 3)


def score(decoder: ToyDecoder, clean: torch.Tensor, corrupted: torch.Tensor, sites=None, steps: int = 1):
    runner = Runner(decoder.run, ToyPatch)
    batches = decoder.batch(clean), decoder.batch(corrupted)
    return attribute(runner, *batches, contrast(len(clean)), sites or decoder.sites(), EMBEDDING, steps)


def truly_patched(decoder: ToyDecoder, clean, corrupted, row: int, nodes, size: int = 4) -> torch.Tensor:
    activations = decoder.run(decoder.batch(corrupted[[row]]), capture=decoder.sites()).activations
    pair = Contrast(torch.tensor([row]), torch.tensor([row + 3]))
    repeat = lambda n: decoder.batch(clean[[row]].repeat(n, 1, 1))  # noqa: E731
    return patch_nodes(Runner(decoder.run, ToyPatch), repeat, activations, [Node(*node) for node in nodes], pair, size)


def every_node(decoder: ToyDecoder, clean: torch.Tensor):
    groups = decoder.batch(clean[:1]).groups
    return [(site, g, groups[g][0]) for site in decoder.sites() for g in ("entity", "question", "last")]


def test_attribution_is_exact_on_a_linear_model():
    decoder = ToyDecoder()
    clean, corrupted = twins()
    scores = group_scores(score(decoder, clean, corrupted).positions, decoder.batch(clean).groups)
    nodes = every_node(decoder, clean)
    for row in range(len(clean)):
        changes = truly_patched(decoder, clean, corrupted, row, [(site, mask) for site, _, mask in nodes])
        expected = torch.stack([scores[site, group][row] for site, group, _ in nodes])
        assert torch.allclose(changes, expected, atol=1e-12)
        assert float(changes.abs().max()) > 0.1


def test_x06_attribution_equals_finite_differences_for_small_changes():
    decoder = ToyDecoder(linear=False)
    clean, corrupted = twins(scale=1e-4)
    scores = group_scores(score(decoder, clean, corrupted).positions, decoder.batch(clean).groups)
    nodes = every_node(decoder, clean)
    changes = truly_patched(decoder, clean, corrupted, 0, [(site, mask) for site, _, mask in nodes])
    expected = torch.stack([scores[site, group][0] for site, group, _ in nodes])
    assert torch.allclose(changes, expected, rtol=2e-3, atol=1e-9)


@pytest.mark.parametrize(("steps", "holds"), [(64, True), (1, False)])
def test_integrated_gradients_of_the_embedding_are_complete(steps: int, holds: bool):
    decoder = ToyDecoder(linear=False)
    found = score(decoder, *twins(scale=2.0), sites=[EMBEDDING], steps=steps)
    change = found.corrupted_metric - found.clean_metric
    assert torch.allclose(found.positions[EMBEDDING].sum(1), change, atol=1e-3) is holds


def test_integrated_gradients_equal_the_plain_gradient_on_a_linear_model():
    decoder = ToyDecoder()
    plain, integrated = score(decoder, *twins()), score(decoder, *twins(), steps=5)
    for site in decoder.sites():
        assert torch.allclose(plain.positions[site], integrated.positions[site], atol=1e-12)


def test_metric_is_the_logit_difference_of_each_row():
    decoder = ToyDecoder()
    clean, corrupted = twins()
    found = score(decoder, clean, corrupted)
    logits = decoder.run(decoder.batch(clean)).logits
    assert found.clean_metric.tolist() == [float(logits[i, i] - logits[i, i + 3]) for i in range(3)]
    other = decoder.run(decoder.batch(corrupted)).logits
    assert found.corrupted_metric.tolist() == [float(other[i, i] - other[i, i + 3]) for i in range(3)]


def test_positions_before_the_entity_score_zero():
    found = score(ToyDecoder(linear=False), *twins())
    assert all(float(s[:, 0].abs().max()) == 0.0 for s in found.positions.values())


def test_rows_of_a_batch_do_not_touch_each_other():
    decoder = ToyDecoder(linear=False)
    clean, corrupted = twins()
    together = score(decoder, clean, corrupted).positions
    alone = score(decoder, clean[:1], corrupted[:1]).positions
    for site in decoder.sites():
        assert torch.allclose(together[site][:1], alone[site], atol=1e-12)


def test_last_layer_cannot_matter_before_the_last_position():
    decoder = ToyDecoder()
    found = score(decoder, *twins()).positions[ToySite("resid_post", 2)]
    assert float(found[:, :-1].abs().max()) == 0.0
    assert float(found[:, -1].abs().min()) > 0.0


def test_misaligned_twins_are_refused():
    decoder = ToyDecoder()
    clean, corrupted = twins()
    with pytest.raises(DataError, match="differ in their token positions"):
        attribute(
            Runner(decoder.run, ToyPatch),
            decoder.batch(clean),
            decoder.batch(corrupted, entity=slice(1, 4)),
            contrast(),
            decoder.sites(),
            EMBEDDING,
        )
    longer = ToyBatch(corrupted, {k: torch.cat([v, v], 1) for k, v in decoder.batch(corrupted).groups.items()})
    with pytest.raises(DataError, match="token group"):
        attribute(Runner(decoder.run, ToyPatch), decoder.batch(clean), longer, contrast(), decoder.sites(), EMBEDDING)


def test_absent_groups_have_no_score():
    decoder = ToyDecoder()
    clean, corrupted = twins()
    scores = group_scores(score(decoder, clean, corrupted).positions, decoder.batch(clean).groups)
    assert {group for _, group in scores} == {"entity", "question", "last"}


@pytest.mark.parametrize("size", [1, 3, 100])
def test_nodes_patched_together_equal_nodes_patched_alone(size: int):
    decoder = ToyDecoder(linear=False)
    clean, corrupted = twins()
    nodes = [(site, mask) for site, _, mask in every_node(decoder, clean)]
    one_by_one = torch.cat([truly_patched(decoder, clean, corrupted, 1, [node]) for node in nodes])
    decoder.forwards = 0
    together = truly_patched(decoder, clean, corrupted, 1, nodes, size)
    assert torch.allclose(one_by_one, together, atol=1e-12)
    assert decoder.forwards == 2 + -(-len(nodes) // size)


def test_x03_clean_into_clean_changes_nothing():
    decoder = ToyDecoder(linear=False)
    clean, _ = twins()
    nodes = [(site, mask) for site, _, mask in every_node(decoder, clean)]
    assert torch.equal(truly_patched(decoder, clean, clean, 0, nodes, 100), torch.zeros(len(nodes), dtype=clean.dtype))


def test_no_nodes_give_no_changes():
    decoder = ToyDecoder()
    clean, corrupted = twins()
    assert truly_patched(decoder, clean, corrupted, 0, []).shape == (0,)
