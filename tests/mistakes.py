"""Mistakes that the course has to name: one wrong token in a solved stage, and the hint for it.

ERRORS   stage: [(what stands in it, the mistake, a pattern of the hint)]; turn i takes [i::TURNS]
"""

TURNS = 8
ERRORS = {
    "stage01_lora": [
        ("plus(y, self.scale, u, self.B)", "plus(y, -self.scale, u, self.B)", "forward: the sign"),
        ("self.scale = alpha / rank", "self.scale = alpha", "yours is alpha$"),
        ("return W0 - adapter", "return W0 + adapter", "unmerge: the sign"),
        ("generator=generator) * 2 - 1", "generator=generator) * 2", "entries of A have one sign"),
        ("weight.new_zeros(out_features", "weight.new_ones(out_features", "B is not zero"),
        ("rank=rank).trainable_count()", "rank=rank).trainable_count() / 1", "an int, not 18.0"),
        ("return W0 - adapter(W0, None, *rest).delta_weight()",
         "return W0.sub_(adapter(W0, None, *rest).delta_weight())", "unmerge changes W0")],
    "stage02_pissa_dora": [
        ("(S / self.scale).sqrt()", "S.sqrt()", "S_r is not divided by s"),
        ("(self.B - self.B0) @ self.A + self.B0 @ (self.A - self.A0)",
         "self.B @ self.A + self.B0 @ self.A0", "the sign of s B0 A0 is wrong"),
        ("self.square.sqrt())", "self.square)", "dora_start: the root is missing"),
        ("self.square + 2 * s * cross + s * s * own", "self.square", "of V, not of W0"),
        ("detach=True", "detach=False", "it goes through n, detach n"),
        ("t[..., :rank]", "t[..., -rank:]", "the smallest singular values"),
        ("(S / self.scale).sqrt()", "(self.scale / S).sqrt()", "yours is s / S_r"),
        ("(S / self.scale).sqrt()", "(S / S).sqrt()", "has s, the argument, become")],
    "stage03_taylor": [
        ("return value + tangent", "return value - tangent", "the sign of p - p0 is wrong"),
        ("t2) - change(t1)", "t2) + change(t1)", "the sign of the first part is wrong"),
        ("return value + tangent", "return tangent", r"the value f\(p0\) is missing"),
        ("jvp(f, (p0,)", "jvp(f, (p,)", "value and Jacobian are taken at p"),
        ("f(reduce(add, taus, p0)) - f(p0)", "f(reduce(add, taus, p0))", r"f\(p0\) is forgotten"),
        ("layers, x), p0, p)", "layers, x), p0, p0)", "this is the network at p0")],
    "stage04_arithmetic": [
        ("(finetuned, base, lam=-1)", "(finetuned, base, lam=1)", "task_vector: this is a sum"),
        ("taus, [1 / len(taus)]", "taus, [1]", "average: this is the sum, divide by T"),
        ("[lam * float(v) for", "[-lam * float(v) for", "arithmetic: the sign is wrong"),
        ("taus, lam=-lam)", "taus, lam=lam)", "forget: the sign is wrong"),
        ("out[k] = torch.add(v, ", "out[k] = v.add_(", "average changes base"),
        ("(gram / torch.outer", "(-gram / torch.outer", "cosine: the sign"),
        ("lam=0.3, coeff", "lam=0.4, coeff", "arithmetic: lam = 0.3 by default: right shape"),
        ("tau, *, lam=1.0", "tau, *, lam=0.9", "forget: lam = 1 by default: right shape")],
    "stage05_ties": [
        ("{k: v.sign() for", "{k: -v.sign() for", "elect: the sign is wrong"),
        ("values * sign > 0", "values * sign < 0", "the entries that oppose the sign"),
        ("[trim(tau, density) for", "[trim(tau, 1.0) for", "ties: nothing is trimmed"),
        ("sum(v != 0 for v in values).clamp(min=1)", "len(values)", "it is divided by T"),
        ("largest(flat.abs()", "largest(flat", "the sign counts"),
        ("torch.where(values * sign > 0, values, 0)", "values.mul_(values * sign > 0)",
         "disjoint_mean changes taus"),
        ("density=0.2, agg", "density=0.3, agg", "ties: density = 0.2 and lam = 1 by default"),
        (">= 0 else -1.0", "<= 0 else -1.0", "yours is the opposite"),
        (".clamp(min=1)", "", "disjoint_mean has NaN"),
        ("== 0, majority, sign", "== 0, 1.0 if sign.sum() >= 0 else -1.0, sign", "one majority"),
        ("sign.sum() for sign in signs", "v.sum() for v in total(taus)", "yours is the opposite"),
        ("round(density * len(flat))", "int(density * len(flat))", r"\(0.7 \* 5\) is 4 .* keep 3")],
    "stage06_fisher": [
        ("J[k].square())", "J[k])", "the square comes before the mean over the classes"),
        (".sum().log()", ".sum().log().neg()", "log_trace: the sign"),
        ("sum(g[k].square()", "sum(-g[k]", "empirical_fisher.*the square is missing$"),
        ("J, logp.exp()", "J, logp", r"it is p\(c\|x\)"),
        (".sum().log()", ".log().sum()", "log_trace: logs are added up"),
        ("v / len(x)", "v", "true_fisher.*: it is the sum over the examples"),
        ("v / len(x)", "v / len(x) / p.shape[1]", "it is divided by n C"),
        ("J, logp.exp()", "J, logp.exp().square()", r"p\(c\|x\) is squared"),
        ("merge.flatten(fisher).sum().log()", "sum(v.sum().log() for v in fisher.values())",
         "log_trace: logs of tensors are added up"),
        ("J, logp.exp()", "J, logp.exp().round()", "one class alone counts")],
    "stage07_adamerging": [
        ("return -(logp.exp()", "return (logp.exp()", "entropy: the sign"),
        ("out[t, index[k]] += ", "out[t, index[k]] -= ", r"dL/dlam_t is \+ <dL/dtheta, tau_t>"),
        ("alpha=row[", "alpha=-row[", "merged: the sign"),
        ("sub_(lr * g)", "add_(lr * g)", "descend: the sign is wrong, it climbs"),
        ("lr * g).clamp_(0, 1)", "lr * g).clamp_(0)", "lam is above 1"),
        ("1, merged(base, taus, lam))", "1, base)", "taken at theta_0"),
        ("[:, 0].to(lam)", "[:, 0]", "gradient is torch.float64 for a lam of torch.float32"),
        ("merged(base, taus, lam))", "merged({k: v.requires_grad_() for k, v in base.items()}, "
         "taus, lam))", "gradient changes base"),
        (".clamp_(0, 1)\n    return step(base, taus, share, lam,", "\n    return (lambda *a: "
         "step(*a).clamp(0, 1))(base, taus, share, lam,", "clipped after the last step alone"),
        ("logp).sum(-1)", "logp).mean(-1)", "the mean over the classes"),
        ("logp).sum(-1)", "logp).sum(-1).detach()", "entropy: its gradient: it is zero, detach"),
        ("return combine(base, taus, lam[:, None], group_index(base, \"task\"))",
         "return {k: v + sum(c * tau[k] for c, tau in zip(lam, taus)) for k, v in base.items()}",
         "merged: it has a graph, detach it")],
    "stage08_simplex": [
        ("lam - lr * gradient", "lam + lr * gradient", "search, one step: the sign"),
        ("(v - excess", "(v + excess", "the sign of the shift"),
        ("/ rho).clamp(min=0)", "/ rho)", r"take max\(., 0\)"),
        ("project(lam - lr * gradient(lam))", "lam - lr * gradient(lam)", "is not projected"),
        ("excess).sum(0, keepdim=True)", "excess).sum(0, keepdim=True) - 1", "yours is 1"),
        ("gather(0, rho - 1) / rho", "gather(0, rho - 1) / (rho - 1)", "rho counts from 1"),
        ("1 / tasks, dtype=torch.float64", "1 / tasks", "search must return float64")],
    "stage09_own": [
        (".values for k in base}, lam)", ".values for k in base}, -lam)", "one task.*: the sign"),
        ("new_zeros(())", "new_ones(())", "W_eff is not W0 at the start"),
        ("return 1", "return 2", "trainable_count: it says 2, 1 numbers are trained"),
        (".median(0).values", ".mean(0)", "is average or task arithmetic"),
        ("@register", "", "no class has @lora.register"),
        ("in base}, lam)", "in base}, 1)", "lam is not used")],
    "stage10_study": [
        ("max(RULES", "min(RULES", "ANSWER names .* first, but"),
        ("def finetune(task):", "def finetune(task)", "SyntaxError: expected ':'")]}
