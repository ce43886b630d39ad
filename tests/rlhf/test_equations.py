"""The equations of preference tuning in float64, on bandits where everything can be counted."""

import math

import pytest
import torch

import merge
import rules  # noqa: F401
from rlhf import policy, reward
from support import close

DOUBLE = {"dtype": torch.float64}


def bandit(*theta):
    """log pi of the actions, from their logits, and the logits, which are trained."""
    theta = torch.tensor(theta, **DOUBLE, requires_grad=True)
    return theta.log_softmax(0), theta


def expected_gradient(theta, returns, baseline):
    """- d/dtheta of E surrogate: every action once, as often as it is drawn."""
    total = torch.zeros_like(theta)
    for i, p in enumerate(theta.detach().softmax(0)):
        log_p = theta.log_softmax(0)[i].view(1, 1)
        loss = policy.surrogate(log_p, (returns[i] - baseline).view(1, 1), torch.ones(1, 1))
        total -= p * torch.autograd.grad(loss, theta)[0]
    return total


@pytest.mark.parametrize("baseline", [0.0, 0.25, 0.75, 1.0])
def test_reinforce_is_the_gradient_whatever_the_baseline(baseline):
    """pi = (1/4, 3/4), r = (1, 0): J = 1/4 and dJ/dtheta_i = pi_i (r_i - J) = +-.1875."""
    _, theta = bandit(0.0, math.log(3))
    got = expected_gradient(theta, torch.tensor([1.0, 0.0], **DOUBLE), baseline)
    close(got, torch.tensor([0.1875, -0.1875], **DOUBLE), atol=1e-12, rtol=0)


def test_the_log_ratio_in_the_return_needs_no_gradient():
    """E of the surrogate with R held constant is the derivative of the exact J, KL included."""
    log_p, theta = bandit(0.3, -0.2)
    anchor, r = torch.tensor([0.5, 0.5], **DOUBLE).log(), torch.tensor([1.0, 0.0], **DOUBLE)
    beta = 0.3
    J = ((1 - beta) * log_p.exp() * r).sum() - beta * (log_p.exp() * (log_p - anchor)).sum()
    want = torch.autograd.grad(J, theta, retain_graph=True)[0]
    R = policy.returns(r, (log_p - anchor), beta)
    close(expected_gradient(theta, R, 0.1), want, atol=1e-12, rtol=0)
    assert want.abs().min() > 0.01


def test_only_what_was_written_counts():
    """Two texts, the second ended after one token: -(2 (1 + 3) + 5 * 4) / 2 for the surrogate."""
    log_p = torch.tensor([[1.0, 3.0], [4.0, 100.0]], requires_grad=True)
    advantage, mask = torch.tensor([[2.0], [5.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    loss = policy.surrogate(log_p, advantage, mask)
    assert loss.item() == -14
    loss.backward()
    assert log_p.grad.tolist() == [[-1, -1], [-2.5, 0]]


def test_kl_by_hand():
    """(1/2, 1/2) against (1/4, 3/4): .14384 a token; masked tokens count nothing."""
    p, q = (torch.tensor(v, **DOUBLE).log() for v in ([0.5, 0.5], [0.25, 0.75]))
    got = policy.kl(p.expand(1, 3, 2), q.expand(1, 3, 2), torch.tensor([[1.0, 0.0, 1.0]]))
    close(got, torch.tensor([2 * 0.143841036], **DOUBLE), atol=1e-8, rtol=0)


@pytest.mark.parametrize("beta", [0.4, 0.5, 0.9])
def test_the_optimum_is_the_tilted_anchor(beta):
    """pi* ~ anchor exp((1 - beta)/beta r): there every return is beta ln Z, so with that baseline
    the gradient is zero; and gradient ascent from the anchor arrives there."""
    p0, r = torch.tensor([0.2, 0.3, 0.5], **DOUBLE), torch.tensor([1.0, -0.5, 0.3], **DOUBLE)
    tilted = p0 * ((1 - beta) / beta * r).exp()
    best, Z = tilted / tilted.sum(), tilted.sum()
    R = policy.returns(r, best.log() - p0.log(), beta)
    close(R, torch.full_like(R, beta * Z.log().item()), atol=1e-12, rtol=0)
    theta = p0.log().requires_grad_()
    for _ in range(400):
        log_p = theta.log_softmax(0)
        R = policy.returns(r, log_p.detach() - p0.log(), beta)
        theta = (theta + 2 * expected_gradient(theta, R, 0.0)).detach().requires_grad_()
    close(theta.softmax(0), best, atol=1e-6, rtol=0)


def test_the_pencil_example():
    """p0 = (1/2, 1/2), r = (ln 3, 0), beta = 1/2: pi* = (3/4, 1/4) and J* = ln(2) / 2."""
    p0, r = torch.tensor([0.5, 0.5], **DOUBLE), torch.tensor([math.log(3), 0.0], **DOUBLE)
    best = torch.tensor([0.75, 0.25], **DOUBLE)
    R = policy.returns(r, best.log() - p0.log(), 0.5)
    close((best * R).sum().item(), math.log(2) / 2, atol=1e-12, rtol=0)


def test_bradley_terry_by_hand():
    """ln 2 where both are equal; the derivative in the difference d is -(1 - sigmoid d)."""
    d = torch.tensor([math.log(3)], **DOUBLE, requires_grad=True)
    zero = torch.zeros(1, **DOUBLE)
    close(reward.bradley_terry(zero, zero).item(), math.log(2), atol=1e-12, rtol=0)
    loss = reward.bradley_terry(d, zero)
    close(loss.item(), -math.log(0.75), atol=1e-12, rtol=0)
    close(torch.autograd.grad(loss, d)[0].item(), -0.25, atol=1e-12, rtol=0)


def test_exact_preferences_give_the_rewards_back():
    """Rewards (0, 1, -1/2): all pairs, weighted by P(a over b); differences come out exactly."""
    true, r = torch.tensor([0.0, 1.0, -0.5], **DOUBLE), torch.zeros(3, **DOUBLE, requires_grad=True)
    optimizer = torch.optim.LBFGS([r], max_iter=200, line_search_fn="strong_wolfe",
                                  tolerance_grad=1e-12, tolerance_change=0)

    def closure():
        optimizer.zero_grad()
        loss = sum(torch.sigmoid(true[a] - true[b]) * reward.bradley_terry(r[a:a + 1], r[b:b + 1])
                   for a in range(3) for b in range(3) if a != b)
        loss.backward()
        return loss

    optimizer.step(closure)
    close((r - r[0]).detach(), true, atol=1e-6, rtol=0)


def test_soups_of_bandits_are_the_optima_of_mixed_rewards():
    """Logits are linear in the parameters: interpolating pi*_a and pi*_b gives pi* of the mixture,
    for every alpha."""
    beta, theta0 = 0.3, torch.tensor([0.1, -0.4, 0.2], **DOUBLE)
    ra, rb = torch.tensor([1.0, 0.0, -1.0], **DOUBLE), torch.tensor([0.0, 2.0, 0.5], **DOUBLE)
    taus = [{"theta": (1 - beta) / beta * r} for r in (ra, rb)]
    for alpha in (0.0, 0.3, 1.0):
        soup = merge.RULES["interpolation"]({"theta": theta0}, taus, alpha=alpha)["theta"]
        best = theta0 + (1 - beta) / beta * ((1 - alpha) * ra + alpha * rb)
        close(soup.softmax(0), best.softmax(0), atol=1e-12, rtol=0)
