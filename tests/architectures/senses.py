"""Architectures of the library transformers for images, sound, several of these at once, and series."""

from tests.architectures.families import BODY, CODER, TEXT, TRANSLATOR, Family, alike
from tests.architectures.trials import CAPTIONS, CLASSES, PHOTOS, SIDE, TRANSCRIPT

_PATCHES = {"image_size": SIDE, "patch_size": 8, "num_channels": 3, **BODY}
_SORTED = {"num_labels": CLASSES}
_STAGES = {"num_stages": 2, "depths": [1, 1], "hidden_sizes": [16, 32]}
_WINDOWS = {"image_size": SIDE, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4]}
_RESIDUAL = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 2]}
_PYRAMID = {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4]}
_SPEECH = {
    "vocab_size": 32,
    "conv_dim": (32, 32),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_prob": 0.0,  # how it masks is drawn by NumPy, and needs longer records
    **BODY,
}
_BACKBONE = {"model_type": "resnet", "out_features": ["stage1", "stage2"], **_RESIDUAL}
_DETECTOR = {"backbone_config": _BACKBONE, "num_queries": 5, **CODER}
_SERIES = {"prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2], **CODER}

_SIGHT = Family(
    "AutoModelForImageClassification",
    _SORTED,
    {
        **alike("vit beit data2vec-vision dinov2 ijepa", _PATCHES),
        "swin": {"window_size": 2, **_WINDOWS},
        "swinv2": {"window_size": 2, **_WINDOWS},
        "focalnet": {"focal_levels": [2, 2], "focal_windows": [3, 3], "hidden_sizes": [16, 32], **_WINDOWS},
        "convnext": _STAGES,
        "convnextv2": _STAGES,
        "resnet": _RESIDUAL,
        "poolformer": {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1]},
        "pvt": {"image_size": SIDE, **_PYRAMID},
        "pvt_v2": {"image_size": SIDE, **_PYRAMID},
        "segformer": _PYRAMID,
        "cvt": {"embed_dim": [16, 32, 32], "num_heads": [1, 2, 4], "depth": [1, 2, 3]},
        "mobilenet_v1": {"depth_multiplier": 0.25, "image_size": SIDE},
        "mobilenet_v2": {"depth_multiplier": 0.25, "image_size": SIDE},
        "mobilevit": {
            "hidden_sizes": [16, 24, 32],
            "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 64],
            "image_size": SIDE,
        },
        "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.2, "hidden_dim": 320, "image_size": SIDE},
        "swiftformer": {"depths": [1, 1, 1, 1], "embed_dims": [16, 16, 32, 32]},
        "hiera": {
            "embed_dim": 16,
            "image_size": [SIDE, SIDE],
            "patch_kernel": [7, 7],
            "depths": [1, 1],
            "num_heads": [1, 2],
            "query_stride": [2, 2],
            "num_query_pool": 1,
            "masked_unit_size": [4, 4],
        },
    },
    PHOTOS,
)
_SIGHT_WITHOUT_HEAD = Family(
    "AutoModel",
    {},
    {
        "deit": _PATCHES,
        "dinov3_vit": {"num_register_tokens": 2, **_PATCHES},
        "vilt": TEXT | _PATCHES,
        "videomae": {"num_frames": 4, **_PATCHES},
        "vivit": {"num_frames": 4, "tubelet_size": [2, 8, 8], **_PATCHES},
        "timesformer": {"num_frames": 2, **_PATCHES},
        "yolos": _PATCHES | {"image_size": [SIDE, SIDE], "num_detection_tokens": 5},
        "vit_mae": {
            "decoder_hidden_size": 32,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 4,
            "decoder_intermediate_size": 64,
            **_PATCHES,
        },
        "imagegpt": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 17, "n_positions": 64},
        "levit": {
            "image_size": 64,
            "hidden_sizes": [16, 24, 32],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
        **alike("detr conditional_detr table-transformer", _DETECTOR),
        "deformable_detr": {"num_feature_levels": 2, **_DETECTOR},
        "rt_detr": {
            "backbone_config": {
                "model_type": "rt_detr_resnet",
                "embedding_size": 8,
                "hidden_sizes": [8, 16, 16, 32],
                "depths": [1, 1, 1, 1],
                "out_features": ["stage2", "stage3", "stage4"],
                "layer_type": "basic",
            },
            "encoder_hidden_dim": 32,
            "encoder_in_channels": [16, 16, 32],
            "decoder_in_channels": [32, 32, 32],
            "num_queries": 5,
            **CODER,
        },
        "sam": {
            "vision_config": {
                "output_channels": 16,
                "mlp_dim": 64,
                "window_size": 2,
                "global_attn_indexes": [1],
                **_PATCHES,
            },
            "prompt_encoder_config": {"hidden_size": 16, "image_size": SIDE, "patch_size": 8, "mask_input_channels": 4},
            "mask_decoder_config": {
                "hidden_size": 16,
                "mlp_dim": 32,
                "num_attention_heads": 2,
                "iou_head_hidden_dim": 16,
            },
        },
    },
)
_DENSE = Family(
    "AutoModelForSemanticSegmentation",
    {},
    {
        "dpt": {"neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 16, "backbone_out_indices": [0, 0, 1, 1]}
        | _PATCHES,
        "upernet": {
            "backbone_config": {
                "model_type": "convnext",
                "hidden_sizes": [8, 16, 16, 32],
                "depths": [1, 1, 1, 1],
                "out_features": ["stage1", "stage2", "stage3", "stage4"],
            },
            "hidden_size": 16,
            "auxiliary_channels": 16,
            "auxiliary_in_channels": 16,
            "pool_scales": [1, 2],
        },
    },
)
_PAIRS = Family(
    "AutoModel",
    {"text_config": TEXT, "vision_config": _PATCHES, "projection_dim": 32},
    alike("clip siglip chinese_clip clipseg altclip owlvit aimv2")
    | {"blip": {"text_config": {"encoder_hidden_size": 32, **TEXT}}},
    CAPTIONS,
)
_MULTIMODAL = Family(
    "AutoModel",
    {},
    {
        "git": {"vision_config": _PATCHES, **TEXT},
        "idefics3": {"text_config": TEXT, "vision_config": _PATCHES},
        "llava": {
            "text_config": {"model_type": "llama", **TEXT},
            "vision_config": {"model_type": "clip_vision_model", **_PATCHES},
        },
        "paligemma": {
            "text_config": {"model_type": "gemma", "head_dim": 8, "num_key_value_heads": 1, **TEXT},
            "vision_config": {"model_type": "siglip_vision_model", **_PATCHES},
            "projection_dim": 32,
        },
        "blip-2": {
            "text_config": {"model_type": "opt", "word_embed_proj_dim": 32, **TEXT},
            "vision_config": _PATCHES,
            "qformer_config": {"encoder_hidden_size": 32, **TEXT},
            "num_query_tokens": 4,
        },
    },
)
_HEARING = Family(
    "AutoModelForCTC",
    _SPEECH,
    alike("wav2vec2 hubert wavlm unispeech unispeech-sat sew-d data2vec-audio wav2vec2-conformer")
    | {"sew": {"squeeze_factor": 2}},
    TRANSCRIPT,
)
_SOUND = Family(
    "AutoModel",
    {},
    {
        "whisper": {"num_mel_bins": 16, "max_source_positions": 32, "max_target_positions": 32, **TRANSLATOR},
        "speech_to_text": {"input_feat_per_channel": 16, "conv_channels": 32, **TRANSLATOR},
        "wav2vec2-bert": BODY,
        "audio-spectrogram-transformer": {"max_length": 32, "num_mel_bins": 16, "patch_size": 8, **BODY},
        "encodec": {"num_filters": 4, "hidden_size": 16, "codebook_size": 16, "codebook_dim": 16, "num_lstm_layers": 1},
        "dac": {
            "encoder_hidden_size": 8,
            "decoder_hidden_size": 32,
            "downsampling_ratios": [2, 2],
            "upsampling_ratios": [2, 2],
            "n_codebooks": 2,
            "codebook_size": 16,
            "codebook_dim": 4,
        },
        "clap": {
            "text_config": TEXT,
            "audio_config": {
                "patch_embeds_hidden_size": 16,
                "depths": [1, 1],
                "num_attention_heads": [2, 2],
                "hidden_size": 32,
                "spec_size": 64,
                "num_mel_bins": 16,
                "window_size": 4,
            },
            "projection_dim": 32,
        },
    },
)
_FORECASTS = Family(
    "AutoModel",
    {},
    {
        **alike("time_series_transformer informer autoformer", _SERIES),
        "patchtst": {"num_hidden_layers": 2, "context_length": 16, "patch_length": 4, "d_model": 32, "ffn_dim": 64},
        "patchtsmixer": {"d_model": 16, "num_layers": 2, "context_length": 16, "patch_length": 4},
        "timesfm": {"head_dim": 8, **BODY},
        "decision_transformer": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    },
)

FAMILIES = (_SIGHT, _SIGHT_WITHOUT_HEAD, _DENSE, _PAIRS, _MULTIMODAL, _HEARING, _SOUND, _FORECASTS)
