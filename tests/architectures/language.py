"""Architectures of the library transformers for text."""

from tests.architectures.families import TEXT, TRANSLATOR, Family, alike
from tests.architectures.trials import GAPS, LENGTH, NEXT_WORD, SIDE, TRANSLATION, WORDS

_T5 = {
    "vocab_size": WORDS,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
_GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
_MAMBA_HEADS = {"mamba_n_heads": 4, "mamba_d_head": 16}
_EXPERTS = {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
_LATENT_ATTENTION = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}

_DECODERS = Family(
    "AutoModelForCausalLM",
    {"use_cache": False, **TEXT},
    alike(
        "gpt2 gpt_neox llama gemma2 gemma3_text phi phi3 falcon opt bloom mpt mamba falcon_mamba rwkv olmo olmo2 "
        "cohere granite granitemoe starcoder2 biogpt xglm gpt_bigcode openai-gpt jamba recurrent_gemma persimmon "
        "smollm3 diffllama ernie4_5 ctrl olmoe"
    )
    | alike("mistral mixtral qwen2 qwen3 gemma stablelm exaone4 lfm2 minimax bitnet", _GROUPED)
    | alike("gptj codegen", {"rotary_dim": 4})
    | {
        "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
        "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 16, "n_groups": 1},
        "bamba": {"mamba_d_state": 16, "attn_layer_indices": [1], **_GROUPED, **_MAMBA_HEADS},
        "granitemoehybrid": {
            "num_local_experts": 4,
            "shared_intermediate_size": 32,
            "layer_types": ["mamba", "attention"],
            **_MAMBA_HEADS,
        },
        "nemotron": {"num_key_value_heads": 4},
        "phimoe": {"num_local_experts": 4, **_GROUPED},
        "llama4_text": {"num_local_experts": 4, "intermediate_size_mlp": 64, **_GROUPED},
        "jetmoe": {"num_local_experts": 4, "kv_channels": 8, "num_key_value_heads": 2},
        "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, **_GROUPED},
        "qwen2_moe": {"num_key_value_heads": 4, **_EXPERTS},
        "qwen3_next": {
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
            "num_experts_per_tok": 2,
            **_GROUPED,
            **_EXPERTS,
        },
        "deepseek_v3": {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "num_key_value_heads": 4,
            **_LATENT_ATTENTION,
        },
    },
    NEXT_WORD,
)
_DECODERS_UNTRIED = Family(
    "AutoModelForCausalLM",
    TEXT,
    {
        "xlstm": {"num_heads": 4},
        "zamba2": {
            "layer_types": ["mamba", "hybrid"],
            "mamba_d_state": 16,
            "num_mem_blocks": 1,
            "n_mamba_heads": 4,
            "mamba_headdim": 16,
        },
    },
)
_XLNET = Family("AutoModelForCausalLM", {"vocab_size": WORDS}, {"xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4}})
_ENCODERS = Family(
    "AutoModelForMaskedLM",
    TEXT,
    alike(
        "bert roberta distilbert albert electra deberta deberta-v2 xlm-roberta mpnet big_bird convbert fnet "
        "megatron-bert roformer nystromformer modernbert esm ibert layoutlm xlm flaubert yoso tapas "
        "data2vec-text rembert"
    )
    | {
        "longformer": {"attention_window": 8},
        "luke": {"entity_vocab_size": 20, "entity_emb_size": 16},
        "squeezebert": {"embedding_size": 32},
        "mobilebert": {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
        "reformer": {
            "axial_pos_embds_dim": [16, 16],
            "axial_pos_shape": [4, LENGTH // 4],
            "attn_layers": ["local", "lsh"],
            "attention_head_size": 8,
            "feed_forward_size": 64,
            "num_buckets": 4,
            "is_decoder": False,
        },
        "perceiver": {
            "d_latents": 32,
            "d_model": 32,
            "num_latents": 8,
            "num_blocks": 1,
            "num_self_attends_per_block": 2,
            "num_self_attention_heads": 4,
            "num_cross_attention_heads": 4,
            "max_position_embeddings": LENGTH,
        },
    },
    GAPS,
)
_T5_LIKE = Family(
    "AutoModelForSeq2SeqLM",
    _T5,
    alike("t5 mt5 umt5 longt5")
    | {"switch_transformers": {"num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}},
    TRANSLATION,
)
_TRANSLATORS = Family(
    "AutoModelForSeq2SeqLM",
    TRANSLATOR,
    alike("bart mbart pegasus pegasus_x marian blenderbot blenderbot-small m2m_100 plbart bigbird_pegasus")
    | {
        "nllb-moe": {"num_experts": 4, "encoder_sparse_step": 2, "decoder_sparse_step": 2},
        "led": {"max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64, "attention_window": 8},
        "fsmt": {"src_vocab_size": WORDS, "tgt_vocab_size": WORDS, "langs": ["de", "en"]},
    },
    TRANSLATION,
)
_READERS = Family(
    "AutoModel",
    TEXT,
    alike("bert-generation bros lilt splinter")
    | {
        "layoutlmv3": {"coordinate_size": 6, "shape_size": 4, "input_size": SIDE, "patch_size": 8},
        "visual_bert": {"visual_embedding_dim": 16},
        "canine": {"num_hash_buckets": 32},
    },
)

FAMILIES = (_DECODERS, _DECODERS_UNTRIED, _XLNET, _ENCODERS, _T5_LIKE, _TRANSLATORS, _READERS)
