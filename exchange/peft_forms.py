"""The adapters that PEFT has and that are no LoRA: their names and settings there.

    ours   PEFT   tensors of a layer                                           settings
    ia3    IA3    ia3_l = 1 + v                                                feedforward_modules
    loha   LOHA   hada_w1_a, hada_w1_b, hada_w2_a, hada_w2_b = B1, A1, B2, A2  r, alpha
    lokr   LOKR   lokr_w1 = C, lokr_w2_a = D1, lokr_w2_b = D2                  r, alpha
                  lokr_w2 = (r / alpha) D where D is full: PEFT scales that one too
    oft    OFT    oft_R.weight = q                                             oft_block_size or r

Trap     of OFT PEFT computes by default a short series that turns the other way: the flag
         use_cayley_neumann must be off. PEFT splits a dimension otherwise than LyCORIS where
         decompose_factor divides it: only --set factor=0, the split near the root, is written.
"""

from errors import BadInput

SAME = {"loha": {"B1": "hada_w1_a", "A1": "hada_w1_b", "B2": "hada_w2_a", "A2": "hada_w2_b"},
        "lokr": {"C": "lokr_w1", "D1": "lokr_w2_a", "D2": "lokr_w2_b"},
        "oft": {"q": "oft_R.weight"}, "ia3": {}}         # adapter -> our tensor: the same of theirs
# which side (IA)^3 scales, the tensors say; the others matter only before training or to COFT
HARMLESS = ("feedforward_modules", "init_ia3_weights", "init_weights", "eps",
            "num_cayley_neumann_terms")
KEY = r"ia3_l|hada_w[12]_[ab]|lokr_w[12](?:_[ab])?|oft_R\.weight"


def check(adapter, hp):
    """BadInput for settings that PEFT cannot have."""
    if adapter == "lokr" and (hp["factor"] or not hp["alpha"]):
        raise BadInput(f"PEFT has no lokr with factor {hp['factor']} and alpha {hp['alpha']:g}: "
                       "--export writes runs of factor 0 and an alpha above it")


def to_peft(adapter, t, hp):
    """The tensors of one layer under PEFT's names, from ours."""
    out = {theirs: t[ours] for ours, theirs in SAME[adapter].items() if ours in t}
    if "v" in t:
        out["ia3_l"] = 1 + t["v"]
    if "D" in t:
        out["lokr_w2"] = t["D"] * (hp["rank"] / hp["alpha"])
    return out


def from_peft(adapter, t):
    """Our tensors of one layer from PEFT's; v and a full D are kept beside, for their last bit."""
    return {ours: t[theirs] for ours, theirs in SAME[adapter].items() if theirs in t}


def sides(trained, modules):
    """For (IA)^3 the layers that scale their inputs, {} for others; modules {our layer: theirs}."""
    rows = {n: len(trained[f"{n}.v"]) == 1 for n in modules if f"{n}.v" in trained}
    return {"feedforward_modules": [modules[n] for n in rows if rows[n]]} if rows else {}


def settings(adapter, hp):
    """What adapter_config.json says of the method; `sides` says the rest."""
    if adapter == "ia3":
        return {"peft_type": "IA3"}
    if adapter == "oft":
        return {"peft_type": "OFT", "oft_block_size": hp["block"], "r": 0 if hp["block"] else 1,
                "use_cayley_neumann": False, "coft": False, "block_share": False, "bias": "none",
                "module_dropout": 0.0}
    shared = {"peft_type": adapter.upper(), "r": hp["rank"], "alpha": hp["alpha"],
              "rank_pattern": {}, "alpha_pattern": {}, "rank_dropout": 0.0, "module_dropout": 0.0}
    return shared | ({"decompose_factor": -1, "decompose_both": False} if adapter == "lokr" else {})
