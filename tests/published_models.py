"""What attention reads of config.json files as they are published, and the layers they mean.

Facts only: keys and values that attention reads, none of the rest. Sources of the files' values:
llama-3.1-8b: LLM-Prof (see models/catalog.yaml). llama-4-scout: unsloth/Llama-4-Scout-17B-16E.
qwen3-30b-a3b: as llama-3.1-8b. qwen3-next-80b-a3b: defaults of Qwen3NextConfig, which are its own.
qwen3.5-moe-35b-a3b: defaults of Qwen3_5MoeTextConfig (its docstring names the checkpoint).
gemma-3-27b: maxtext (catalog.yaml). gemma-3n-e4b: defaults of Gemma3nTextConfig, checkpoint
google/gemma-3n-E4B. gemma-4-31b: google/gemma-4-31B (60 layers, 32 query heads; 16 KV heads of
256, or 4 of 512). gpt-oss-120b: maxtext. falcon: tiiuae/falcon-7b and -40b. granite: the
config.json of ibm-granite/granite-3.3-8b-instruct. deepseek-v3: defaults of DeepseekV3Config.
Layers by kind: the models' documentation (model cards and docs of transformers 5.24.0).
"""

S, F = "sliding_attention", "full_attention"

# name -> (file, (layers, query heads, KV heads, head size, window or chunk, scale, shared cache),
# other)
MODELS = {
    "llama-3.1-8b": (
        {"model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096,
         "num_attention_heads": 32, "num_key_value_heads": 8},
        {(32, 32, 8, 128, None, 128**-0.5, False)}, {},
    ),
    "llama-4-scout": (
        {"model_type": "llama4", "text_config": {
            "attention_chunk_size": 8192, "head_dim": 128, "hidden_size": 5120,
            "model_type": "llama4_text", "no_rope_layers": [], "num_attention_heads": 40,
            "num_hidden_layers": 48, "num_key_value_heads": 8, "use_qk_norm": True}},
        {(12, 40, 8, 128, None, 128**-0.5, False), (36, 40, 8, 128, 8192, 128**-0.5, False)}, {},
    ),
    "qwen3-30b-a3b": (
        {"model_type": "qwen3_moe", "num_hidden_layers": 48, "hidden_size": 2048, "head_dim": 128,
         "num_attention_heads": 32, "num_key_value_heads": 4, "sliding_window": None,
         "max_window_layers": 48, "use_sliding_window": False},
        {(48, 32, 4, 128, None, 128**-0.5, False)}, {},
    ),
    "qwen3-next-80b-a3b": (
        {"model_type": "qwen3_next", "num_hidden_layers": 48, "num_attention_heads": 16,
         "num_key_value_heads": 2, "head_dim": 256, "hidden_size": 2048,
         "full_attention_interval": 4, "linear_num_key_heads": 16, "linear_num_value_heads": 32},
        {(12, 16, 2, 256, None, 1 / 16, False)}, {"linear_attention": 36},
    ),
    "qwen3.5-moe-35b-a3b": (
        {"model_type": "qwen3_5_moe", "text_config": {
            "model_type": "qwen3_5_moe_text", "num_hidden_layers": 40, "num_attention_heads": 16,
            "num_key_value_heads": 2, "head_dim": 256, "hidden_size": 2048,
            "attn_output_gate": True,
            "layer_types": (["linear_attention"] * 3 + [F]) * 10}},
        {(10, 16, 2, 256, None, 1 / 16, False)}, {"linear_attention": 30},
    ),
    "gemma-3-27b": (
        {"model_type": "gemma3", "text_config": {
            "model_type": "gemma3_text", "head_dim": 128, "hidden_size": 5376,
            "num_attention_heads": 32, "num_hidden_layers": 62, "num_key_value_heads": 16,
            "query_pre_attn_scalar": 168, "sliding_window": 1024}},
        {(10, 32, 16, 128, None, 168**-0.5, False), (52, 32, 16, 128, 1024, 168**-0.5, False)}, {},
    ),
    "gemma-3n-e4b": (
        {"model_type": "gemma3n", "text_config": {
            "model_type": "gemma3n_text", "head_dim": 256, "hidden_size": 2048,
            "layer_types": [S, S, S, S, F] * 7, "num_attention_heads": 8,
            "num_hidden_layers": 35, "num_key_value_heads": 2, "num_kv_shared_layers": 15,
            "sliding_window": 512}},
        {(4, 8, 2, 256, None, 1.0, False), (16, 8, 2, 256, 512, 1.0, False),
         (3, 8, 2, 256, None, 1.0, True), (12, 8, 2, 256, 512, 1.0, True)}, {},
    ),
    "gemma-4-31b": (
        {"model_type": "gemma4", "text_config": {
            "model_type": "gemma4_text", "attention_k_eq_v": True, "global_head_dim": 512,
            "head_dim": 256, "hidden_size": 5376, "layer_types": [S, S, S, S, S, F] * 10,
            "num_attention_heads": 32, "num_global_key_value_heads": 4, "num_hidden_layers": 60,
            "num_key_value_heads": 16, "num_kv_shared_layers": 0, "sliding_window": 1024}},
        {(10, 32, 4, 512, None, 1.0, False), (50, 32, 16, 256, 1024, 1.0, False)}, {},
    ),
    "gpt-oss-120b": (
        {"model_type": "gpt_oss", "head_dim": 64, "hidden_size": 2880, "num_attention_heads": 64,
         "num_hidden_layers": 36, "num_key_value_heads": 8, "sliding_window": 128,
         "layer_types": [S, F] * 18},
        {(18, 64, 8, 64, None, 1 / 8, False), (18, 64, 8, 64, 128, 1 / 8, False)}, {},
    ),
    "falcon-7b": (
        {"model_type": "falcon", "hidden_size": 4544, "multi_query": True,
         "new_decoder_architecture": False, "num_attention_heads": 71, "num_hidden_layers": 32,
         "num_kv_heads": 71, "parallel_attn": True, "alibi": False},
        {(32, 71, 1, 64, None, 1 / 8, False)}, {},
    ),
    "falcon-40b": (
        {"model_type": "falcon", "hidden_size": 8192, "multi_query": True,
         "new_decoder_architecture": True, "num_attention_heads": 128, "num_hidden_layers": 60,
         "num_kv_heads": 8, "parallel_attn": True, "alibi": False},
        {(60, 128, 8, 64, None, 1 / 8, False)}, {},
    ),
    "granite-3.3-8b": (
        {"model_type": "granite", "attention_multiplier": 0.0078125, "hidden_size": 4096,
         "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 8,
         "residual_multiplier": 0.22, "logits_scaling": 16.0},
        {(40, 32, 8, 128, None, 0.0078125, False)}, {},
    ),
}  # fmt: skip

DEEPSEEK = {"model_type": "deepseek_v3", "num_hidden_layers": 61, "num_attention_heads": 128,
            "num_key_value_heads": 128, "kv_lora_rank": 512, "q_lora_rank": 1536,
            "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
            "hidden_size": 7168}  # fmt: skip
