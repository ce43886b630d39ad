"""What the mean accuracy does not show: geometry of task vectors, interference, rank correlation.

    cosine            c_ij = <tau_i, tau_j> / (||tau_i|| ||tau_j||),   tau_t (n,) · c (T, T)
    PCA               -1/2 J D^2 J = J tau tau^T J = V S^2 V^T,   scores V S (T, c)
                      D_ij = ||tau_i - tau_j||,   J = I - 1/T (T, T)
    energy            e_k = mean over the matrices of tau of sum_{i <= k} s_i^2 / sum_i s_i^2   (K,)
                      s_1 >= s_2 >= ...   the singular values of a matrix
    disentanglement   xi(la, lb) = sum over t in {a, b} of E_{x ~ task t} [
                          argmax f_t(x; theta_0 + l_t tau_t)
                          != argmax f_t(x; theta_0 + la tau_a + lb tau_b) ]          in [0, 2]

Task vectors and negation: arXiv:2212.04089 · weight disentanglement: arXiv:2305.12827
Entropy as a stand-in for the loss: AdaMerging, arXiv:2310.02575

Models are dicts name -> tensor, the key order does not matter; `logits[t]` is a callable
params -> (B, C_t), what a model says of the inputs of task t. Sums run in float64, tensor by
tensor, so that no T x n stack is ever made; results are float64 on the CPU. What the dicts hold
matters: the cosine of two LoRA factors B is not the cosine of the products B A.
Differs  the axes of a landscape are tau_a and tau_b themselves. Axes between merged models, such as
         tau_a - tau_b and tau_b - tau_a, can be antiparallel: a line drawn as a plane.
"""

import itertools

import torch
import torch.nn.functional as F
from tqdm import tqdm

from errors import BadInput
from merge import add, layer_of, total
from rules.adamerging import entropy


def pairwise(function, dicts):
    """M_ij = sum_k function(dicts[i][k], dicts[j][k]) over all tensors, (T, T) float64."""
    out = torch.zeros(len(dicts), len(dicts), dtype=torch.float64)
    for i, j in itertools.combinations_with_replacement(range(len(dicts)), 2):
        pairs = ((dicts[i][k].double(), dicts[j][k].double()) for k in sorted(dicts[i]))
        out[i, j] = out[j, i] = sum(function(u, v).item() for u, v in pairs)
    return out


def forgetting(base_target, base_control, curve, keep=0.95):
    """Negation, arXiv:2212.04089: the entry of lowest target score that keeps the control task.

    curve   a list of entries (lam, target score, control score)
    keep    (0.95) the share of base_control that the control score must reach
    Of equal entries the best control score; None if there is none, or it is above base_target.
    """
    kept = [entry for entry in curve if entry[2] >= keep * base_control]
    best = min(kept, key=lambda entry: (entry[1], -entry[2]), default=None)
    return best if best and best[1] <= base_target else None


def cosines(taus):
    """Cosine of every pair of task vectors, (T, T) float64 in [-1, 1]; 0 where one is all zeros."""
    gram = pairwise(lambda u, v: (u * v).sum(), taus)
    sizes = gram.diag().sqrt()
    sizes = torch.where(sizes > 0, sizes, 1)
    return (gram / torch.outer(sizes, sizes)).clamp(-1, 1)


def distances(models):
    """L2 distance of every pair of models, (T, T) float64.

    From the differences: ||a||^2 + ||b||^2 - 2 <a, b> loses all digits of two close models.
    """
    return pairwise(lambda u, v: (u - v).square().sum(), models).sqrt()


def norms_by_layer(tau):
    """{group of merge.layer_of: L2 norm of its part of tau}; their squares add up to ||tau||^2."""
    squares = {}
    for name, tensor in tau.items():
        group = layer_of(name)
        squares[group] = squares.get(group, 0.0) + tensor.double().square().sum().item()
    return {group: square ** 0.5 for group, square in squares.items()}


def pca(taus, components=2):
    """Principal components of T task vectors: scores (T, c), explained share of variance (c,).

    components   (2) how many, 1 <= c <= T; those beyond the rank of the centred vectors are 0
    From the distances, the Gram matrix keeps its digits however much all vectors share. In every
    component the score of largest magnitude (the first of several) is positive.
    """
    D, T = distances(taus), len(taus)
    J = torch.eye(T, dtype=torch.float64) - 1 / T
    values, vectors = torch.linalg.eigh(-0.5 * J @ D ** 2 @ J)               # increasing
    values, vectors = values.flip(0), vectors.flip(1)
    values = torch.where(values > 1e-12 * values[0], values, 0)
    scores = (vectors * values.sqrt())[:, :components]
    sizes = scores.abs()
    first = (sizes >= (1 - 1e-6) * sizes.amax(0)).int().argmax(0, keepdim=True)       # (1, c)
    sign = torch.where(scores.gather(0, first) < 0, -1, 1)
    variance = values.sum()
    return scores * sign, values[:components] / torch.where(variance > 0, variance, 1)


def energy(tau):
    """Share of a task vector that its first k singular directions hold, k = 1 .. K: (K,) float64.

    Mean over its matrices that are not all zeros; K is the largest number of singular values, and 0
    where there is no such matrix.
    """
    squares = [torch.linalg.svdvals(matrix.double()).square().cpu() for matrix in tau.values()
               if matrix.dim() == 2 and matrix.any()]
    K = max(map(len, squares), default=0)
    shares = torch.ones(max(1, len(squares)), K, dtype=torch.float64)
    for row, s in zip(shares, squares):
        row[:len(s)] = s.cumsum(0) / s.sum()
    return shares.mean(0)


def plane(base, tau_a, tau_b, lams, desc):
    """((row, column), theta_0 + lam_a tau_a + lam_b tau_b) over a square grid, with a bar."""
    with tqdm(total=len(lams) ** 2, desc=desc) as bar:
        for i, lam_a in enumerate(lams):
            row = add(base, tau_a, lam_a)
            for j, lam_b in enumerate(lams):
                yield (i, j), add(row, tau_b, lam_b)
                bar.update()


@torch.no_grad()
def disentanglement(base, tau_a, tau_b, logits, lams):
    """Weight disentanglement error xi, arXiv:2305.12827: (n, n) float64, rows lam_a.

    lams   n coefficients, the same for both axes
    The 2 n predictions of one task vector alone are made once. Outputs that add up, as those of a
    linearized model do, do not imply xi = 0: the other vector must also be silent on this task's
    inputs.
    """
    predict = lambda t, params: logits[t](params).argmax(-1)
    alone = [[predict(t, add(base, tau, lam)) for lam in lams]
             for t, tau in enumerate((tau_a, tau_b))]                        # 2 x n of (B_t,)
    xi = torch.zeros(len(lams), len(lams), dtype=torch.float64)
    for cell, params in plane(base, tau_a, tau_b, lams, "disentanglement"):
        for t in (0, 1):
            xi[cell] += (predict(t, params) != alone[t][cell[t]]).double().mean().item()
    return xi


@torch.no_grad()
def landscape(base, tau_a, tau_b, losses, lams):
    """L_a + L_b over theta_0 + lam_a tau_a + lam_b tau_b: (n, n) float64, rows lam_a.

    losses   two callables params -> number;  lams   n coefficients, the same for both axes
    """
    out = torch.zeros(len(lams), len(lams), dtype=torch.float64)
    for cell, params in plane(base, tau_a, tau_b, lams, "landscape"):
        out[cell] = sum(float(loss(params)) for loss in losses)
    return out


def ranks(x):
    """Ranks 1 .. n of x (n,), float64; equal values share the mean of their ranks."""
    _, group, counts = x.unique(return_inverse=True, return_counts=True)     # sorted values
    return (counts.cumsum(0) - (counts - 1) / 2).double()[group]


def spearman(x, y):
    """Spearman's rho of x (n,) and y (n,): the Pearson correlation of their ranks, a float.

    0.0 where one of them is constant. BadInput for NaN, which has no rank.
    """
    if x.isnan().any() or y.isnan().any():
        raise BadInput("spearman of NaN: leave out the entries that were not measured")
    u, v = ranks(x), ranks(y)
    u, v = u - u.mean(), v - v.mean()
    size = (u.norm() * v.norm()).item()
    return (u @ v).item() / size if size > 0 else 0.0


@torch.no_grad()
def entropy_and_loss(base, taus, logits, labels, lams):
    """Does entropy, which needs no labels, rank merged models as the loss does? arXiv:2310.02575

    labels   T tensors (B,);  lams   n coefficients: the models are theta_0 + lam sum_t tau_t
    Returns entropy (n, T) and loss (n, T), means over the inputs of a task, and per task the rank
    correlation of the two over the n models, (T,).
    """
    H, L, sum_of_taus = [], [], total(taus)
    for lam in tqdm(lams, desc="entropy"):
        params = add(base, sum_of_taus, lam)
        outputs = [f(params).double() for f in logits]
        H.append([entropy(z).mean().item() for z in outputs])
        L.append([F.cross_entropy(z, y).item() for z, y in zip(outputs, labels)])
    H, L = torch.tensor(H, dtype=torch.float64), torch.tensor(L, dtype=torch.float64)
    rho = [spearman(H[:, t], L[:, t]) for t in range(len(taus))]
    return H, L, torch.tensor(rho, dtype=torch.float64)
