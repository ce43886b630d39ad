"""What a config.json says: an encoder and its keywords, or why there is none.

    ours        "model_type": "vit_encoder", "bert_encoder" or "gpt_decoder", then the keywords
    published   Hugging Face's ViT, DeiT, DINOv2, CLIP and BERT: KEYS are the keys we read, DEFAULTS
                what transformers takes where a file leaves one out

A key of DEFAULTS that is not in KEYS must have its default: we cannot compute with another value.
A key that this file does not name must be empty, for it may change what the model computes.
"""

import inspect
import re

from encoders.bert import BERT
from encoders.block import ACTIVATIONS
from encoders.gpt import GPT
from encoders.vit import ViT
from errors import BadInput, read_json, unknown

OURS = {"vit_encoder": ViT, "bert_encoder": BERT, "gpt_decoder": GPT}

SHARED = {"hidden_size": "width", "num_hidden_layers": "depth", "num_attention_heads": "heads",
          "intermediate_size": "hidden", "layer_norm_eps": "eps"}
KEYS = {ViT: SHARED | {"image_size": "image", "patch_size": "patch", "num_channels": "channels",
                       "hidden_act": "activation"},
        BERT: SHARED | {"vocab_size": "vocab", "max_position_embeddings": "positions",
                        "type_vocab_size": "types"}}

BASE = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
            layer_norm_eps=1e-12, hidden_act="gelu", is_encoder_decoder=False)
VIT = BASE | dict(image_size=224, patch_size=16, num_channels=3, qkv_bias=True, attention_bias=True,
                  mlp_bias=True, use_mean_pooling=False, num_register_tokens=0)
DEFAULTS = {
    "vit": VIT, "deit": VIT,
    "dinov2": VIT | dict(patch_size=14, layer_norm_eps=1e-6, mlp_ratio=4, use_swiglu_ffn=False),
    "clip": VIT | dict(patch_size=32, layer_norm_eps=1e-5, hidden_act="quick_gelu"),
    "bert": BASE | dict(vocab_size=30522, max_position_embeddings=512, type_vocab_size=2,
                        position_embedding_type="absolute", is_decoder=False,
                        add_cross_attention=False)}
NEUTRAL = re.compile("^_|drop|_token_id$")         # where from, how it was trained; vocab.txt tells
# of heads, poolers, backbones, starting values, training and generating texts
HARMLESS = set("""
    add_pooling_layer apply_layernorm architectures begin_suppress_tokens chunk_size_feed_forward
    directionality diversity_penalty do_sample dtype early_stopping encoder_stride
    exponential_decay_length_penalty finetuning_task gradient_checkpointing id2label
    initializer_factor initializer_range intermediate_size label2id language layerscale_value
    length_penalty logit_scale_init_value max_length min_length model_type name_or_path
    num_beam_groups num_beams num_labels num_return_sequences out_features out_indices
    output_attentions output_hidden_states output_past output_scores pooler_act pooler_fc_size
    pooler_num_attention_heads pooler_num_fc_layers pooler_output_size pooler_size_per_head
    pooler_type prefix problem_type projection_dim remove_invalid_values repetition_penalty
    reshape_hidden_states return_dict return_dict_in_generate stage_names suppress_tokens
    task_specific_params temperature text_config text_config_dict tie_encoder_decoder
    tie_word_embeddings tokenizer_class top_k top_p torch_dtype torchscript transformers_version
    typical_p use_bfloat16 use_cache use_mask_token vision_config vision_config_dict""".split())

# input normalisation where the folder does not say
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CLIP = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
NORMALISATION = {"vit": HALF, "deit": IMAGENET, "dinov2": IMAGENET, "clip": CLIP}
RESCALED = dict(do_rescale=True, rescale_factor=1 / 255)         # preprocessor_config.json
RESIZED = set("""crop_pct crop_size data_format default_to_square device do_center_crop
    do_convert_rgb do_normalize do_pad do_resize feature_extractor_type image_mean
    image_processor_type image_std input_data_format pad_size processor_class resample
    return_tensors size""".split())


def settings(config, folder):
    """The class of an encoder and its keywords, from the config.json of a folder."""
    file, model_type = folder / "config.json", config.get("model_type")
    if model_type is None and is_bert(config):
        model_type = "bert"
    if not isinstance(model_type, str):
        raise BadInput(f"{file} says model_type {model_type!r:.60}, and what else it says is not "
                       f"only of BERT: {', '.join(DEFAULTS)} can be read here")
    if model_type in OURS:
        given = {k: v for k, v in config.items() if k != "model_type"}
        check(OURS[model_type], given, file)
        return OURS[model_type], given
    if model_type in ("clip", "clip_vision_model"):
        model_type, config = "clip", vision(config, file)
    if model_type not in DEFAULTS:
        raise unknown("model_type", model_type, [*OURS, *DEFAULTS])
    cls, wanted = BERT if model_type == "bert" else ViT, DEFAULTS[model_type]
    keys, given = KEYS[cls], {k: flat(v) for k, v in (wanted | config).items()}
    out = {keys[k]: given[k] for k in wanted if k in keys}
    if model_type == "dinov2":                           # its width in a block is a multiple
        keys, ratio = keys | {"mlp_ratio": "hidden"}, given["mlp_ratio"]
        usable = number(ratio) and ratio > 0 and count(out["width"])
        out["hidden"] = int(out["width"] * ratio) if usable else ratio
    if cls is ViT:
        out |= dict(layer_scale=model_type == "dinov2", clip=model_type == "clip")
        out |= normalisation(folder / "preprocessor_config.json", model_type, out["channels"])
    check(cls, out, file, keys)
    same = dict.fromkeys(("embedding_size", "emb_size"), out["width"]) | {
        "head_dim": out["width"] // out["heads"]}
    unread = {k: v for k, v in (wanted | same).items() if k not in keys}
    understood(config, unread, HARMLESS | keys.keys(), file)
    return cls, out


def is_bert(config):
    """Whether a config.json without model_type is of a BERT; those of 2020 name no class either.

    RoBERTa's has 514 positions, one type, eps 1e-5 and [PAD] 1; others have keys of their own.
    """
    named = config.get("architectures")
    if named:
        return bool(re.match(r"\['Bert(Model|For|LMHead)", str(named)))
    usual = DEFAULTS["bert"] | {"pad_token_id": 0}
    return "type_vocab_size" in config and config.get("max_position_embeddings") != 514 and all(
        config.get(k, usual[k]) == usual[k]
        for k in ("type_vocab_size", "layer_norm_eps", "pad_token_id"))


def vision(config, file):
    """The half for images of a CLIP; as in transformers, vision_config_dict overrides it."""
    if config["model_type"] == "clip_vision_model":
        return config
    understood(config, {}, HARMLESS, file)
    parts = [config.get(k) or {} for k in ("vision_config", "vision_config_dict")]
    if not all(isinstance(part, dict) for part in parts):
        raise BadInput(f"{file}: its vision_config is no JSON object: fetch it again")
    return parts[0] | (DEFAULTS["clip"] | parts[1] if parts[1] else {})


def normalisation(file, model_type, channels):
    """Mean and standard deviation of the inputs, from preprocessor_config.json if there is one."""
    out = NORMALISATION[model_type]
    if not file.exists():
        return out
    given = read_json(file, "fetch it again, or take it away for the usual values")
    understood(given, RESCALED, RESIZED, file)
    if type(on := given.get("do_normalize", True)) is not bool:
        raise BadInput(f"{file} says do_normalize {on!r}: write true or false")
    if not on and count(channels):
        return dict(mean=(0.0,) * channels, std=(1.0,) * channels)
    out = {k: given.get(f"image_{k}", v) for k, v in out.items()}
    check(ViT, out | dict(channels=channels), file, {"image_mean": "mean", "image_std": "std"})
    return {k: tuple(v) for k, v in out.items()}


# ---- what may be written there -------------------------------------------------------------------


def flat(value):
    """[224, 224] is 224."""
    square = isinstance(value, list) and len(value) == 2 and value[0] == value[1]
    return value[0] if square else value


def number(v):
    return type(v) in (int, float) and abs(v) < 1e6                              # NaN is not


def count(v):
    return v if type(v) is int and 0 < v <= 10 ** 6 else 0


def row(v):
    return isinstance(v, (list, tuple)) and len(v) > 0 and all(map(number, v))


LARGEST = 5_000_000_000                                                      # parameters
COUNTS = ("image", "patch", "channels", "width", "depth", "heads", "hidden", "vocab", "positions",
          "types")
FITS = dict.fromkeys(COUNTS, (count, "a whole number from 1 to 1000000")) | dict.fromkeys(
    ("pad", "sep", "end"),
    (lambda v: v == 0 and type(v) is int or count(v), "the number of a token")) | {
    "eps": (lambda v: number(v) and 0 < v < 1, "a number between 0 and 1"),
    "mean": (row, "a list of numbers, one for every channel"),
    "std": (lambda v: row(v) and min(v) > 0, "a list of numbers above 0, one for every channel"),
    "activation": (lambda v: v in list(ACTIVATIONS), f"{' or '.join(ACTIVATIONS)}"),
    "layer_scale": (lambda v: type(v) is bool, "true or false"),
    "clip": (lambda v: type(v) is bool, "true or false")}


def check(cls, given, file, keys=None):
    """BadInput unless the keywords make an encoder; `keys` is {what the file calls one: it}."""
    theirs = {ours: key for key, ours in (keys or {}).items()}
    full = {k: p.default for k, p in inspect.signature(cls).parameters.items()}
    if strange := given.keys() - full.keys():
        raise BadInput(f"{file} describes no model: {cls.__name__} has no {min(strange)!r}")
    full |= given
    name = lambda key: f"{theirs.get(key, key)} {full[key]!r:.60}"
    for key in given:
        fits, words = FITS[key]
        if not fits(full[key]):
            raise BadInput(f"{file} says {name(key)}: it must be {words}")
    if full["width"] % full["heads"]:
        raise BadInput(f"{file}: {name('width')} cannot be shared by {name('heads')}")
    parts = 4 * full["width"] ** 2 + 2 * full["width"] * full["hidden"]
    if full["depth"] * parts + full.get("vocab", 0) * full["width"] > LARGEST:
        raise BadInput(f"{file} describes a model of over {LARGEST:,} parameters")
    if cls is ViT and full["image"] < full["patch"]:
        raise BadInput(f"{file}: {name('image')} is smaller than {name('patch')}")
    for key in ("mean", "std") if cls is ViT else ():
        if len(full[key]) != full["channels"]:
            raise BadInput(f"{file}: {name(key)} is not one number for each of {full['channels']} "
                           "channels: write image_mean and image_std to preprocessor_config.json")


def understood(config, wanted, harmless, file):
    """BadInput for a key with another value than the wanted one, or an unknown one with a value."""
    for key, value in config.items():
        if key in wanted and value != wanted[key] and (value or wanted[key]):
            raise BadInput(f"{file} says {key} {value!r:.60}, and only {wanted[key]!r} can be "
                           "read here")
        if value and key not in wanted and key not in harmless and not NEUTRAL.search(key):
            raise BadInput(f"{file} says {key!r:.60} {value!r:.60}, which is not known here and "
                           "may change the model: take the key away if it does not")
