"""The tuned lens finds an affine map that is known, and never leaves a model worse than the logit lens on what it held
out.
"""

import pytest
import torch

from twohop.analysis import Translator, candidate_tokens, fit_translator
from twohop.analysis._lens import ridge_translators
from twohop.errors import DataError

N, D, VOCAB = 600, 12, 30


@pytest.fixture(scope="module")
def known() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """States, final residuals = an affine map of them, what is held out, and an unembedding."""
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(N, D, generator=draw) * torch.linspace(0.2, 5, D)
    weight, bias = torch.randn(D, D, generator=draw) * 0.5, torch.randn(D, generator=draw)
    head = torch.randn(D, VOCAB, generator=draw)
    held = torch.arange(N) % 5 == 0
    return states, states + states @ weight.T + bias, held, head


def decoder(head):
    return lambda resid: resid / resid.pow(2).mean(-1, keepdim=True).sqrt() @ head


def test_known_affine_map_is_recovered(known) -> None:
    states, final, held, head = known
    fit = fit_translator(states, final, held, decoder(head), 40, 0)
    assert fit.kl_identity > 0.3
    assert fit.kl < 1e-3
    wanted = decoder(head)(final[held]).argmax(-1)
    assert (decoder(head)(fit.translator(states[held])).argmax(-1) == wanted).float().mean() > 0.98


def test_descent_improves_on_a_start_that_does_not_fit(known) -> None:
    states, final, held, head = known
    crooked = torch.tanh(final)  # no affine map of the states
    fit = fit_translator(states, crooked, held, decoder(head), 100, 0)
    assert fit.steps > 0
    assert fit.kl < fit.kl_start < fit.kl_identity


@pytest.mark.parametrize("steps", [0, 20])
def test_held_out_loss_never_grows_and_seeds_repeat(known, steps: int) -> None:
    states, _, held, head = known
    noise = torch.randn(N, D, generator=torch.Generator().manual_seed(1))
    one, two = (fit_translator(states, noise, held, decoder(head), steps, 3) for _ in range(2))
    assert one.kl <= one.kl_start <= one.kl_identity
    assert torch.equal(one.translator.weight, two.translator.weight)
    assert torch.equal(one.translator.bias, two.translator.bias)


def test_last_layer_stays_the_identity(known) -> None:
    _, final, held, head = known
    fit = fit_translator(final, final, held, decoder(head), 0, 0)
    assert fit.start == "identity"
    assert torch.equal(fit.translator(final), final)


def test_weak_ridge_equals_weighted_least_squares(known) -> None:
    states, final, _, _ = known
    (found,) = ridge_translators(states, final + torch.randn(N, D) * 0.3, [1e-9])
    assert isinstance(found, Translator)
    torch.testing.assert_close(found(states), final, atol=0.3, rtol=0.1)


def test_nothing_held_out_is_refused(known) -> None:
    states, final, held, head = known
    with pytest.raises(DataError, match="held out"):
        fit_translator(states, final, torch.zeros_like(held), decoder(head), 1, 0)


def test_candidates_are_the_most_probable_and_what_must_be_there() -> None:
    assert candidate_tokens(torch.tensor([0.1, 0.5, 0.2, 0.3]), [0, 1], 2) == [0, 1, 3]
    assert candidate_tokens(torch.tensor([0.1, 0.5]), [], 9) == [0, 1]
