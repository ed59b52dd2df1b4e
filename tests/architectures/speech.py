"""Audio, video, two-tower and detection networks of transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.architectures.language import tokens, transformers_network
from tests.architectures.libraries import images
from tests.architectures.registry import Build, Registry

_ENCODER: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}
_AUDIO: dict[str, Any] = {
    **_ENCODER,
    "vocab_size": 32,
    "conv_dim": (32, 32),
    "conv_kernel": (8, 4),
    "conv_stride": (4, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "num_labels": 5,
}


def _wave(length: int = 800) -> Tensor:
    return torch.randn(2, length, generator=torch.Generator().manual_seed(1))


def _spectrum(bins: int, length: int) -> Tensor:
    return torch.randn(2, bins, length, generator=torch.Generator().manual_seed(1))


def _audio(kind: str, config: str, **settings: Any) -> Build:
    return lambda: transformers_network(kind, config, {"input_values": _wave()}, **{**_AUDIO, **settings})


def _vision(kind: str, config: str, outputs: tuple[str, ...] = ("logits",), **settings: Any) -> Build:
    return lambda: transformers_network(
        kind, config, {"pixel_values": images()}, outputs, **{"num_labels": 5, **settings}
    )


def _above_zero(build: Build, bias: str) -> Build:
    """With a bias so large that the last ReLU lets something through."""

    def built() -> tuple[torch.nn.Module, tuple[Tensor, ...]]:
        module, inputs = build()
        torch.nn.init.constant_(module.get_parameter(bias), 2.0)
        return module, inputs

    return built


def _towers(kind: str, config: str) -> Build:
    text = {**_ENCODER, "vocab_size": 64, "max_position_embeddings": 16, "projection_dim": 48}
    vision = {**_ENCODER, "image_size": 32, "patch_size": 8, "projection_dim": 48}
    inputs = {"input_ids": tokens(), "pixel_values": images(32)}
    outputs = ("logits_per_image", "logits_per_text")
    settings: dict[str, Any] = {"text_config": text, "vision_config": vision}
    if kind == "CLIPModel":
        settings["projection_dim"] = 32
    return lambda: transformers_network(kind, config, inputs, outputs, **settings)


SPEECH: Registry = {
    "wav2vec2": _audio("Wav2Vec2ForCTC", "Wav2Vec2Config"),
    "wav2vec2_layer_norm": _audio(
        "Wav2Vec2ForCTC", "Wav2Vec2Config", feat_extract_norm="layer", do_stable_layer_norm=True
    ),
    "wav2vec2_classifier": _audio("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", classifier_proj_size=24),
    "wav2vec2_conformer": _audio("Wav2Vec2ConformerForCTC", "Wav2Vec2ConformerConfig", conv_depthwise_kernel_size=7),
    "hubert": _audio("HubertForCTC", "HubertConfig"),
    "wavlm": _audio("WavLMForCTC", "WavLMConfig"),
    "data2vec_audio": _audio("Data2VecAudioForCTC", "Data2VecAudioConfig", conv_pos_kernel_size=7),
    "sew": _audio("SEWForCTC", "SEWConfig"),
    "unispeech": _audio("UniSpeechForCTC", "UniSpeechConfig", num_ctc_classes=32),
    "whisper": lambda: transformers_network(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {"input_features": _spectrum(20, 32), "decoder_input_ids": tokens(6)},
        vocab_size=64,
        num_mel_bins=20,
        d_model=48,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        max_source_positions=16,
        max_target_positions=16,
        use_cache=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    ),
    "speech_to_text": lambda: transformers_network(
        "Speech2TextForConditionalGeneration",
        "Speech2TextConfig",
        {"input_features": _spectrum(32, 20), "decoder_input_ids": tokens(6)},
        vocab_size=64,
        input_feat_per_channel=20,
        conv_channels=32,
        d_model=48,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        max_source_positions=64,
        max_target_positions=16,
        use_cache=False,
    ),
    "audio_spectrogram": lambda: transformers_network(
        "ASTForAudioClassification",
        "ASTConfig",
        {"input_values": _spectrum(64, 32)},
        **_ENCODER,
        patch_size=8,
        frequency_stride=8,
        time_stride=8,
        max_length=64,
        num_mel_bins=32,
        num_labels=5,
    ),
    "clip": _towers("CLIPModel", "CLIPConfig"),
    "siglip": _towers("SiglipModel", "SiglipConfig"),
    "dinov2": _vision("Dinov2ForImageClassification", "Dinov2Config", **_ENCODER, image_size=64, patch_size=16),
    "segformer": _vision(
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        depths=(1, 1, 1, 1),
        hidden_sizes=(16, 32, 48, 64),
        num_attention_heads=(1, 2, 4, 4),
        decoder_hidden_size=32,
    ),
    "yolos": _vision(
        "YolosForObjectDetection",
        "YolosConfig",
        ("logits", "pred_boxes"),
        **{**_ENCODER, "num_hidden_layers": 2},
        image_size=(64, 64),
        patch_size=16,
        num_detection_tokens=10,
    ),
    "dpt": _above_zero(
        _vision(
            "DPTForDepthEstimation",
            "DPTConfig",
            ("predicted_depth",),
            **{**_ENCODER, "num_hidden_layers": 4},
            image_size=64,
            patch_size=16,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[16, 16, 16, 16],
            fusion_hidden_size=16,
        ),
        "model.head.head.4.bias",
    ),
    "cvt": _vision(
        "CvtForImageClassification",
        "CvtConfig",
        embed_dim=[16, 32, 48],
        num_heads=[1, 2, 4],
        depth=[1, 2, 3],
    ),
    "vit_transformers": _vision("ViTForImageClassification", "ViTConfig", **_ENCODER, image_size=64, patch_size=8),
    "swin_transformers": _vision(
        "SwinForImageClassification",
        "SwinConfig",
        image_size=64,
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
    ),
    "timesformer": lambda: transformers_network(
        "TimesformerForVideoClassification",
        "TimesformerConfig",
        {"pixel_values": images(32, 12).view(2, 4, 3, 32, 32)},
        **_ENCODER,
        image_size=32,
        patch_size=8,
        num_frames=4,
        num_labels=5,
    ),
    "videomae": lambda: transformers_network(
        "VideoMAEForVideoClassification",
        "VideoMAEConfig",
        {"pixel_values": images(32, 12).view(2, 4, 3, 32, 32)},
        **_ENCODER,
        image_size=32,
        patch_size=8,
        num_frames=4,
        num_labels=5,
    ),
    "patchtst": lambda: transformers_network(
        "PatchTSTForPrediction",
        "PatchTSTConfig",
        {"past_values": _spectrum(32, 3)},
        ("prediction_outputs",),
        num_input_channels=3,
        context_length=32,
        patch_length=8,
        patch_stride=4,
        d_model=32,
        ffn_dim=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        prediction_length=6,
        loss="mse",
    ),
}
