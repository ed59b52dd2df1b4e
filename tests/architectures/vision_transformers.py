"""Vision transformers and token mixers of timm, narrow and shallow."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tests import torchvision_ops
from tests.architectures.libraries import images, timm_network
from tests.architectures.registry import Build, Registry
from tests.networks import Example, randomised


def _class(module: str, name: str, side: int = 64, **settings: Any) -> Example:
    """A class of timm, for networks whose function by name fixes their width. A setting in quotes is one of the
    module's own layers."""
    torchvision_ops.declare()
    source = import_module(f"timm.models.{module}")
    settings = {key: getattr(source, value) if isinstance(value, str) else value for key, value in settings.items()}
    return randomised(getattr(source, name)(num_classes=10, **settings)), (images(side),)


def _mixer(**settings: Any) -> Build:
    return lambda: _class("mlp_mixer", "MlpMixer", img_size=64, embed_dim=48, num_blocks=2, **settings)


def _vit(name: str, side: int = 64, **settings: Any) -> Build:
    """One of the many that share the settings of `VisionTransformer`."""
    narrow = {"img_size": side, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 4, **settings}
    return lambda: timm_network(name, side, **narrow)


def _mvit_v2() -> Example:
    torchvision_ops.declare()
    from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg

    config = MultiScaleVitCfg(embed_dim=16, depths=(1, 1, 1, 1), num_heads=2)
    return randomised(MultiScaleVit(config, img_size=(64, 64), num_classes=10)), (images(),)


_STAGES: dict[str, Any] = {"depths": (1, 1, 1, 1), "embed_dims": (16, 32, 48, 64), "num_heads": (2, 2, 4, 4)}

VISION_TRANSFORMERS: Registry = {
    "vit_tiny": _vit("vit_tiny_patch16_224"),
    "vit_qk_norm": _vit("vit_tiny_patch16_224", qk_norm=True, init_values=0.1),
    "vit_relative_position": _vit("vit_relpos_small_patch16_224"),
    "deit": _vit("deit_tiny_patch16_224"),
    "deit_distilled": _vit("deit_tiny_distilled_patch16_224"),
    "beit": _vit("beit_base_patch16_224"),
    "eva": _vit("eva02_tiny_patch14_224"),
    "cait": _vit("cait_xxs24_224", depth_token_only=1),
    "xcit": _vit("xcit_nano_12_p16_224", cls_attn_layers=1),
    "mixer": _mixer(),
    "gmixer": _mixer(mlp_ratio=(1.0, 4.0), mlp_layer="GluMlp"),
    "gmlp": _mixer(mlp_ratio=6, block_layer="SpatialGatingBlock", mlp_layer="GatedMlp"),
    "resmlp": _mixer(mlp_ratio=4, block_layer="ResBlock", norm_layer="Affine"),
    "convit": lambda: timm_network("convit_tiny", img_size=64, embed_dim=16, depth=3, num_heads=4, local_up_to_layer=2),
    "crossvit": lambda: timm_network("crossvit_9_240", 240, embed_dim=(32, 64), depth=((1, 1, 0),), num_heads=(4, 4)),
    "swin": lambda: timm_network(
        "swin_tiny_patch4_window7_224", img_size=64, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4
    ),
    "swin_v2": lambda: timm_network(
        "swinv2_tiny_window8_256", img_size=64, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4
    ),
    "swin_v2_cr": lambda: timm_network(
        "swinv2_cr_tiny_224", img_size=64, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4
    ),
    "maxvit": lambda: timm_network(
        "maxvit_nano_rw_256",
        img_size=64,
        embed_dim=(16, 32),
        depths=(1, 1),
        stem_width=16,
        transformer_dim_head=8,
        transformer_window_size=(4, 4),
    ),
    "maxvit_tf": lambda: timm_network(
        "maxvit_tiny_tf_224",
        img_size=64,
        embed_dim=(16, 32),
        depths=(1, 1),
        stem_width=16,
        transformer_dim_head=8,
        transformer_window_size=(4, 4),
    ),
    "coatnet": lambda: timm_network(
        "coatnet_nano_rw_224",
        img_size=64,
        embed_dim=(16, 32, 48, 64),
        depths=(1, 1, 1, 1),
        stem_width=16,
        transformer_dim_head=8,
    ),
    "coat": lambda: timm_network(
        "coat_lite_tiny", img_size=64, embed_dims=(32, 32, 64, 64), serial_depths=(1, 1, 1, 1), num_heads=8
    ),
    "mobilevit": lambda: timm_network("mobilevit_xxs"),
    "mobilevit_v2": lambda: timm_network("mobilevitv2_050"),
    "tiny_vit": lambda: timm_network("tiny_vit_5m_224", **_STAGES, window_sizes=(2, 2, 2, 2)),
    "levit": lambda: timm_network(
        "levit_128s", img_size=64, embed_dim=(32, 48, 64), key_dim=8, num_heads=(2, 4, 4), depth=(1, 1, 1)
    ),
    "pit": lambda: timm_network("pit_ti_224", img_size=64, base_dims=(8, 8, 8), depth=(1, 1, 1), heads=(2, 4, 8)),
    "twins_svt": lambda: timm_network("twins_svt_small", img_size=64, **_STAGES, wss=(4, 4, 2, 2)),
    "twins_pcpvt": lambda: timm_network("twins_pcpvt_small", img_size=64, **_STAGES),
    "pvt_v2": lambda: timm_network("pvt_v2_b0", **_STAGES),
    "pvt_v2_linear": lambda: timm_network("pvt_v2_b2_li", **_STAGES),
    "visformer": lambda: timm_network(
        "visformer_tiny", img_size=64, embed_dim=64, init_channels=16, depth=(1, 1, 1), num_heads=4
    ),
    "volo": lambda: _class(
        "volo",
        "VOLO",
        img_size=64,
        layers=(1, 1, 1, 1),
        embed_dims=(32, 48, 48, 48),
        num_heads=(4, 4, 4, 4),
        stem_hidden_dim=16,
    ),
    "nest": lambda: _class("nest", "Nest", img_size=64, embed_dims=(16, 32, 48), num_heads=(2, 4, 4), depths=(1, 1, 1)),
    "hiera": lambda: timm_network("hiera_tiny_224", img_size=64, embed_dim=16, stages=(1, 1, 1, 1), num_heads=2),
    "davit": lambda: timm_network("davit_tiny", **_STAGES, window_size=4),
    "mvit_v2": _mvit_v2,
    "efficientvit_msra": lambda: timm_network("efficientvit_m0", 224),
    "nextvit": lambda: timm_network("nextvit_small", depths=(1, 1, 5, 1), stem_chs=(16, 16, 16)),
    "gcvit": lambda: _class(
        "gcvit",
        "GlobalContextVit",
        img_size=64,
        embed_dim=16,
        depths=(1, 1, 1, 1),
        num_heads=(2, 2, 4, 4),
        window_ratio=(16, 16, 16, 32),
    ),
    "sequencer": lambda: timm_network(
        "sequencer2d_s", img_size=64, layers=(1, 1, 1, 1), embed_dims=(16, 32, 32, 32), hidden_sizes=(8, 8, 8, 8)
    ),
}
