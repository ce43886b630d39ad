"""PEM: Composing Parameter-Efficient Modules with Arithmetic Operations. arXiv:2306.14870

    A = A0 + lam sum_t (A_t - A0),   B = B0 + lam sum_t s_t (B_t - B0)        s_t = +1 or -1

Shapes   A (r, in) · B (out, r) of every LoRA layer
Trap     (-B)(-A) = B A: both factors negated are the adapter itself, so only B changes its sign
"""

from errors import BadInput
from merge import add, check_length, rule, total


def pem_negate(tau):
    """-tau_B and +tau_A: one factor changes its sign, so B A does; keys without .B are kept."""
    return {k: -v if k.endswith(".B") else v for k, v in tau.items()}


@rule(space="adapter")
def pem(base, taus, *, signs=None, lam=1.0):
    """PEM, arXiv:2306.14870.   A = A0 + lam sum_t (A_t - A0),   B = B0 + lam sum_t s_t (B_t - B0)

    signs   one s_t of +1 or -1 per task, None for all +1; -1 unlearns task t. Meant for B0 = 0.
    """
    signs = [1] * len(taus) if signs is None else signs
    check_length("signs", signs, taus)
    if any(s not in (1, -1) for s in signs):
        raise BadInput(f"signs {signs} must be +1 or -1; lam scales")
    if -1 in signs and not {"B"} <= {k.rpartition(".")[2] for k in base} <= {"A", "B"}:
        raise BadInput("pem with -1 flips the factor B of LoRA, and these adapters have no B, or "
                       "more than A and B: merge LoRA adapters")
    signed = [tau if s == 1 else pem_negate(tau) for s, tau in zip(signs, taus)]
    return add(base, total(signed), lam)
