"""What each paper says its method keeps, in float64 and away from the start where that matters."""

import copy

import pytest
import torch
from torch import nn

import lora
from adapters.spectral_r import cayley
from encoders.nf4 import QuantLinear
from errors import BadInput
from lora import ADAPTERS
from support import NEEDS_BIAS, inputs, make, perturb, refuses, train_steps

SHAPE = (9, 7, True)
close = torch.testing.assert_close


def full_gradient(layer):
    """G = dL/dW_eff (out, in) of L = <y, g> at random x and g, after L.backward()."""
    x, g = inputs(layer)
    (layer(x) * g).sum().backward()
    return torch.einsum("bto,bti->oi", g, x)


def singular_values(W):
    return torch.linalg.svdvals(W.detach())


def test_rslora_output_does_not_shrink_with_the_rank():
    """With A and B of unit size the update's spread is constant in r; LoRA's falls as 1/sqrt(r)."""
    spread = {}
    for name in ("rslora", "lora"):
        for rank in (4, 64):
            torch.manual_seed(0)
            layer = ADAPTERS[name](nn.Linear(128, 128), rank=rank, alpha=8.0)
            layer.A.data.normal_(), layer.B.data.normal_()
            spread[name, rank] = layer.delta_weight().std().item()
    assert abs(spread["rslora", 64] / spread["rslora", 4] - 1) < 0.1
    assert abs(spread["lora", 64] / spread["lora", 4] - 0.25) < 0.05


def test_lora_plus_ratio_survives_the_schedule(fit, monkeypatch):
    step, rates = torch.optim.AdamW.step, []

    def recorded(optimizer):
        rates.append([g["lr"] for g in optimizer.param_groups[:2]])
        return step(optimizer)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    assert fit("--adapter", "lora_plus")[0] == 0
    assert len(rates) == 6 and len({a for a, _ in rates}) == 5     # warm-up, then a cosine
    assert all(abs(b / a - 16) < 1e-9 for a, b in rates)


def test_lora_fa_stays_in_the_row_space_of_its_frozen_A():
    layer = make("lora_fa", SHAPE)
    assert "A" in dict(layer.named_buffers()) and set(lora.trainable(layer)) == {"B"}
    train_steps(layer, 3)
    A, delta = layer.A, layer.delta_weight()
    P = A.T @ torch.linalg.inv(A @ A.T) @ A
    assert delta.abs().max() > 1e-3
    close(delta @ P, delta)


def test_lora_fa_projected_gradient_is_the_projected_full_gradient():
    layer = perturb(make("lora_fa", SHAPE, project=True))
    G = full_gradient(layer)
    layer.after_backward([layer], 1, 1)
    A = layer.A
    close(layer.scale * layer.B.grad @ A, G @ A.T @ torch.linalg.inv(A @ A.T) @ A)


def test_lora_fa_is_the_layer_reading_of_l_lora_to_the_last_bit():
    one, two = make("lora_fa", SHAPE), make("l_lora", SHAPE)
    for layer in (one, two):
        train_steps(layer, 20)
    assert torch.equal(one.B, two.B) and torch.equal(one.A, two.A0)


@pytest.mark.parametrize("alpha", [None, 5.0])
def test_pissa_takes_the_principal_part_out(alpha):
    """With any scale: B0^T B0 = A0 A0^T = S_r / s, and the frozen part keeps the other values."""
    layer = make("pissa", SHAPE, rank=3, alpha=alpha)
    S = singular_values(layer.base.weight)
    W_res = layer.base.weight - layer.scale * layer.B0 @ layer.A0
    for gram in (layer.B0.T @ layer.B0, layer.A0 @ layer.A0.T):
        close(gram, torch.diag(S[:3] / layer.scale), atol=1e-10, rtol=0)
    close(singular_values(W_res)[:4], S[3:])
    assert torch.linalg.matrix_rank(W_res) == 7 - 3


def test_pissa_fast_svd_is_close_and_repeatable():
    exact, fast, again = (make("pissa", SHAPE, niter=n) for n in (0, 16, 16))
    assert torch.equal(fast.A0, again.A0)
    close(fast.B0 @ fast.A0, exact.B0 @ exact.A0, atol=1e-3, rtol=0)


def test_quantised_pissa_with_a_fast_svd_is_found_again_whatever_the_seed():
    base, x = nn.Linear(9, 7), torch.randn(4, 9)
    first, again = (ADAPTERS["pissa"].quantized(base, QuantLinear, rank=2, niter=1, generator=g)
                    for g in (torch.Generator().manual_seed(5), None))
    assert torch.equal(first(x), again(x))


@pytest.mark.parametrize("name", ["pissa", "milora", "olora"])
def test_a_small_change_in_float32_is_no_noise(name):
    """Factors moved by 1e-5: the change has the rank 2r, and is that of float64 to 1e-4."""
    layer = perturb(ADAPTERS[name](nn.Linear(60, 50), rank=3), 1e-5)
    exact = copy.deepcopy(layer).double().delta_weight()
    close(layer.delta_weight().double(), exact, atol=1e-4 * exact.abs().max().item(), rtol=0)
    S = singular_values(layer.delta_weight())
    assert S[6] < 1e-6 * S[0] < S[5]


def test_milora_takes_the_minor_part_out():
    layer = make("milora", SHAPE, rank=3, alpha=5.0)
    S, taken = singular_values(layer.base.weight), layer.scale * layer.B0 @ layer.A0
    close(torch.linalg.matrix_norm(taken, 2), S[4])
    close(singular_values(layer.base.weight - taken)[:4], S[:4])


def test_milora_refuses_a_rank_deficient_weight():
    base = nn.Linear(6, 5)
    base.weight.data[1] = base.weight.data[0]
    refuses("rank-deficient", ADAPTERS["milora"], base, rank=1)


def test_olora_zeroes_the_first_columns_of_the_frozen_part():
    layer = make("olora", SHAPE, rank=3, alpha=None)
    W_res = layer.base.weight - layer.B0 @ layer.A0
    close(layer.B0.T @ layer.B0, torch.eye(3, dtype=torch.float64))
    close(layer.A0, layer.A0.triu())
    assert W_res[:, :3].abs().max() < 1e-12 and W_res[:, 3:].abs().min(0).values.max() > 1e-3


@pytest.mark.parametrize("name", ["dora", "dvora"])
def test_dora_row_norms_are_its_magnitudes(name):
    layer = perturb(make(name, SHAPE))
    W = layer.base.weight + layer.delta_weight()
    close(W.norm(dim=1), layer.m.abs())


@pytest.mark.parametrize("detach", [True, False])
def test_dora_gradients(detach):
    """grad m = rowsum(G * V) / n either way. Through V: (m / n) G with the norm detached; else that
    without its part along V, so that grad V is orthogonal to V. V enters through B alone here."""
    layer = perturb(make("dora", SHAPE, detach=detach))
    G = full_gradient(layer)
    V = (layer.base.weight + layer.scale * layer.B @ layer.A).detach()
    n, m = V.norm(dim=1, keepdim=True), layer.m.detach()[:, None]
    close(layer.m.grad, (G * V).sum(1) / n[:, 0])
    grad_V = m / n * G
    if not detach:
        grad_V = grad_V - (grad_V * V).sum(1, keepdim=True) * V / n ** 2
        assert (grad_V * V).sum(1).abs().max() < 1e-10
    close(layer.B.grad, layer.scale * grad_V @ layer.A.detach().T)


def test_dora_refuses_a_zero_row():
    base = nn.Linear(6, 5)
    base.weight.data[2] = 0
    refuses("zero row .row 2 of", ADAPTERS["dora"], base, rank=1)


@pytest.mark.parametrize("name", ["vera", "dvora"])
def test_vera_projections_are_one_pair_for_all_layers(encoder, name):
    lora.inject(encoder, name, rank=5)
    layers = list(lora.adapters(encoder).values())
    assert len({layer.A.data_ptr() for layer in layers}) == 1
    assert len({layer.B.data_ptr() for layer in layers}) == 1
    assert layers[0].A.shape == (5, 24) and layers[0].B.shape == (24, 5)
    assert {n.rpartition(".")[2] for n in lora.trainable(encoder)} <= {"b", "d", "m"}


@pytest.mark.parametrize("name", ["vera", "dvora"])
def test_vera_gradients_at_the_start(name):
    layer = make(name, SHAPE)
    full_gradient(layer)
    assert not layer.d.grad.any() and layer.b.grad.abs().min() > 0


# ---- AdaLoRA -------------------------------------------------------------------------------------

def test_adalora_budget_end_points():
    """100 steps, 10 of warm-up, 30 final: 144 up to step 10, 96 from step 70, falling between."""
    from adapters.adalora import budget
    b = [budget(t, 100, 144, 96, 0.1, 0.3) for t in range(1, 101)]
    assert b[:10] == [144] * 10 and b[69:] == [96] * 31 and b[68] >= 96
    assert b[10] < 144 and all(x >= y for x, y in zip(b, b[1:]))
    assert b[39] == int(96 + 48 * 0.5 ** 3)                     # half-way: step 40


def test_adalora_start():
    """The task's gradient reaches e alone; the penalty is gamma (r + r) / 2 at almost zero factors
    and zero for orthonormal ones."""
    layer = make("adalora", SHAPE)
    full_gradient(layer)
    assert not layer.P.grad.any() and not layer.Q.grad.any() and layer.e.grad.abs().min() > 0
    assert abs(layer.regularizer() - 0.1 * 4 / 2) < 0.01
    layer.P.data, layer.Q.data = torch.eye(7, 2).double(), torch.eye(2, 9).double()
    assert layer.regularizer() == 0


def test_adalora_keeps_to_its_budget_and_then_to_its_mask(encoder):
    """One budget over all layers, held at every allocation; in the final phase a fixed mask."""
    from adapters.adalora import budget
    lora.inject(encoder, "adalora", "q,v", rank=4, target=2, every=3,
                generator=torch.Generator().manual_seed(0))
    layers = list(lora.adapters(encoder).values())
    hooks, total = type(layers[0]), 60
    torch.manual_seed(0)
    x = torch.rand(8, 1, 28, 28, dtype=torch.float64)
    optimizer = torch.optim.AdamW(lora.trainable(encoder).values(), lr=0.05, weight_decay=0)
    target, masks = torch.randn(8, 16, dtype=torch.float64), []
    for step in range(1, total + 1):
        optimizer.zero_grad()
        ((encoder(x) - target) ** 2).mean().backward()
        hooks.after_backward(layers, step, total)
        optimizer.step()
        hooks.after_step(layers, step, total)
        if step % 3 == 0 or step >= 42:
            masks.append(torch.cat([layer.e != 0 for layer in layers]))
            assert masks[-1].sum() <= budget(step, total, 16, 8, 0.1, 0.3)
            for layer in layers:
                assert torch.linalg.matrix_rank(layer.delta_weight()) <= layer.kept.sum()
    fixed = masks[13:]                                          # from step 42 on
    assert all(torch.equal(mask, fixed[0]) for mask in fixed) and fixed[0].sum() == 8
    per_layer = [int((layer.e != 0).sum()) for layer in layers]
    assert len(set(per_layer)) > 1                              # not simply target everywhere


def test_adalora_triplets_return_when_their_score_does():
    """Rank 2, target 1. Triplet 0 scores higher and 1 is pruned, P and Q untouched; once 1 has
    grown back and scores higher, it is kept and 0 is pruned."""
    layer = make("adalora", SHAPE, every=1)
    P = layer.P.detach().clone()
    for step, best in ((40, 0), (41, 1)):
        layer.e.data = torch.tensor([0.5, 0.5]).double()
        layer.Ibar_e.copy_(torch.tensor([1.0, 2.0] if best else [2.0, 1.0]))
        layer.Ubar_e.fill_(1.0)
        layer.after_step([layer], step, 60)
        assert (layer.e != 0).tolist() == [best == 0, best == 1]
        assert torch.equal(layer.P, P)


@pytest.mark.parametrize("keywords, told", [
    (dict(rank=4, target=5), "goes from rank 4 to target 5"),
    (dict(rank=4, target=2, warmup=0.6, final=0.4), "leave none of the 50 steps to prune in"),
])
def test_adalora_rejects(keywords, told):
    with pytest.raises(BadInput, match=told):
        layer = make("adalora", SHAPE, **keywords)
        layer.before_training([layer], 50)


# ---- SpA and RoSA --------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["spa", "rosa"])
def test_sparse_support_is_the_largest_summed_squares_and_stays(name):
    """Two steps are collected: the support is the top of the sum of their dL/dW0^2, has
    floor(density in out) entries, and never changes; nothing outside it is touched."""
    warmup = {"warmup": 3} if name == "rosa" else {}
    layer = make(name, SHAPE, density=0.1, collect=2, **warmup)
    first, last = (2, 3) if name == "rosa" else (1, 2)
    x, target = inputs(layer)
    optimizer, total = torch.optim.SGD(layer.param_groups(0.1, 0.0), lr=0.1), 0
    for step in range(1, 7):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(layer(x), target)
        loss.backward()
        if step in (first, last):                 # dL/dW_eff of the mean squared error, by hand
            with torch.no_grad():
                g = 2 * (layer(x) - target) / target.numel()
            total = total + torch.einsum("bto,bti->oi", g, x).square()
        layer.after_backward([layer], step, 6)
        optimizer.step()
        layer.after_step([layer], step, 6)
        if step == last:
            support = layer.support.clone()
            assert not layer.delta_weight().any()             # restarted, or not yet trained
    close(layer.score, total)
    assert set(support.tolist()) == set(total.flatten().topk(6).indices.tolist())
    assert len(support) == int(0.1 * 63) and torch.equal(support, layer.support)
    low_rank = layer.scale * layer.B @ layer.A if name == "rosa" else 0
    sparse = (layer.delta_weight() - low_rank).flatten()
    assert (sparse[support] != 0).all()
    sparse[support] = 0
    assert sparse.abs().max() < 1e-15


@pytest.mark.parametrize("name", ["spa", "rosa"])
def test_weights_kept_from_the_steps_of_the_probe_are_a_model(name):
    """--keep best may go back to a step at which dL/dW0 was still collected."""
    warmup = {"warmup": 2} if name == "rosa" else {}
    layer = make(name, SHAPE, collect=1, **warmup)
    start = copy.deepcopy(layer.state_dict())
    train_steps(layer, 3)
    layer.load_state_dict(start | {"steps": torch.tensor(1 if warmup else 0)})
    x, _ = inputs(layer)
    close(layer(x), layer.base(x))


def test_rosa_values_get_the_gradient_of_their_entries():
    layer = make("rosa", SHAPE, density=0.1, warmup=1, collect=1)
    train_steps(layer, 1)
    perturb(layer)
    layer.zero_grad()
    G = full_gradient(layer)
    close(layer.values.grad, G.flatten()[layer.support])


def test_rosa_collects_within_its_warm_up():
    refuses("3 steps out of a warm-up of 2", make, "rosa", SHAPE, warmup=2, collect=3)


def test_rosa_warm_up_is_lora():
    rosa, plain = make("rosa", SHAPE, warmup=5, collect=1), make("lora", SHAPE)
    train_steps(rosa, 3), train_steps(plain, 3)
    assert torch.equal(rosa.A, plain.A) and torch.equal(rosa.B, plain.B)


@pytest.mark.parametrize("keywords, told", [
    (dict(density=0.0), r"density in \(0, 1\]"), (dict(density=1.5), r"density in \(0, 1\]"),
    (dict(density=0.001), "leaves no entry to train"),
    (dict(collect=0), "the support is chosen by gradients"),
    (dict(collect=50), "chosen after step 50 of 50"),
])
def test_spa_rejects(keywords, told):
    with pytest.raises(BadInput, match=told):
        layer = make("spa", SHAPE, **keywords)
        layer.before_training([layer], 50)


# ---- LoRA-Dash -----------------------------------------------------------------------------------

def test_lora_dash_is_lora_until_it_launches_and_continuous_there():
    dash, plain = make("lora_dash", SHAPE, launch=4), make("lora", SHAPE)
    train_steps(dash, 3), train_steps(plain, 3)
    x, _ = inputs(dash)
    assert torch.equal(dash(x), plain(x)) and dash.c.grad is None and not dash.launched
    with torch.no_grad():
        dash.choose_directions()
    close(dash(x), plain(x), atol=1e-14, rtol=0)
    close(dash.U.T @ dash.U, torch.eye(2, dtype=torch.float64))
    close(dash.V.T @ dash.V, torch.eye(2, dtype=torch.float64))
    S = singular_values(dash.base.weight)                       # chosen pairs belong together
    along = (dash.U.T @ dash.base.weight @ dash.V).diagonal()
    assert all((S - value).abs().min() < 1e-10 for value in along)
    full_gradient(dash)
    assert dash.c.grad.abs().min() > 0


def test_lora_dash_finds_a_planted_direction():
    layer = make("lora_dash", SHAPE, rank=1, directions=1)
    U, _, Vt = torch.linalg.svd(layer.base.weight.detach())
    layer.B.data, layer.A.data = U[:, 4:5].clone(), Vt[4:5].clone()
    with torch.no_grad():
        layer.choose_directions()
    close((layer.U.T @ U[:, 4:5]).abs(), torch.ones(1, 1, dtype=torch.float64))


def test_lora_dash_must_launch_within_the_run():
    layer = make("lora_dash", SHAPE, launch=50)
    refuses("between 1 and 49", layer.before_training, [layer], 50)


# ---- Spectral Adapter, DiSHA, Bone, Bat ----------------------------------------------------------

def test_spectral_rotation_keeps_the_singular_values():
    layer = perturb(make("spectral_r", SHAPE, rank=4))
    W = layer.base.weight
    close(singular_values(W + layer.delta_weight()), singular_values(W))
    R = cayley(layer.T_U.detach())
    close(R.T @ R, torch.eye(4, dtype=torch.float64))
    full_gradient(layer)
    close(layer.T_U.grad, -layer.T_U.grad.T)


def test_spectral_additive_replaces_the_top_of_the_svd():
    """W_eff = W0 - U_r S_r V_r^T + (U_r + A_U) S_r (V_r + A_V)^T, of rank 2r in general."""
    layer = perturb(make("spectral_a", SHAPE, rank=2))
    W, S = layer.base.weight, torch.diag(layer.S)
    rest = W - layer.U @ S @ layer.V.T
    close(singular_values(rest)[:5], singular_values(W)[2:])
    close(W + layer.delta_weight(), rest + (layer.U + layer.A_U) @ S @ (layer.V + layer.A_V).T)
    assert torch.linalg.matrix_rank(layer.delta_weight()) == 4


@pytest.mark.parametrize("in_features", [8, 9])
def test_bone_is_lora_with_a_matrix_of_zeros_and_ones(in_features):
    layer = perturb(make("bone", (in_features, 7, True), rank=4))
    A = torch.zeros(4, in_features, dtype=torch.float64)
    A[torch.arange(in_features) % 4, torch.arange(in_features)] = 1
    close(layer.delta_weight(), layer.D.T @ A)
    x, _ = inputs(layer)
    close(layer(x) - layer.base(x), x @ A.T @ layer.D)
    if in_features == 8:
        close(A @ A.T, 2 * torch.eye(4, dtype=torch.float64))


def test_bone_layouts_differ_by_a_permutation_of_the_inputs():
    strided, contiguous = (perturb(make("bone", (8, 7, True), rank=4, layout=layout))
                           for layout in ("strided", "contiguous"))
    order = torch.arange(8).view(2, 4).T.reshape(-1)            # 0 4 1 5 2 6 3 7
    close(strided.delta_weight()[:, order], contiguous.delta_weight())
    x, _ = inputs(contiguous)
    close(contiguous(x), contiguous.base(x) + x @ contiguous.delta_weight().T)
    refuses("4 does not divide 9", make, "bone", (9, 7, True), rank=4, layout="contiguous")


def test_disha_with_all_columns_is_bone():
    disha, bone = make("disha", (9, 5, True), rank=3, columns=5), make("bone", (9, 5, True), rank=3)
    disha.D.data.normal_(), bone.D.data.copy_(disha.D)
    close(disha.delta_weight(), bone.delta_weight())


def test_bat_block_by_block():
    """delta_qp = (W_qp + I) D_q and grad D_q = sum_p (W_qp + I)^T G_qp; full rank."""
    layer = perturb(make("bat", (6, 4, True), rank=2))
    G, W, eye = full_gradient(layer), layer.base.weight, torch.eye(2, dtype=torch.float64)
    for q in range(2):
        rows, grad = slice(2 * q, 2 * q + 2), 0
        for p in range(3):
            columns = slice(2 * p, 2 * p + 2)
            close(layer.delta_weight()[rows, columns], (W[rows, columns] + eye) @ layer.D[q])
            grad = grad + (W[rows, columns] + eye).T @ G[rows, columns]
        close(layer.D.grad[q], grad)
    assert torch.linalg.matrix_rank(layer.delta_weight()) == 4
    refuses("3 does not divide both 6 and 4", make, "bat", (6, 4, True), rank=3)


def test_bitfit_needs_a_bias():
    refuses("a matched layer has none", ADAPTERS["bitfit"], nn.Linear(4, 3, bias=False))


EQUAL = [{"lora_fa", "l_lora"}]                  # declared: the same function and the same start


def test_no_two_adapters_learn_the_same_weights():
    """Twenty steps from the same layer, data and rank: all outputs differ, but for EQUAL, which
    agree to the last bit."""
    learned = {}
    for name in sorted(ADAPTERS):
        layer = make(name, (6, 4, True), **({"rank": 2} if name == "bat" else {}))
        train_steps(layer, 20)
        learned[name] = layer(inputs(layer)[0]).detach()
    assert not NEEDS_BIAS - set(learned)
    for a in learned:
        for b in learned:
            if a < b:
                assert torch.equal(learned[a], learned[b]) == ({a, b} in EQUAL), (a, b)
