"""(IA)^3, LoHa, LoKr, OFT and the bottleneck: what each keeps, in float64; by hand: test_papers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import jacrev

import eval as evaluation
import lora
from adapters.lokr import split
from linearize import DualModel, LinearizedLayer, LinearizedModel, adapt
from lora import ADAPTERS, NotMergeable
from support import close, inputs, make, perturb, refuses, train_steps

SHAPE = (12, 10, True)                                   # in 3 * 4, out 2 * 5


def full_gradient(layer):
    """x, g = dL/dy and G = dL/dW_eff (out, in) of L = <y, g> at random x and g, after backward."""
    x, g = inputs(layer)
    (layer(x) * g).sum().backward()
    return x, g, torch.einsum("bto,bti->oi", g, x)


def rank(matrix):
    return torch.linalg.matrix_rank(matrix)


@pytest.mark.parametrize("name, alive", [("ia3", {"v"}), ("loha", {"B2"}), ("lokr", {"D2"}),
                                         ("oft", {"q"}), ("bottleneck", {"U", "u"})])
def test_what_the_first_gradient_reaches(name, alive):
    layer = make(name, SHAPE, **{"block": 4} if name == "oft" else {})
    full_gradient(layer)
    assert {n for n, p in lora.trainable(layer).items() if p.grad.any()} == alive


@pytest.mark.parametrize("name, own", [("ia3", ["k", "v", "fc2"]), ("bottleneck", ["out", "fc2"]),
                                       ("oft", ["q", "k", "v", "out", "fc1", "fc2"])])
def test_the_layers_that_an_adapter_goes_on_by_itself(encoder, name, own):
    names, hp = [f"blocks.{i}.{layer}" for i in range(2) for layer in own], {"block": 8}
    assert lora.inject(encoder, name, **hp if name == "oft" else {}) == names


# ---- (IA)^3 --------------------------------------------------------------------------------------

def test_ia3_scales_outputs_of_k_and_v_and_inputs_of_fc2(encoder):
    lora.inject(encoder, "ia3")
    block = encoder.blocks[0]                                         # width 16, hidden 24
    assert block.k.v.shape == block.v.v.shape == (16, 1) and block.fc2.v.shape == (1, 24)


@pytest.mark.parametrize("shape", [(5, 7, True), (7, 5, True)], ids=str)
def test_ia3_scales_rows_or_columns_and_its_gradient_is_theirs(shape):
    """dL/dv_i = sum over tokens of g_i y_i for outputs, of x_j (g W0)_j for inputs."""
    layer = make("ia3", shape)
    x, g, _ = full_gradient(layer)
    W0, inside = layer.base.weight, shape[0] > shape[1]
    each = x * (g @ W0) if inside else g * layer.base(x)
    close(layer.v.grad.flatten(), each.sum((0, 1)))
    ratio = perturb(layer).delta_weight() / W0
    close(ratio, ratio[:1].expand_as(W0) if inside else ratio[:, :1].expand_as(W0))
    assert (layer.delta_bias() is None) == inside


@pytest.mark.parametrize("shape", [(5, 7, True), (7, 5, True)], ids=str)
def test_ia3_adds_in_both_spaces_alike_and_is_its_own_expansion(shape):
    a, b, both = (make("ia3", shape) for _ in range(3))
    perturb(a, seed=1), perturb(b, seed=2)
    both.v.data = a.v.data + b.v.data
    close(both.delta_weight(), a.delta_weight() + b.delta_weight())
    if shape[1] > shape[0]:
        close(both.delta_bias(), a.delta_bias() + b.delta_bias())
    expanded, x = LinearizedLayer(a), inputs(a)[0]                    # around v away from zero
    a.v.data = both.v.data
    close(expanded(x), both(x))
    model, _ = adapt(nn.Sequential(nn.Linear(*shape)), "ia3", "layer", "all")
    assert type(model[0]) is ADAPTERS["ia3"]


# ---- LoHa ----------------------------------------------------------------------------------------

def test_loha_reaches_the_rank_r_squared():
    layer = perturb(make("loha", SHAPE, rank=3))
    assert rank(layer.delta_weight()) == layer.rank_bound() == 9
    assert [make("loha", SHAPE, rank=r).rank_bound() for r in (2, 4)] == [4, 10]


def test_loha_of_rank_one_is_a_lora():
    layer, plain = perturb(make("loha", SHAPE, rank=1)), make("lora", SHAPE, rank=1)
    plain.B.data, plain.A.data = layer.B1 * layer.B2, layer.A1 * layer.A2
    close(layer.delta_weight(), plain.delta_weight())


def test_loha_start_and_first_gradient():
    """dL/dB2 = s (G * (B1 A1)) A2^T; B1 has a tenth of the deviation of A1 and A2."""
    layer = make("loha", SHAPE, rank=3, alpha=5.0)
    G = full_gradient(layer)[2]
    close(layer.B2.grad, 5 / 3 * (G * (layer.B1 @ layer.A1)) @ layer.A2.T)
    torch.manual_seed(0)
    large = ADAPTERS["loha"](nn.Linear(300, 300), rank=50)
    for factor, deviation in ((large.B1, 0.1), (large.A1, 1.0), (large.A2, 1.0)):
        assert abs(factor.std() / deviation - 1) < 0.03


# ---- LoKr ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("n, factor, parts", [
    (64, 0, (8, 8)), (128, 0, (8, 16)), (192, 0, (12, 16)), (384, 0, (16, 24)), (768, 0, (24, 32)),
    (127, 0, (1, 127)), (1, 0, (1, 1)), (12, 2, (2, 6)), (12, 6, (2, 6)), (12, 12, (1, 12)),
    (12, 5, (3, 4)), (768, 5, (4, 192)), (192, 100, (12, 16)), (127, 8, (1, 127))])
def test_lokr_splits_a_dimension_as_lycoris_does(n, factor, parts):
    assert split(n, factor) == parts


def test_lokr_rank_is_the_product_of_the_ranks():
    """12 = 3 * 4 and 10 = 2 * 5: C (2, 3) has rank 2; D (5, 4) rank 4, its product rank 2."""
    for r, want in ((3, 8), (2, 4)):
        layer = perturb(make("lokr", SHAPE, rank=r))
        assert rank(layer.delta_weight()) == layer.rank_bound() == want


def test_lokr_has_a_full_D_from_half_its_larger_side_on():
    """D is (5, 4): r = 2 < 2.5 is a product of s = alpha / 2, r = 3 a full D of s = 1."""
    product, full = make("lokr", SHAPE, rank=2, alpha=8.0), make("lokr", SHAPE, rank=3, alpha=8.0)
    shapes = lambda layer: {n: tuple(p.shape) for n, p in lora.trainable(layer).items()}
    assert shapes(product) == {"C": (2, 3), "D1": (5, 2), "D2": (2, 4)}
    assert shapes(full) == {"C": (2, 3), "D": (5, 4)}
    assert (product.scale, full.scale) == (4, 1)
    assert make("lokr", (16, 16, True), rank=2).full          # D (4, 4): 2 < 2 does not hold
    assert not make("lokr", (7, 5, True), rank=3).full        # D (5, 7): 3 < 3.5 does


@pytest.mark.parametrize("r", [2, 3])
def test_lokr_by_thin_products_is_the_kronecker_product(r):
    """numpy's kron; and from C alone, whose size `factor` sets: 12 = 2 * 6, 10 = 2 * 5."""
    layer = perturb(make("lokr", SHAPE, rank=r, alpha=8.0, factor=2))
    C, D = (p.detach().numpy() for p in (layer.C, layer.right()))
    assert C.shape == (2, 2) and D.shape == (5, 6)
    x, _ = inputs(layer)
    close(layer(x) - layer.base(x), x @ torch.tensor(layer.scale * np.kron(C, D)).T)


def test_uniform_starts_are_as_wide_as_one_over_root_of_the_columns():
    """lokr: 10000 = 100 * 100 and 4 = 2 * 2, C (2, 100), and the other way D1 (100, 4)."""
    wide, tall = nn.Linear(10_000, 4), nn.Linear(4, 10_000)
    starts = [(ADAPTERS["lokr"](wide).C, 0.1), (ADAPTERS["lokr"](tall, rank=4).D1, 0.5),
              (ADAPTERS["bottleneck"](tall, bottleneck=4).D, 0.01)]
    for start, bound in starts:
        assert 0.9 * bound < start.max() <= bound and -bound <= start.min() < -0.9 * bound


def test_lokr_needs_a_rank():
    refuses("rank 0: lokr needs at least 1", make, "lokr", SHAPE, rank=0)


# ---- OFT -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("block", [2, 3, 4, 12, 0])
def test_oft_turns_the_inputs(block):
    """R by the inverse, orthogonal, of determinant 1; norms and angles of the rows and the singular
    values stay, the norms of the columns do not. An odd block keeps one direction."""
    layer, k = perturb(make("oft", SHAPE, block=block)), block or 12
    W0, R = layer.base.weight, layer.rotation()
    W, eye = W0 + layer.delta_weight(), torch.eye(k, dtype=torch.float64)
    for turn, q in zip(R, layer.q, strict=True):
        Q = torch.zeros(k, k, dtype=torch.float64)
        Q[tuple(torch.triu_indices(k, k, 1))] = q.detach()         # row by row
        Q = Q - Q.T
        close(turn, (eye - Q) @ torch.linalg.inv(eye + Q))
        close(turn @ turn.T, eye)
        close(torch.linalg.det(turn), torch.ones((), dtype=torch.float64))
    close(W, W0 @ torch.block_diag(*R).T)
    close(W @ W.T, W0 @ W0.T)
    close(torch.linalg.svdvals(W), torch.linalg.svdvals(W0))
    assert ((W.norm(dim=0) - W0.norm(dim=0)).abs() > 1e-5).all()
    assert rank(R[0] - eye) == k - k % 2 and layer.trainable_count() == 12 * (k - 1) / 2


def test_oft_rank_bound_is_reached():
    """Blocks of 3 turn 2 directions each: 12 inputs, 8 directions, and 10 outputs."""
    layer = perturb(make("oft", SHAPE, block=3))
    assert rank(layer.delta_weight()) == layer.rank_bound() == 8
    assert make("oft", SHAPE, block=4).rank_bound() == 10


def test_oft_to_first_order_and_its_gradient():
    """delta = 2 W0 Q + O(Q^2), so dL/dq_ij = 2 (M_ij - M_ji) with M = W0^T G in a block."""
    layer = make("oft", SHAPE, block=4)
    W0, G = layer.base.weight, full_gradient(layer)[2]
    i, j = torch.triu_indices(4, 4, 1)
    for n in range(3):
        part = slice(4 * n, 4 * n + 4)
        M = W0[:, part].T @ G[:, part]
        close(layer.q.grad[n], 2 * (M[i, j] - M[j, i]))
    perturb(layer, 1e-5)
    Q = torch.zeros(3, 4, 4, dtype=torch.float64)
    Q[:, i, j] = layer.q.detach()
    close(layer.delta_weight(), 2 * W0 @ torch.block_diag(*(Q - Q.mT)), atol=1e-8, rtol=0)
    assert layer.delta_weight().abs().max() > 1e-6


def test_oft_merges_rotations_in_adapter_space_only():
    """+90 and -90 degrees: the mean of q is no turn, the mean of the weights is zero."""
    layer = make("oft", (2, 3, True), block=2)
    weights = []
    for q in (1.0, -1.0):
        layer.q.data.fill_(q)
        weights.append(layer.base.weight + layer.delta_weight())
    assert (weights[0] + weights[1]).abs().max() < 1e-15 < weights[0].abs().max()
    layer.q.data.fill_(0)
    assert not layer.delta_weight().any()


@pytest.mark.parametrize("block, near", [(5, "4 or 6"), (32, "4 or 6 or 12"), (1, "2 or 3 or 4")])
def test_oft_names_blocks_that_fit(block, near):
    refuses(f"block {block} does not divide the 12 inputs .* block=.*{near}$", make, "oft", SHAPE,
            block=block)


# ---- the bottleneck ------------------------------------------------------------------------------

def test_a_linear_bottleneck_is_an_edit_of_the_weight():
    """Without the GELU y = (I + U D) (W0 x + b0) + U d + u."""
    layer = perturb(make("bottleneck", SHAPE))
    layer.activation = lambda h: h
    W0, b0, (x, _) = layer.base.weight, layer.base.bias, inputs(layer)
    W = W0 + layer.U @ layer.D @ W0
    close(layer(x), F.linear(x, W, b0 + layer.U @ (layer.D @ b0 + layer.d) + layer.u))


def test_a_bottleneck_is_no_edit_of_a_weight():
    """The Jacobian at two inputs differs, each from W0 by m directions; delta_weight is refused,
    through an expansion and through a whole model too."""
    layer = perturb(make("bottleneck", SHAPE, bottleneck=3))
    W0, (x, _) = layer.base.weight, inputs(layer)
    one, two = (jacrev(layer)(x[0, i]) for i in range(2))
    assert (one - two).abs().max() > 1e-2 and rank(one - W0) == layer.rank_bound() == 3
    for change in (layer.delta_weight, LinearizedLayer(layer).delta_weight,
                   lambda: lora.deltas(nn.Sequential(layer))):
        with pytest.raises(NotMergeable, match="--space adapter"):
            change()


def test_the_layer_reading_of_a_bottleneck_has_random_features():
    """h + dU gelu(D0 h + d0) + du: D and d stay, and what two runs learned adds up."""
    layer = LinearizedLayer(make("bottleneck", SHAPE))
    D0, x = layer.inner.D.detach().clone(), inputs(layer)[0]
    train_steps(layer, 3, wd=0.1)
    h = layer.base(x)
    assert torch.equal(layer.inner.D, D0) and not layer.inner.d.any() and layer.inner.U.any()
    close(layer(x), h + F.gelu(h @ D0.T) @ layer.inner.U.T + layer.inner.u)


def test_a_bottleneck_is_linearized_as_a_whole_by_definition(encoder):
    model, _ = adapt(encoder, "bottleneck", "model")
    assert isinstance(model, LinearizedModel) and not isinstance(model, DualModel)


def test_a_bottleneck_needs_a_width():
    refuses("bottleneck 0: choose", make, "bottleneck", SHAPE, bottleneck=0)


@pytest.fixture
def evaluate(command, trained):
    """evaluate("--merge", "ties", ...) on two bottleneck runs: (exit code, stdout, stderr)."""
    runs = trained("--adapter", "bottleneck", "--task", "digits,count")
    return lambda *words, more=(): command(evaluation.main, *runs, *more, *words, "--limit", 20)


def test_bottleneck_runs_merge_in_adapter_space(evaluate):
    code, out, err = evaluate("--merge", "all", "--set", "steps=2", "--sweep", "lam=0.5,1")
    assert code == 0 and "space adapter" in out and "| ties" in out, err
    assert "tsv merges in weight space only" in out
    code, out, err = evaluate("--analyze", "cosine,retention")
    assert code == 0 and "space adapter" in out, err


def test_partners_have_the_settings_of_the_run(trained, command):
    out, = trained("--adapter", "lora", "--lr", 0.01, "--head", "probe")
    code, text, err = command(evaluation.main, out, "--limit", 20)
    line = text.splitlines()[-1]
    for words in ("--lr 0.01", "--head probe", "--steps 6", "--batch 16", "--limit 40"):
        assert code == 0 and words in line, (err, line)


def test_a_bottleneck_run_names_its_partners(trained, command):
    out, = trained("--adapter", "bottleneck")
    code, text, err = command(evaluation.main, out, "--limit", 20)
    assert code == 0 and "--adapter bottleneck" in text and "--targets" not in text, err


def test_what_a_bottleneck_has_no_weight_for(evaluate, trained, tmp_path):
    plain = trained("--adapter", "lora", "--task", "count")
    for words, more, told in [
            (["--merge", "average", "--space", "weight"], (),
             "bottleneck is not an edit of the weights: merge it with --space adapter"),
            (["--merge", "average"], plain, "one is not, bottleneck and lora: merge runs of one"),
            (["--merge", "average", "--export", tmp_path / "x"], (), "not an edit of the weights")]:
        code, _, err = evaluate(*words, more=more)
        assert code == 2 and told in err and "Traceback" not in err, err
    code, _, err = evaluate("--export", tmp_path / "x")
    assert code == 2 and not (tmp_path / "x").exists()
