"""Adapters, soups and task arithmetic by pencil and paper; other rules: test_merge.py, rules/."""

import torch
from torch import nn

import merge
from lora import ADAPTERS
from support import close

t = torch.tensor


def layer(weight, bias=None):
    """An nn.Linear with the given weight and bias."""
    base = nn.Linear(len(weight[0]), len(weight), bias=bias is not None)
    base.weight.data = t(weight)
    if bias is not None:
        base.bias.data = t(bias)
    return base


def put(adapter, **tensors):
    """Set parameters and buffers by name."""
    for name, value in tensors.items():
        getattr(adapter, name).data = t(value)
    return adapter


def test_lora_eq_3():
    """W0 = [[1, 2], [3, 4]], A = [[1, -1]], B = [[2], [1]], s = 4 / 1:
    delta = 4 [[2, -2], [1, -1]],  W_eff = [[9, -6], [7, 0]],  x = (1, 1) -> (3, 7)."""
    adapter = put(ADAPTERS["lora"](layer([[1.0, 2], [3, 4]]), rank=1, alpha=4.0),
                  A=[[1.0, -1]], B=[[2.0], [1]])
    assert adapter.delta_weight().tolist() == [[8, -8], [4, -4]]
    assert adapter(t([1.0, 1])).tolist() == [3, 7]
    assert adapter(t([1.0, 0])).tolist() == [9, 7]


def test_l_lora_for_one_layer():
    """A0 = [[1, 0]], B0 = [[1], [0]], moved to A = [[1, -1]], B = [[2], [1]], s = 1. To first order
    BA0 + B0(A - A0) = [[2, 0], [1, 0]] + [[0, -1], [0, 0]] = [[2, -1], [1, 0]].
    LoRA itself would have BA = [[2, -2], [1, -1]]: the missing part is (B - B0)(A - A0)."""
    adapter = put(ADAPTERS["l_lora"](layer([[0.0, 0], [0, 0]]), rank=1, alpha=1.0),
                  A=[[1.0, -1]], B=[[2.0], [1]], A0=[[1.0, 0]], B0=[[1.0], [0]])
    assert adapter.delta_weight().tolist() == [[2, -1], [1, 0]]
    assert adapter(t([1.0, 2])).tolist() == [0, 1]


def test_l_lora_ignores_a_moved_A_while_B0_is_zero():
    """B0 = 0, B = [[2]]: delta = B A0 = [[2, 4]], whatever became of A."""
    adapter = put(ADAPTERS["l_lora"](layer([[0.0, 0]]), rank=1, alpha=1.0),
                  A=[[50.0, -7]], B=[[2.0]], A0=[[1.0, 2]])
    assert adapter.delta_weight().tolist() == [[2, 4]]


def test_full_fine_tuning():
    """W0 + D = [[1, 2]] + [[1, -1]], b0 + d = 3 + 1: x = (1, 1) -> 2 + 1 + 4."""
    adapter = put(ADAPTERS["full"](layer([[1.0, 2]], [3.0])), D=[[1.0, -1]], d=[1.0])
    assert adapter(t([1.0, 1])).tolist() == [7]
    assert adapter.delta_weight().tolist() == [[1, -1]] and adapter.delta_bias().tolist() == [1]


def test_rslora_scale():
    """alpha = 2, rank 4: s = 2 / sqrt(4) = 1, where LoRA has 2 / 4."""
    base = layer([[0.0] * 4] * 4)
    assert ADAPTERS["rslora"](base, rank=4, alpha=2.0).scale == 1
    assert ADAPTERS["lora"](base, rank=4, alpha=2.0).scale == 0.5


def test_lora_plus_learning_rates():
    """lr = .1 and ratio 16: A learns at .1, B at 1.6."""
    adapter = ADAPTERS["lora_plus"](layer([[0.0, 0]]), rank=1)
    rates = {id(p): g["lr"] for g in adapter.param_groups(0.1, 0) for p in g["params"]}
    assert rates == {id(adapter.A): 0.1, id(adapter.B): 1.6}


def test_lora_fa_projected_gradient():
    """A = [[2, 0]], s = 1, dL/dW = [[3, 5]]: grad B = 3 * 2 = 6, divided by A A^T = 4 is 1.5, and
    1.5 A = [[3, 0]] is the part of [[3, 5]] along A."""
    adapter = put(ADAPTERS["lora_fa"](layer([[0.0, 0]]), rank=1, alpha=1.0, project=True),
                  A=[[2.0, 0]])
    adapter(t([3.0, 5])).backward()
    assert adapter.B.grad.tolist() == [[6]]
    adapter.after_backward([adapter], 1, 1)
    assert (adapter.B.grad @ adapter.A).tolist() == [[3, 0]]


def test_pissa_milora_and_olora_of_a_small_matrix():
    """W0 = diag(3, 1), rank 1: PiSSA takes diag(3, 0) out, MiLoRA diag(0, 1). Doubling A adds what
    was taken out once more. OLoRA of [[3, 1], [4, 2]]: q = (.6, .8), q^T W0 = (5, 2.2)."""
    for name, taken in (("pissa", [[3, 0], [0, 0]]), ("milora", [[0, 0], [0, 1]])):
        adapter = ADAPTERS[name](layer([[3.0, 0], [0, 1]]), rank=1)
        close(adapter.B0 @ adapter.A0, t(taken, dtype=torch.float32))
        adapter.A.data *= 2
        close(adapter.delta_weight(), t(taken, dtype=torch.float32))
    adapter = ADAPTERS["olora"](layer([[3.0, 1], [4, 2]]), rank=1)
    close(adapter.B0 @ adapter.A0, t([[3, 1.32], [4, 1.76]]))


def test_dora_eq_5():
    """W0 = (3, 4), m = 5. BA = (-3, 0) leaves V = (0, 4) of norm 4: W_eff = 5/4 V = (0, 5).
    Doubling m doubles it; the bias 7 is not scaled."""
    adapter = put(ADAPTERS["dora"](layer([[3.0, 4]], [7.0]), rank=1, alpha=1.0),
                  A=[[1.0, 0]], B=[[-3.0]])
    assert adapter.m.tolist() == [5]
    assert (adapter.base.weight + adapter.delta_weight()).tolist() == [[0, 5]]
    assert put(adapter, m=[10.0])(t([1.0, 1])).tolist() == [17]


def test_vera_and_dvora():
    """diag(1, -1) (2, 4)^T (1/2) (1, 2) = [[1, 2], [-2, -4]]. DVoRA as DoRA above: W0 = (3, 4) and
    a direction change of (-3, 0) give W_eff = (0, 5)."""
    adapter = put(ADAPTERS["vera"](layer([[0.0, 0], [0, 0]]), rank=1),
                  A=[[1.0, 2]], B=[[2.0], [4]], d=[0.5], b=[1.0, -1])
    assert adapter.delta_weight().tolist() == [[1, 2], [-2, -4]]
    adapter = put(ADAPTERS["dvora"](layer([[3.0, 4]]), rank=1),
                  A=[[1.0, 0]], B=[[1.0]], d=[1.0], b=[-3.0])
    assert (adapter.base.weight + adapter.delta_weight()).tolist() == [[0, 5]]


def test_adalora_update_and_scores():
    """P diag(e) Q with P = (1, 2)^T, e = 3, Q = (1, -1). For a weight 2 with gradient 3: I = 6,
    Ibar = .15 * 6 = .9, Ubar = .15 * 5.1 = .765; here e = 2, the rest has no gradient."""
    base = layer([[0.0, 0], [0, 0]])
    adapter = put(ADAPTERS["adalora"](base, rank=1, target=1, alpha=1.0),
                  P=[[1.0], [2]], e=[3.0], Q=[[1.0, -1]])
    assert adapter.delta_weight().tolist() == [[3, -3], [6, -6]]
    put(adapter, e=[2.0])
    adapter.e.grad = t([3.0])
    adapter.P.grad, adapter.Q.grad = torch.zeros(2, 1), torch.zeros(1, 2)
    with torch.no_grad():
        adapter.update_scores()
    close(adapter.Ibar_e, t([0.9]))
    close(adapter.Ubar_e, t([0.765]))
    close(adapter.scores(), t([0.9 * 0.765]))


def test_spa_and_rosa():
    """2 x 2, half the entries: scores [[4, 1], [9, 0]] choose the first column. Values (5, 7) sit
    there; RoSA adds BA = [[0, 1], [0, 1]]."""
    for name, delta in (("spa", [[5, 0], [7, 0]]), ("rosa", [[5, 1], [7, 1]])):
        hp = {"rank": 1, "alpha": 1.0, "warmup": 1} if name == "rosa" else {}
        adapter = ADAPTERS[name](layer([[0.0, 0], [0, 0]]), density=0.5, collect=1, **hp)
        adapter.score.copy_(t([[4.0, 1], [9, 0]]))
        adapter.after_step([adapter], 1, 2)
        put(adapter, values=[5.0, 7])
        if name == "rosa":
            put(adapter, A=[[0.0, 1]], B=[[1.0], [1]])
        assert adapter.delta_weight().tolist() == delta


def test_lora_dash_by_hand():
    """W0 = diag(3, 1), BA = 2 e2 e2^T: scores 0 / 3 and 2 / 1, so e2 is chosen; c = 1/2."""
    adapter = put(ADAPTERS["lora_dash"](layer([[3.0, 0], [0, 1]]), rank=1, alpha=1.0, directions=1),
                  A=[[0.0, 1]], B=[[0.0], [2]])
    with torch.no_grad():
        adapter.choose_directions()
    close(put(adapter, c=[0.5]).delta_weight(), t([[0, 0], [0, 2.5]]))


def test_spectral_adapter_by_hand():
    """W0 = diag(3, 1). Additive, r = 1, A_U = e2: e2 3 e1^T. Rotational, r = 2,
    T_U = [[0, 2], [0, 0]]: K = [[0, 1], [-1, 0]], Cayley R = [[0, -1], [1, 0]], so
    W_eff = R S = [[0, -1], [3, 0]]."""
    W0 = [[3.0, 0], [0, 1]]
    adapter = put(ADAPTERS["spectral_a"](layer(W0), rank=1),
                  U=[[1.0], [0]], V=[[1.0], [0]], A_U=[[0.0], [1]])
    assert adapter.delta_weight().tolist() == [[0, 0], [3, 0]]
    adapter = put(ADAPTERS["spectral_r"](layer(W0), rank=2),
                  U=[[1.0, 0], [0, 1]], V=[[1.0, 0], [0, 1]], T_U=[[0.0, 2], [0, 0]])
    close(adapter.delta_weight() + t(W0), t([[0.0, -1], [3, 0]]))


def test_disha_bone_and_bat_by_hand():
    """DiSHA tiles D = [[1, 2], [3, 4]] over 3 x 3. Bone with D = (10, 1) and x = (1, 2, 3, 4):
    strided sums 1 + 3 and 2 + 4, contiguous 1 + 2 and 3 + 4. Bat: ([[1, 2], [3, 4]] + I) D."""
    base = layer([[0.0] * 3] * 3)
    adapter = put(ADAPTERS["disha"](base, rank=2, columns=2), D=[[1.0, 2], [3, 4]])
    assert adapter.delta_weight().tolist() == [[1, 3, 1], [2, 4, 2], [1, 3, 1]]
    for layout, row, y in (("strided", [10, 1, 10, 1], 46), ("contiguous", [10, 10, 1, 1], 37)):
        base = layer([[0.0] * 4] * 2)
        adapter = put(ADAPTERS["bone"](base, rank=2, layout=layout), D=[[10.0, 0], [1, 0]])
        assert adapter.delta_weight().tolist() == [row, [0, 0, 0, 0]]
        assert adapter(t([1.0, 2, 3, 4])).tolist() == [y, 0]
    adapter = put(ADAPTERS["bat"](layer([[1.0, 2], [3, 4]]), rank=2), D=[[[1.0, 0], [0, 2]]])
    assert adapter.delta_weight().tolist() == [[2, 4], [3, 10]]


def test_bitfit():
    """W0 = (1, 2), b0 = 3, d = 4: x = (1, 1) -> 10, and the weight is untouched."""
    adapter = put(ADAPTERS["bitfit"](layer([[1.0, 2]], [3.0])), d=[4.0])
    assert adapter(t([1.0, 1])).tolist() == [10] and not adapter.delta_weight().any()


def test_ia3_by_hand():
    """Outputs: W0 = [[1, 2], [3, 4]], b0 = (1, -1), x = (1, 1) -> (4, 6); l = (2, 1/2) -> (8, 3).
    Inputs, where there are more of them: W0 = (1, 2), b0 = 3, l = (2, 1/2): 2 + 1 + 3 = 6."""
    adapter = put(ADAPTERS["ia3"](layer([[1.0, 2], [3, 4]], [1.0, -1])), v=[[1.0], [-0.5]])
    assert adapter.delta_weight().tolist() == [[1, 2], [-1.5, -2]]
    assert adapter.delta_bias().tolist() == [1, 0.5] and adapter(t([1.0, 1])).tolist() == [8, 3]
    adapter = put(ADAPTERS["ia3"](layer([[1.0, 2]], [3.0])), v=[[1.0, -0.5]])
    assert adapter.delta_weight().tolist() == [[1, -1]] and adapter.delta_bias() is None
    assert adapter(t([1.0, 1])).tolist() == [6]


def test_loha_by_hand():
    """B1 A1 = (1, 2)^T (1, 3) = [[1, 3], [2, 6]], B2 A2 = (2, 1)^T (1, -1) = [[2, -2], [1, -1]];
    entry by entry [[2, -6], [2, -6]], and s = 3 / 1."""
    adapter = put(ADAPTERS["loha"](layer([[0.0, 0], [0, 0]]), rank=1, alpha=3.0),
                  B1=[[1.0], [2]], A1=[[1.0, 3]], B2=[[2.0], [1]], A2=[[1.0, -1]])
    assert adapter.delta_weight().tolist() == [[6, -18], [6, -18]]


def test_lokr_by_hand():
    """kron((1, 2), (3, 4)^T) = [[3, 6], [4, 8]], x = (1, 1) -> (9, 12); s = 1 for a full D.
    A product D = (1, 2, 0)^T (1, 1, 3), a prime 3 = 1 * 3 and C = 2, s = 3 / 1."""
    adapter = put(ADAPTERS["lokr"](layer([[0.0, 0], [0, 0]]), rank=1, alpha=3.0),
                  C=[[1.0, 2]], D=[[3.0], [4]])
    assert adapter.delta_weight().tolist() == [[3, 6], [4, 8]]
    assert adapter(t([1.0, 1])).tolist() == [9, 12]
    adapter = put(ADAPTERS["lokr"](layer([[0.0] * 3] * 3), rank=1, alpha=3.0),
                  C=[[2.0]], D1=[[1.0], [2], [0]], D2=[[1.0, 1, 3]])
    assert adapter.delta_weight().tolist() == [[6, 6, 18], [12, 12, 36], [0, 0, 0]]


def test_oft_by_hand():
    """q = 1/2: cos = (1 - 1/4) / (1 + 1/4) = .6, sin = 1 / (1 + 1/4) = .8, so
    R = [[.6, -.8], [.8, .6]]. W0 = [[3, 4], [1, 0]] -> W0 R^T = [[-1.4, 4.8], [.6, .8]], with the
    norms 5 and 1 and the product 3 as before.
    q = 1 is a quarter turn, R = [[0, -1], [1, 0]]."""
    W0 = [[3.0, 4], [1, 0]]
    adapter = put(ADAPTERS["oft"](layer(W0), block=2), q=[[0.5]])
    close(t(W0) + adapter.delta_weight(), t([[-1.4, 4.8], [0.6, 0.8]]))
    close(adapter(t([1.0, 0])), t([-1.4, 0.6]))
    close(put(adapter, q=[[1.0]])(t([0.0, 1])), t([3.0, 1]))


def test_bottleneck_by_hand():
    """D = (1, 1), U = (1/2, -1/2)^T and a ReLU behind the identity: h = (1, -2) has D h = -1 and
    stays; h = (3, 1) has D h = 4, y = (3 + 2, 1 - 2). d = 2 and u = (0, 1): 6, y = (6, -1)."""
    adapter = put(ADAPTERS["bottleneck"](layer([[1.0, 0], [0, 1]]), bottleneck=1),
                  D=[[1.0, 1]], U=[[0.5], [-0.5]])
    adapter.activation = torch.relu
    assert adapter(t([[1.0, -2], [3, 1]])).tolist() == [[1, -2], [5, -1]]
    assert put(adapter, d=[2.0], u=[0.0, 1])(t([3.0, 1])).tolist() == [6, -1]


def test_model_soup_and_task_arithmetic():
    """theta_0 = 1, tau = 2 and 6: average 1 + 8/2 = 5, arithmetic at lam = .25: 1 + .25 * 8 = 3."""
    base, taus = {"w": t([1.0])}, [{"w": t([2.0])}, {"w": t([6.0])}]
    assert merge.average(base, taus)["w"].tolist() == [5]
    assert merge.task_arithmetic(base, taus, lam=0.25)["w"].tolist() == [3]


def test_averaging_A_and_B_apart_is_not_averaging_the_models():
    """Two rank-1 adapters at 1/2: the models average to (B1 A1 + B2 A2) / 2, the factors multiply
    out to (B1 + B2)(A1 + A2) / 4, with the cross terms B1 A2 and B2 A1."""
    A1, B1, A2, B2 = t([[1.0, 0]]), t([[1.0], [0]]), t([[0.0, 1]]), t([[0.0], [1]])
    dense = merge.average({"d": torch.zeros(2, 2)}, [{"d": B1 @ A1}, {"d": B2 @ A2}])["d"]
    zero = {"A": torch.zeros(1, 2), "B": torch.zeros(2, 1)}
    factors = merge.average(zero, [{"A": A1, "B": B1}, {"A": A2, "B": B2}])
    assert dense.tolist() == [[0.5, 0], [0, 0.5]]
    assert (factors["B"] @ factors["A"]).tolist() == [[0.25, 0.25], [0.25, 0.25]]
