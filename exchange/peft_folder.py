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
    ia3, loha, lokr, oft               are no LoRA: peft_forms.py

The rest of a run stands beside them: run.json (settings and results), run.safetensors (values
before training, buffers) and heads.safetensors (TASK/NAME). base/ holds the encoder, unless the run
was trained on a Hugging Face folder.

Trap     MODULE and target_modules are paths inside ViTModel, Dinov2Model or BertModel as
         transformers 5 has them in memory, where PEFT looks; in files they have other names
         (huggingface.py). Both are read.
"""

import re
import shlex
from pathlib import Path

import torch

import encoders
from encoders import configs, safetensors
from encoders.heads import HEADS
from errors import BadInput, read_json
from exchange import huggingface, peft_forms
from experiment import run_folder

KEY = re.compile(r"base_model\.model\.(.+)\.(lora_[AB]\.weight|lora_magnitude_vector|"
                 rf"{peft_forms.KEY})")
A, B, M = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
FORMS = {"lora": "plain", "rslora": "plain", "lora_plus": "plain", "lora_fa": "plain",
         "dora": "plain", "pissa": "pair", "milora": "pair", "olora": "pair", "adalora": "product",
         **{adapter: adapter for adapter in peft_forms.SAME}}
# what a LoRA of PEFT may have and ours has not -> the value that means it is not used
UNUSED = {"bias": "none", "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {},
          "lora_bias": False, "layer_replication": None, "target_parameters": None,
          "trainable_token_indices": None, "use_qalora": False, "alora_invocation_tokens": None}
# which layers there are, the tensors say; the others matter only in training or say where from
HARMLESS = {"task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
            "inference_mode", "target_modules", "exclude_modules", "layers_to_transform",
            "layers_pattern", "lora_dropout", "init_lora_weights", "loftq_config", "eva_config",
            "corda_config", "lora_ga_config", "velora_config", "megatron_core", "runtime_config",
            "qalora_group_size", "ensure_weight_tying", *peft_forms.HARMLESS}
STARTS = (True, False, "gaussian", "orthogonal", "eva")        # others also change the base
ABOUT = ("setting", "layers", "base", "torch", "result")       # of a run, in run.json
PARTS = {"setting": {"task", "adapter", "hp", "linearize", "quantize", "model", "size", "dtype",
                     "random_weights", "head", "data", "limit", "seed"},
         "result": {"val", "test"}, "base": {"name", "sha256"}}
REMEDY = "give a folder that --export or PEFT wrote"


# ---- adapters ------------------------------------------------------------------------------------


def form(setting):
    """How a run is written as LoRA (the table above); BadInput where it cannot."""
    adapter, reading = setting["adapter"], setting["linearize"]
    forms = {"off": FORMS, "layer": {"lora": "expanded", "l_lora": "expanded"}}.get(reading, {})
    if adapter in forms and not setting["quantize"]:
        peft_forms.check(adapter, setting["hp"])
        return forms[adapter]
    name = " ".join([adapter, *[f"--linearize {reading}"] * (reading != "off"),
                     *[f"--quantize {setting['quantize']}"] * bool(setting["quantize"])])
    raise BadInput(f"{name} is not written for PEFT on the published weights: --export writes "
                   f"{', '.join(FORMS)} and l_lora --linearize layer as adapters; of "
                   "other edits of the weights --merge RULE --export FOLDER the merged encoder")


def to_peft(form, t, hp):
    """The tensors of one layer under PEFT's names, from ours."""
    if form in peft_forms.SAME:
        return peft_forms.to_peft(form, t, hp)
    if form == "pair":
        return {A: torch.cat([t["A"], t["A0"]]), B: torch.cat([t["B"], -t["B0"]], 1)}
    if form == "product":
        return {A: t["Q"], B: t["P"] * t["e"]}
    out = {A: t["A0" if form == "expanded" else "A"], B: t["B"]}
    return out | ({M: t["m"]} if "m" in t else {})


def from_peft(form, t):
    """Our tensors of one layer from PEFT's, as far as these determine them."""
    if form in peft_forms.SAME:
        return peft_forms.from_peft(form, t)
    if form == "pair":
        r = len(t[A]) // 2
        return {"A": t[A][:r], "A0": t[A][r:], "B": t[B][:, :r], "B0": -t[B][:, r:]}
    if form == "product":
        return {"Q": t[A]}
    out = {"A0" if form == "expanded" else "A": t[A], "B": t[B]}
    return out | ({"m": t[M]} if M in t else {})


def adapter_tensors(run, model_type):
    """adapter_model.safetensors of a run on an encoder of that type."""
    by_layer = huggingface.unflat(run["buffers"] | run["trained"], ".")
    hp = run["setting"]["hp"]
    return {f"base_model.model.{huggingface.module_name(model_type, layer)}.{name}": tensor
            for layer in run["layers"]
            for name, tensor in to_peft(form(run["setting"]), by_layer[layer], hp).items()}


def adapter_config(run, model_type, base):
    """adapter_config.json of a run; `base` is the folder of its encoder."""
    modules = {n: huggingface.module_name(model_type, n) for n in run["layers"]}
    about = {"task_type": None, "base_model_name_or_path": base, "auto_mapping": {
        "base_model_class": huggingface.TYPES[model_type][0],
        "parent_library": f"transformers.models.{model_type}.modeling_{model_type}"},
        "target_modules": [*modules.values()], "inference_mode": True}
    return about | settings(run["setting"]) | peft_forms.sides(run.get("trained", {}), modules)


def settings(setting):
    """What adapter_config.json says of the method."""
    adapter, hp = setting["adapter"], setting["hp"]
    if adapter in peft_forms.SAME:
        return peft_forms.settings(adapter, hp)
    times = 2 if form(setting) == "pair" else 1
    alpha = (hp["alpha"] or hp["rank"]) * times                          # alpha / r stays the same
    return {"peft_type": "LORA", "r": hp["rank"] * times,
            "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
            "use_rslora": adapter == "rslora", "use_dora": adapter == "dora",
            "lora_dropout": 0.0, "fan_in_fan_out": False, "init_lora_weights": True} | UNUSED


def parse(tensors, layers, form, rank, source):
    """adapter_model.safetensors as {our parameter name: tensor}; other names or ranks raise."""
    parts, unexpected = {layer: {} for layer in layers}, []
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        layer = huggingface.our_layer(match[1]) if match else None
        if layer in parts:
            parts[layer][match[2]] = tensor
        else:
            unexpected.append(key)
    pair = set() if form in peft_forms.SAME else {A, B}
    lacking = [layer for layer, t in parts.items() if not t or not pair <= t.keys()]
    for problem, where in (("adapts what the run does not:", sorted(unexpected)),
                           (f"has no {A} and {B} for" if pair else "lacks", lacking)):
        if where:
            raise BadInput(f"{source} {problem} {', '.join(where[:5])}: "
                           "give --targets the layers of the folder")
    for layer, t in parts.items() if pair else ():
        if t[A].ndim != 2 or t[B].ndim != 2 or {len(t[A]), t[B].shape[1]} != {rank}:
            raise BadInput(f"{source}: {layer} has {A} {tuple(t[A].shape)} and {B} "
                           f"{tuple(t[B].shape)}, its adapter_config.json says rank {rank}")
    return {f"{layer}.{name}": tensor for layer, t in parts.items()
            for name, tensor in from_peft(form, t).items()}


def base_of(setting, model_type):
    """The folder of a run's base if transformers can load it as it is, else None."""
    path = encoders.find(setting["model"])
    changed = setting["random_weights"] or (setting["size"] is not None and model_type != "bert")
    same = not changed and path.is_dir() and \
        read_json(path / "config.json", REMEDY).get("model_type") in huggingface.TYPES
    return str(path) if same else None


def write_adapter(run, out):
    """A run as a PEFT folder that also holds what `load` needs to give the same run again."""
    lora_form, encoder = form(run["setting"]), run_folder.base_encoder(run)
    model_type = huggingface.type_of(encoder)
    published, written = base_of(run["setting"], model_type), adapter_tensors(run, model_type)
    config = adapter_config(run, model_type, published or str(Path(out) / "base"))
    back = parse(written, run["layers"], lora_form, config.get("r"), out)
    rest = {part: {n: t for n, t in run[part].items() if n not in back}
            for part in ("trained", "buffers")} | {"start": run["start"]}
    with huggingface.new_folder(out) as folder:
        if not published:
            (folder / "base").mkdir()
            huggingface.write_encoder(encoder, folder / "base")
        safetensors.write(written, folder / "adapter_model.safetensors")
        run_folder.write_json(config, folder / "adapter_config.json")
        safetensors.write(huggingface.flat(rest), folder / "run.safetensors")
        safetensors.write(huggingface.flat(run["heads"]), folder / "heads.safetensors")
        about = {k: run[k] for k in ABOUT}
        run_folder.write_json(about | {"kind": model_type, "trained": list(run["trained"])},
                              folder / "run.json")
    print(f"wrote {out}: load {config['base_model_name_or_path']} with transformers.AutoModel, "
          "then the adapter with peft.PeftModel.from_pretrained")


# ---- reading -------------------------------------------------------------------------------------


def read_tensors(path):
    """A safetensors file; BadInput if it is missing or damaged."""
    if not path.is_file():
        raise BadInput(f"{path.parent} has no {path.name}: {REMEDY}")
    return safetensors.read(path)


def load(folder):
    """The run that `write_adapter` wrote to a PEFT folder, as run_folder.load has it."""
    folder = Path(folder)
    if not (folder / "run.json").is_file():
        raise BadInput(f"{folder} is an adapter of another tool, without task and head: train it "
                       f"on with train.py --adapter lora --init {shlex.quote(str(folder))}")
    run = read_json(folder / "run.json", REMEDY)
    for part, keys in {"run": {*ABOUT, "kind", "trained"}, **PARTS}.items():
        value = run if part == "run" else run[part]
        if missing := sorted(keys - (value.keys() if isinstance(value, dict) else set())):
            raise BadInput(f"{folder / 'run.json'}: its {part} lacks {', '.join(missing)}: export "
                           "the run again")
    run["setting"] = run_folder.DEFAULTS | run["setting"]
    model_type, names = run.pop("kind"), run.pop("trained")
    want, file = settings(run["setting"]), folder / "adapter_config.json"
    counts = {k: v for k, v in want.items() if k not in HARMLESS}
    check_config(read_json(file, REMEDY), counts, file)
    tensors = read_tensors(folder / "adapter_model.safetensors")
    factors = parse(tensors, run["layers"], form(run["setting"]), want.get("r"), folder)
    rest = huggingface.unflat(read_tensors(folder / "run.safetensors"))
    parts = {part: rest.get(part, {}) for part in ("start", "trained", "buffers")}
    for name, tensor in factors.items():
        parts["trained" if name in names else "buffers"][name] = tensor
    run |= parts | {"folder": folder,
                    "heads": huggingface.unflat(read_tensors(folder / "heads.safetensors"))}
    head = set(HEADS[run["setting"]["head"]](1, 1).state_dict())
    heads = {task: set(tensors) for task, tensors in run["heads"].items()}
    if not run["trained"].keys() == run["start"].keys() == set(names) or \
            heads != dict.fromkeys(run_folder.tasks(run), head):
        raise BadInput(f"{folder}: run.safetensors or heads.safetensors lacks tensors, or has "
                       "others than run.json names: export the run again")
    again = adapter_tensors(run, model_type)
    if changed := [k for k in again | tensors if k not in again or k not in tensors or
                   not torch.equal(again[k], tensors[k])]:
        raise BadInput(f"{folder}: {changed[0]} was changed since, and {run['setting']['adapter']} "
                       "cannot hold the change: export the run again")
    return run


def check_config(config, want, file):
    """BadInput unless adapter_config.json has the wanted values, and no other that counts."""
    configs.understood(dict.fromkeys(want) | UNUSED | config, UNUSED | want, HARMLESS, file)


def check_start(setting):
    """BadInput unless the folder of --init holds what such a run trains; quick."""
    adapter, file = setting["adapter"], Path(setting["init"]) / "adapter_config.json"
    config = read_json(file, REMEDY)
    get = ({"r": 8, "lora_alpha": 8} | config).get                           # PEFT's defaults
    if adapter not in ("lora", "rslora", "dora") or setting["linearize"] != "off":
        raise BadInput("--init starts --adapter lora, rslora or dora, without --linearize")
    if get("use_dora") and get("use_rslora"):
        raise BadInput(f"{file} is of a DoRA scaled as rsLoRA, which no adapter here is")
    theirs = "dora" if get("use_dora") else "rslora" if get("use_rslora") else "lora"
    check_config(config, {"peft_type": "LORA", "use_dora": theirs == "dora",
                          "use_rslora": theirs == "rslora", "r": get("r"),
                          "lora_alpha": get("lora_alpha")}, file)
    if theirs != adapter:
        raise BadInput(f"{file} is of a {theirs}: train it on with --adapter {theirs}")
    if get("init_lora_weights", True) not in STARTS:
        raise BadInput(f"{file} says init_lora_weights {get('init_lora_weights')!r:.60}, which "
                       "changes the base too: convert it to plain LoRA when saving it")
    rank, alpha, hp = get("r"), get("lora_alpha"), setting["hp"]
    if not configs.count(rank) or not configs.number(alpha):
        raise BadInput(f"{file} says r {rank!r:.60} and lora_alpha {alpha!r:.60}: {REMEDY}")
    if (rank, alpha) != (hp["rank"], hp["alpha"]):
        raise BadInput(f"{file} has rank {rank} and alpha {alpha}, the run {hp['rank']} and "
                       f"{hp['alpha']:g}: add --rank {rank} --alpha {alpha}")


def start_from(setting, model, layers):
    """Set a fresh adapter to the values of the folder of --init; names and shapes must agree."""
    tensors = read_tensors(Path(setting["init"]) / "adapter_model.safetensors")
    factors = parse(tensors, layers, "plain", setting["hp"]["rank"], setting["init"])
    run_folder.set_tensors(model, factors, run_folder.state(model)[1], setting["init"])
