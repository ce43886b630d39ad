"""Adapters as the PEFT library reads them, written and read back.

    adapter_model.safetensors   base_model.model.MODULE.lora_A.weight (r, in), .lora_B.weight
                                (out, r), and .lora_magnitude_vector (out,) for DoRA
    adapter_config.json         r, lora_alpha, use_rslora, use_dora, target_modules
                                s = lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora

    ours                               lora_A      lora_B       r
    lora, lora_plus, lora_fa, rslora   A           B            r
    dora                               A           B            r     and m
    lora, l_lora, layer reading        A0          B            r     (B0 = 0)
    pissa, milora, olora               [A; A0]     [B, -B0]     2r    delta = s (B A - B0 A0)
    adalora                            Q           P diag(e)    r

Beside them stands what else a run is: run.json (settings and results), run.safetensors (values
before training, buffers) and heads.safetensors (TASK/NAME). Where the base of a run is no Hugging
Face folder as it is, base/ holds it as one.

Trap     MODULE and target_modules are paths inside ViTModel, Dinov2Model or BertModel as
         transformers 5 has them in memory: PEFT looks there, and files say otherwise
         (exchange_encoder.py). Both ways are read. Load the base with AutoModel, then the adapter
         with PeftModel.from_pretrained.
"""

import json
import re
from pathlib import Path

import torch

from exchange import huggingface
import encoders
from experiment import run_folder
from encoders import safetensors
from errors import BadInput
from encoders.heads import HEADS

KEY = re.compile(r"base_model\.model\.(.+)\.(lora_[AB]\.weight|lora_magnitude_vector)")
A, B, M = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
FORMS = {"lora": "plain", "rslora": "plain", "lora_plus": "plain", "lora_fa": "plain",
         "dora": "plain", "pissa": "pair", "milora": "pair", "olora": "pair", "adalora": "product"}
# what a LoRA of PEFT may have and ours has not -> the value that means it is not used
UNUSED = {"bias": "none", "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {},
          "lora_bias": False, "layer_replication": None, "target_parameters": None,
          "trainable_token_indices": None, "use_qalora": False, "alora_invocation_tokens": None}
STARTS = (True, False, "gaussian", "orthogonal", "eva")        # others also change the base


# ---- adapters ------------------------------------------------------------------------------------


def form(setting):
    """How a run is written as LoRA (the table above); BadInput where it cannot."""
    adapter, reading = setting["adapter"], setting["linearize"]
    if reading == "layer" and adapter in ("lora", "l_lora"):
        found = "expanded"
    else:
        found = FORMS.get(adapter) if reading == "off" else None
    if found is None or setting["quantize"]:
        name = " ".join([adapter, *[f"--linearize {reading}"] * (reading != "off"),
                         *[f"--quantize {setting['quantize']}"] * bool(setting["quantize"])])
        raise BadInput(f"{name} is no LoRA on the published weights: --export writes "
                       f"{', '.join(FORMS)} and l_lora --linearize layer as adapters; of others "
                       "--merge RULE --export FOLDER writes the merged encoder")
    return found


def to_peft(form, t):
    """The tensors of one layer under PEFT's names, from ours."""
    if form == "pair":
        return {A: torch.cat([t["A"], t["A0"]]), B: torch.cat([t["B"], -t["B0"]], 1)}
    if form == "product":
        return {A: t["Q"], B: t["P"] * t["e"]}
    out = {A: t["A0" if form == "expanded" else "A"], B: t["B"]}
    return out | ({M: t["m"]} if "m" in t else {})


def from_peft(form, t):
    """What PEFT's tensors of one layer say about ours; the inverse where there is one."""
    if form == "pair":
        r = len(t[A]) // 2
        return {"A": t[A][:r], "A0": t[A][r:], "B": t[B][:, :r], "B0": -t[B][:, r:]}
    if form == "product":
        return {"Q": t[A]}
    out = {"A0" if form == "expanded" else "A": t[A], "B": t[B]}
    return out | ({"m": t[M]} if M in t else {})


def layer_tensors(run, layer):
    """The trained tensors and buffers of one layer, {name in the layer: tensor}."""
    prefix = f"{layer}."
    return {n.removeprefix(prefix): t for n, t in (run["buffers"] | run["trained"]).items()
            if n.startswith(prefix)}


def adapter_tensors(run, kind):
    """adapter_model.safetensors of a run on an encoder of `kind`."""
    return {f"base_model.model.{huggingface.module_name(kind, layer)}.{name}": tensor
            for layer in run["layers"]
            for name, tensor in to_peft(form(run["setting"]), layer_tensors(run, layer)).items()}


def adapter_config(run, kind, base):
    """adapter_config.json of a run; `base` is the folder of its encoder."""
    hp, cls = run["setting"]["hp"], huggingface.KINDS[kind][0]
    times = 2 if form(run["setting"]) == "pair" else 1
    alpha = (hp["alpha"] or hp["rank"]) * times                          # alpha / r stays the same
    return {"peft_type": "LORA", "task_type": None, "base_model_name_or_path": base,
            "auto_mapping": {"base_model_class": cls,
                             "parent_library": f"transformers.models.{kind}.modeling_{kind}"},
            "r": hp["rank"] * times, "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
            "use_rslora": run["setting"]["adapter"] == "rslora",
            "use_dora": run["setting"]["adapter"] == "dora",
            "target_modules": [huggingface.module_name(kind, layer) for layer in run["layers"]],
            "lora_dropout": 0.0, "fan_in_fan_out": False, "init_lora_weights": True,
            "inference_mode": True} | UNUSED


def parse(tensors, layers, form, rank, source):
    """adapter_model.safetensors as {our parameter name: tensor}; other names or ranks raise."""
    found, odd = {layer: {} for layer in layers}, []
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        layer = huggingface.our_layer(match[1]) if match else None
        if layer in found:
            found[layer][match[2]] = tensor
        else:
            odd.append(key)
    if odd:
        raise BadInput(f"{source} adapts what the run does not: {', '.join(sorted(odd)[:5])}: "
                       "give --targets the layers of the folder")
    lacking = [layer for layer, t in found.items() if not {A, B} <= t.keys()]
    if lacking:
        raise BadInput(f"{source} has no {A} and {B} for {', '.join(lacking[:5])}: "
                       "give --targets the layers of the folder")
    for layer, t in found.items():
        if t[A].ndim != 2 or t[B].ndim != 2 or {len(t[A]), t[B].shape[1]} != {rank}:
            raise BadInput(f"{source}: {layer} has {A} {tuple(t[A].shape)} and {B} "
                           f"{tuple(t[B].shape)}, its adapter_config.json says rank {rank}")
    return {f"{layer}.{name}": tensor for layer, t in found.items()
            for name, tensor in from_peft(form, t).items()}


def base_of(setting, kind):
    """The folder of a run's base if transformers can load it as it is, else None."""
    path = encoders.find(setting["model"])
    as_it_is = not setting["random_weights"] and (setting["size"] is None or kind == "bert")
    if not as_it_is or path.is_file() or read_json(path / "config.json").get(
            "model_type") not in huggingface.KINDS:
        return None
    return str(path)


def write_adapter(run, out):
    """A run as a PEFT folder that also holds what `load` needs to give the same run again."""
    way, encoder = form(run["setting"]), run_folder.base_encoder(run)
    kind = huggingface.kind_of(encoder)
    published, written = base_of(run["setting"], kind), adapter_tensors(run, kind)
    config = adapter_config(run, kind, published or str(Path(out) / "base"))
    again = parse(written, run["layers"], way, config["r"], out)
    kept = {part: {n: t for n, t in run[part].items() if n not in again}
            for part in ("trained", "buffers")} | {"start": run["start"]}
    with huggingface.new_folder(out) as folder:
        if not published:
            (folder / "base").mkdir()
            huggingface.write_encoder(encoder, folder / "base")
        safetensors.write(written, folder / "adapter_model.safetensors")
        run_folder.write_json(config, folder / "adapter_config.json")
        safetensors.write(huggingface.flat(kept), folder / "run.safetensors")
        safetensors.write(huggingface.flat(run["heads"]), folder / "heads.safetensors")
        about = {k: run[k] for k in ("setting", "layers", "base", "torch", "result")}
        run_folder.write_json(about | {"kind": kind, "trained": list(run["trained"])},
                        folder / "run.json")
    print(f"wrote {out}: load {config['base_model_name_or_path']} with transformers.AutoModel, "
          "then the adapter with peft.PeftModel.from_pretrained")


# ---- reading -------------------------------------------------------------------------------------


def read_json(path):
    """A JSON object; BadInput if the file is missing or damaged."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read ({error}): give a folder that --export "
                       "or PEFT wrote") from None
    if not isinstance(value, dict):
        raise BadInput(f"{path} holds no JSON object: give a folder that --export or PEFT wrote")
    return value


def read_tensors(path):
    """A safetensors file; BadInput if it is missing or damaged."""
    if not path.is_file():
        raise BadInput(f"{path.parent} has no {path.name}: give a folder that --export or PEFT "
                       "wrote")
    return safetensors.read(path)


def load(folder):
    """A finished run from its run folder, or from a PEFT folder that `write_adapter` wrote."""
    folder = Path(folder)
    if not (folder / "adapter_config.json").is_file():
        return run_folder.load(folder)
    if not (folder / "run.json").is_file():
        raise BadInput(f"{folder} is an adapter of another tool, without task and head: train it "
                       f"on with train.py --adapter lora --init {folder}")
    run = read_json(folder / "run.json")
    if missing := sorted({"setting", "layers", "base", "torch", "result", "kind", "trained"}
                         - run.keys()):
        raise BadInput(f"{folder / 'run.json'} lacks {', '.join(missing)}: export the run again")
    kind, names = run.pop("kind"), run.pop("trained")
    config, want = read_json(folder / "adapter_config.json"), adapter_config(run, kind, None)
    for key in ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", *UNUSED):
        check_config(folder, config, key, want[key])
    tensors = read_tensors(folder / "adapter_model.safetensors")
    found = parse(tensors, run["layers"], form(run["setting"]), want["r"], folder)
    kept = huggingface.unflat(read_tensors(folder / "run.safetensors"))
    run |= {"folder": folder, "start": kept.get("start", {}),
            "heads": huggingface.unflat(read_tensors(folder / "heads.safetensors")),
            "trained": kept.get("trained", {}) | {n: t for n, t in found.items() if n in names},
            "buffers": kept.get("buffers", {}) | {n: t for n, t in found.items() if n not in names}}
    if not run["trained"].keys() == run["start"].keys() == set(names) or \
            {t: set(head) for t, head in run["heads"].items()} != dict.fromkeys(
                run_folder.tasks(run), set(HEADS[run["setting"]["head"]](1, 1).state_dict())):
        raise BadInput(f"{folder}: run.safetensors or heads.safetensors lacks tensors, or has "
                       "others than run.json names: export the run again")
    same = adapter_tensors(run, kind)
    if moved := [k for k in same if k not in tensors or not torch.equal(same[k], tensors[k])]:
        raise BadInput(f"{folder}: {moved[0]} was changed since, and {run['setting']['adapter']} "
                       "cannot hold the change: export the run again")
    return run


def check_config(folder, config, key, wants):
    """BadInput unless a value of adapter_config.json is the wanted one; unset means not used."""
    has = config.get(key, UNUSED.get(key))
    if (has or None) != (wants or None):
        raise BadInput(f"{folder}: its adapter_config.json says {key} {has!r}, "
                       f"and only {wants!r} can be read here")


def check_start(setting):
    """BadInput unless the folder of --init, if any, holds what such a run trains; quick."""
    if not (folder := setting["init"]):
        return
    config, adapter = read_json(Path(folder) / "adapter_config.json"), setting["adapter"]
    if adapter not in ("lora", "rslora", "dora") or setting["linearize"] != "off":
        raise BadInput("--init starts --adapter lora, rslora or dora, without --linearize")
    check_config(folder, config, "peft_type", "LORA")
    kind = "dora" if config.get("use_dora") else "rslora" if config.get("use_rslora") else "lora"
    if config.get("use_dora") and config.get("use_rslora"):
        raise BadInput(f"{folder} is DoRA scaled as rsLoRA, which no adapter here is")
    if kind != adapter:
        raise BadInput(f"{folder} holds a {kind}: train it on with --adapter {kind}")
    for key, unused in UNUSED.items():
        check_config(folder, config, key, unused)
    if config.get("init_lora_weights", True) not in STARTS:
        raise BadInput(f"{folder} was started with {config['init_lora_weights']!r}, which changes "
                       "the base too: convert it to plain LoRA when saving it")
    hp = setting["hp"]
    if (config.get("r"), config.get("lora_alpha")) != (hp["rank"], hp["alpha"]):
        raise BadInput(f"{folder} has rank {config.get('r')} and alpha {config.get('lora_alpha')}, "
                       f"the run {hp['rank']} and {hp['alpha']:g}: add --rank {config.get('r')} "
                       f"--alpha {config.get('lora_alpha')}")


def start_from(setting, model, layers):
    """Set a fresh adapter to the values of --init, if given; names and shapes must agree."""
    if folder := setting["init"]:
        tensors = read_tensors(Path(folder) / "adapter_model.safetensors")
        found = parse(tensors, layers, "plain", setting["hp"]["rank"], folder)
        run_folder.set_tensors(model, found, run_folder.state(model)[1], folder)
