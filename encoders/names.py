"""The names of tensors in published checkpoints, and what they are called here.

Names on disk -> names of vit.ViT (i is the block)

    Hugging Face ViT, DeiT                        DINOv2                           ours
    embeddings.cls_token                          same                             cls_token
    embeddings.position_embeddings                same                             position
    embeddings.patch_embeddings.projection.*      same                             patch.*
    encoder.layer.i.layernorm_before.*            ...norm1.*                       blocks.i.norm1.*
      attention.attention.{query,key,value}.*     same                             {q,k,v}.*
      attention.output.dense.*                    same                             out.*
      (none)                                      layer_scale1.lambda1             ls1
      layernorm_after.*                           norm2.*                          norm2.*
      intermediate.dense.*                        mlp.fc1.*                        fc1.*
      output.dense.*                              mlp.fc2.*                        fc2.*
      (none)                                      layer_scale2.lambda1             ls2
    layernorm.*                                   same                             norm.*

    CLIP (vision_model.)                          timm: DeiT, DINOv2 .pth          ours
    embeddings.class_embedding (D,)               cls_token                        cls_token
    embeddings.position_embedding.weight          pos_embed                        position
    embeddings.patch_embedding.weight             patch_embed.proj.*               patch.*
    pre_layrnorm.*                                (none)                           pre_norm.*
    post_layernorm.*                              norm.*                           norm.*
    encoder.layers.i.layer_norm{1,2}.*            blocks.i.norm{1,2}.*             norm{1,2}.*
      self_attn.{q,k,v}_proj.*                    attn.qkv.* (3D, D), cut in three {q,k,v}.*
      self_attn.out_proj.*                        attn.proj.*                      out.*
      mlp.fc{1,2}.*                               same                             fc{1,2}.*
      (none)                                      ls{1,2}.gamma                    ls{1,2}

Names on disk -> names of bert.BERT

    embeddings.{word,position,token_type}_embeddings.weight         {word,position,segment}.weight
    embeddings.LayerNorm.*  (weight, bias or gamma, beta)           norm.*
    encoder.layer.i.attention.self.{query,key,value}.*              blocks.i.{q,k,v}.*
      attention.output.dense.*, attention.output.LayerNorm.*        out.*, norm1.*
      intermediate.dense.*, output.dense.*, output.LayerNorm.*      fc1.*, fc2.*, norm2.*

`ours` removes the prefixes vit., deit., dinov2., bert. and vision_model., and drops heads, poolers,
masks of the pretraining, position_ids, CLIP's text half and its projections.
"""

import re

from errors import BadInput

RENAMES = [
    (r"^(vit|deit|dinov2|bert|vision_model)\.", ""),
    (r"LayerNorm\.gamma$", "LayerNorm.weight"),
    (r"LayerNorm\.beta$", "LayerNorm.bias"),
    (r"^embeddings\.(word|position)_embeddings\.weight$", r"\1.weight"),
    (r"^embeddings\.token_type_embeddings\.", "segment."),
    (r"^embeddings\.LayerNorm\.", "norm."),
    (r"^embeddings\.(cls_token|class_embedding)$", "cls_token"),
    (r"^(embeddings\.(position_embeddings|position_embedding\.weight)|pos_embed)$", "position"),
    (r"^(embeddings\.(patch_embeddings\.projection|patch_embedding)|patch_embed\.proj)\.",
     "patch."),
    (r"^encoder\.layers?\.", "blocks."),
    (r"\.self_attn\.([qkv])_proj\.", r".\1."),
    (r"\.(self_attn\.out_proj|attn\.proj)\.", ".out."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"^pre_layrnorm\.", "pre_norm."),
    (r"^post_layernorm\.", "norm."),
    (r"\.attention\.(attention|self)\.query\.", ".q."),
    (r"\.attention\.(attention|self)\.key\.", ".k."),
    (r"\.attention\.(attention|self)\.value\.", ".v."),
    (r"\.attention\.output\.dense\.", ".out."),
    (r"\.(layernorm_before|attention\.output\.LayerNorm)\.", ".norm1."),
    (r"\.(layernorm_after|output\.LayerNorm)\.", ".norm2."),
    (r"\.(intermediate\.dense|mlp\.fc1)\.", ".fc1."),
    (r"\.(output\.dense|mlp\.fc2)\.", ".fc2."),
    (r"\.(layer_scale|ls)([12])\.(lambda1|gamma)$", r".ls\2"),
    (r"^layernorm\.", "norm."),
]
UNUSED = re.compile(r"^(classifier|pooler|cls|head|text_model)\.|^(embeddings\.)?mask_token$"
                    r"|^embeddings\.position_ids$|^(text|visual)_projection\.|^logit_scale$")


def ours(tensors, source):
    """Rename the tensors of a published checkpoint, drop its heads, cut fused q, k, v in three."""
    out = {}
    for name, tensor in tensors.items():
        if re.search(r"(^|\.)(dist|distillation)_token$", name):
            raise BadInput(f"{source} is a distilled DeiT, with a second class token: "
                           "take the variant without -distilled-")
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        if UNUSED.search(name):
            continue
        if ".attn.qkv." in name:                     # rows of q, then k, then v
            for part, rows in zip("qkv", tensor.chunk(3)):
                out[name.replace("attn.qkv", part)] = rows
        else:                                        # CLIP's have no dimension for the batch
            out[name] = tensor.reshape(1, -1, tensor.shape[-1]) \
                if name in ("cls_token", "position") else tensor
    return out
