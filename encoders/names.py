"""The names of tensors in published checkpoints, and what they are called here.

    families   Hugging Face's ViT, DeiT, DINOv2 (HF), CLIP and BERT; timm's DeiT and DINOv2 (.pth)
    ours       those of vit.ViT and bert.BERT: cls_token, position, patch, pre_norm, word, segment,
               norm, and blocks.i. with q, k, v, out, fc1, fc2, norm1, norm2, ls1, ls2

`ours` removes the prefixes of whole models, cuts timm's attn.qkv (3D, D) in three, and drops heads,
poolers, masks of the pretraining, position_ids, CLIP's text half and its projections.
"""

import re

from errors import BadInput

RENAMES = [                                                # applied one after the other
    (r"^(vit|deit|dinov2|bert|vision_model)\.", ""),
    (r"LayerNorm\.gamma$", "LayerNorm.weight"),                                      # old BERTs
    (r"LayerNorm\.beta$", "LayerNorm.bias"),
    # the input
    (r"^embeddings\.(word|position)_embeddings\.weight$", r"\1.weight"),             # BERT
    (r"^embeddings\.token_type_embeddings\.", "segment."),
    (r"^embeddings\.(cls_token|class_embedding)$", "cls_token"),                     # HF, CLIP
    (r"^(embeddings\.(position_embeddings|position_embedding\.weight)|pos_embed)$", "position"),
    (r"^(embeddings\.(patch_embeddings\.projection|patch_embedding)|patch_embed\.proj)\.",
     "patch."),                                                           # HF, CLIP, timm
    (r"^pre_layrnorm\.", "pre_norm."),                                               # CLIP
    # the blocks
    (r"^encoder\.layers?\.", "blocks."),
    (r"\.attention\.(attention|self)\.([qkv])(uery|ey|alue)\.", r".\2."),            # HF, BERT
    (r"\.self_attn\.([qkv])_proj\.", r".\1."),                                       # CLIP
    (r"\.(attention\.output\.dense|self_attn\.out_proj|attn\.proj)\.", ".out."),
    (r"\.(layernorm_before|attention\.output\.LayerNorm)\.", ".norm1."),             # HF, BERT
    (r"\.(layernorm_after|output\.LayerNorm)\.", ".norm2."),
    (r"\.layer_norm([12])\.", r".norm\1."),                                          # CLIP
    (r"\.(intermediate\.dense|mlp\.fc1)\.", ".fc1."),
    (r"\.(output\.dense|mlp\.fc2)\.", ".fc2."),
    (r"\.(layer_scale|ls)([12])\.(lambda1|gamma)$", r".ls\2"),                       # DINOv2
    # the last LayerNorm; BERT's only one outside the blocks
    (r"^(layernorm|post_layernorm|embeddings\.LayerNorm)\.", "norm."),
]
UNUSED = re.compile(r"^(classifier|pooler|cls|head|text_model)\.|^(embeddings\.)?mask_token$"
                    r"|^embeddings\.position_ids$|^(text|visual)_projection\.|^logit_scale$")


# what training scripts put before every name
WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.", "teacher.", "student.")


def unwrapped(tensors):
    """The tensors without the prefixes that all their names share: module., backbone., ..."""
    while prefix := next((p for p in WRAPPERS if all(k.startswith(p) for k in tensors)), None):
        tensors = {k.removeprefix(prefix): v for k, v in tensors.items()}
    return tensors


def ours(tensors, source):
    """Rename the tensors of a published checkpoint, drop its heads, cut fused q, k, v in three."""
    out = {}
    for name, tensor in unwrapped(tensors).items():
        if re.search(r"(^|\.)(dist|distillation)_token$", name):
            raise BadInput(f"{source} is a distilled DeiT, with a second class token: "
                           "take the variant without -distilled-")
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        if UNUSED.search(name):
            continue
        usable = tensor.ndim and tensor.numel()      # else no model has that shape
        if usable and ".attn.qkv." in name:          # rows of q, then k, then v
            for part, rows in zip("qkv", tensor.chunk(3)):
                out[name.replace("attn.qkv", part)] = rows
        elif usable and name in ("cls_token", "position"):       # CLIP's have no batch dimension
            out[name] = tensor.reshape(1, -1, tensor.shape[-1])
        else:
            out[name] = tensor
    return out
