"""Convolutional classifiers made for small devices."""

from __future__ import annotations

from tests.architectures.libraries import timm_network, torchvision_network
from tests.architectures.registry import Registry

MOBILE: Registry = {
    "mobilenet_v1": lambda: timm_network("mobilenetv1_100"),
    "mobilenet_v2": lambda: timm_network("mobilenetv2_050"),
    "mobilenetv3_small": lambda: timm_network("mobilenetv3_small_050"),
    "mobilenetv3_large": lambda: timm_network("mobilenetv3_large_075"),
    "mobilenet_v4": lambda: timm_network("mobilenetv4_conv_small_035"),
    "mobilenet_v4_hybrid": lambda: timm_network("mobilenetv4_hybrid_medium_075"),
    "efficientnet_b0": lambda: timm_network("efficientnet_b0"),
    "efficientnet_lite": lambda: timm_network("efficientnet_lite0"),
    "efficientnet_v2": lambda: timm_network("efficientnetv2_rw_t"),
    "efficientnet_group_norm": lambda: timm_network("efficientnet_b0_g8_gn"),
    "ghostnet": lambda: timm_network("ghostnet_050"),
    "ghostnet_v2": lambda: timm_network("ghostnetv2_100"),
    "repghostnet": lambda: timm_network("repghostnet_050"),
    "shufflenet_v2": lambda: torchvision_network("shufflenet_v2_x0_5"),
    "mnasnet": lambda: timm_network("mnasnet_small"),
    "se_mnasnet": lambda: timm_network("semnasnet_050"),
    "mixnet": lambda: timm_network("mixnet_s"),
    "fbnet_c": lambda: timm_network("fbnetc_100"),
    "fbnet_v3": lambda: timm_network("fbnetv3_b"),
    "tinynet": lambda: timm_network("tinynet_e"),
    "lcnet": lambda: timm_network("lcnet_050"),
    "hardcorenas": lambda: timm_network("hardcorenas_a"),
    "rexnet": lambda: timm_network("rexnet_100"),
    "mobileone": lambda: timm_network("mobileone_s0"),
    "fastvit": lambda: timm_network("fastvit_t8"),
    "edgenext": lambda: timm_network("edgenext_xx_small"),
    "efficientformer": lambda: timm_network("efficientformer_l1", 224),
    "efficientformer_v2": lambda: timm_network("efficientformerv2_s0", 224),
    "efficientvit": lambda: timm_network("efficientvit_b0"),
    "repvit": lambda: timm_network("repvit_m0_9"),
    "starnet": lambda: timm_network("starnet_s050"),
    "swiftformer": lambda: timm_network("swiftformer_xs", 224),
    "ghostnet_v3": lambda: timm_network("ghostnetv3_050"),
}
