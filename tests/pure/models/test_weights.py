"""What models weigh: sizes of matrices against the numbers of parameters that are published."""

import dataclasses

import pytest

from rpa_tune.errors import UsageError
from rpa_tune.hf.read import read_config
from rpa_tune.hf.weights import read_weights
from rpa_tune.models.catalog import load_models
from rpa_tune.models.weights import Weights

# Total, and active for a token, in 10^9 parameters. Source: the models' cards, where a number is
# given with three digits, and the parameter counts that Hugging Face shows; of the text alone where
# a card says so (Gemma 4: 2.3 and 4.5 are without embeddings). Vision towers are not counted here.
PUBLISHED = {
    "llama3-8b": (8.03, None), "llama3-70b": (70.6, None), "llama3-405b": (405.9, None),
    "llama3.2-1b": (1.24, None), "llama3.2-3b": (3.21, None), "qwen2.5-7b": (7.62, None),
    "qwen2.5-32b": (32.8, None), "qwen2.5-72b": (72.7, None), "qwen3-0.6b": (0.6, None),
    "qwen3-4b": (4.02, None), "qwen3-8b": (8.19, None), "qwen3-14b": (14.8, None),
    "qwen3-32b": (32.8, None), "qwen3-30b-a3b": (30.5, 3.3), "qwen3-235b-a22b": (235, 22),
    "qwen3-coder-480b-a35b": (480, 35), "qwen3-next-80b-a3b": (80, None), "gemma2-9b": (9.24, None),
    "gemma2-27b": (27.2, None), "gemma3-27b": (27.0, None), "gemma4-26b-a4b": (25.2, 3.8),
    "gemma4-31b": (30.7, None), "gemma4-e2b": (None, 2.3), "gemma4-e4b": (None, 4.5),
    "gpt-oss-20b": (20.9, 3.6), "gpt-oss-120b": (116.8, 5.1), "mistral-7b": (7.25, None),
    "mistral-small-24b": (23.6, None), "mixtral-8x7b": (46.7, 12.9), "phi-4": (14.7, None),
    "qwen2.5-0.5b": (0.49, None), "qwen2.5-1.5b": (1.54, None), "qwen2.5-3b": (3.09, None),
    "qwen2.5-14b": (14.7, None), "mixtral-8x22b": (141, 39), "minimax-m2.7": (230, 10),
    "nemotron3-ultra-550b-a55b": (550, 55), "kimi-k2.6": (1026, 32), "glm4.7-flash": (30, 3.6),
    "mistral-large3-675b": (673, 39), "phi-4-mini": (3.84, None), "minimax-m2": (230, 10),
    "glm4.5": (355, 32), "glm4.7": (355, 32),
    "glm4.5-air": (106, 12), "llama4-scout": (109, 17), "llama4-maverick": (400, 17),
    "qwen3.5-35b-a3b": (35, 3), "qwen3.5-122b-a10b": (122, 10), "qwen3.5-397b-a17b": (397, 17),
    "qwen3.5-27b": (27, None), "nemotron3-nano-30b-a3b": (31.6, 3.6),
    "nemotron3-super-120b-a12b": (120.6, 12.7), "glm4.6": (355, 32),
    "mistral-small3.1-24b": (23.6, None), "mistral-large2-123b": (123, None),
    "granite4-h-small": (32, 9), "granite4-h-tiny": (6.94, None),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_sum_of_a_models_matrices_is_its_published_number_of_parameters(name):
    """Cards count the table of embeddings among what is active, and round it to a digit or two."""
    weights = load_models()[name].weights
    total, active = PUBLISHED[name]
    if total:
        assert weights.total_params / 1e9 == pytest.approx(total, rel=0.02)
    if active:
        low, high = weights.active_params / 1e9, weights.active_params / 1e9
        if not weights.head_is_embedding:
            high += weights.embedding_params / 1e9
        assert low / 1.07 < active < high * 1.05


def test_every_model_weighs_what_it_says_or_says_why_not():
    unknown = {n: m.weights for n, m in load_models().items() if isinstance(m.weights, str)}
    assert unknown == {
        "gemma3n-e4b": "the matrices of model type 'gemma3n_text' are not known here"
    }


def test_experts_are_read_as_tokens_choose_them():
    weights = Weights(
        embedding_params=1000, always_params=100, head_params=10, head_is_embedding=False,
        expert_params=5, num_experts=8, experts_per_token=2,
    )  # fmt: skip
    assert weights.total_params == 1000 + 100 + 10 + 40
    assert weights.active_params == 100 + 10 + 10
    assert weights.touched_params(1) == 100 + 10 + 10
    assert weights.touched_params(2) == pytest.approx(110 + 5 * 8 * (1 - 0.75**2))
    assert weights.touched_params(10_000) == pytest.approx(150)
    assert weights.flops(3, 1) == 2 * (3 * 110 + 10)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "llama"}, "vocab_size is missing"),
        ({"model_type": "llama", "vocab_size": 10}, "intermediate_size is missing"),
        ({"model_type": "mixtral", "vocab_size": 10, "num_local_experts": 8},
         "num_experts_per_tok is missing"),
        ({"model_type": "llama", "vocab_size": "x"}, "vocab_size='x'"),
        ({"model_type": "bamba", "vocab_size": 10, "attn_layer_indices": [3]}, "'bamba'"),
        ({"model_type": "granitemoehybrid", "vocab_size": 10, "num_hidden_layers": 2,
          "layer_types": ["mamba", "attention"]}, "mamba_n_heads is missing"),
        ({"model_type": "granitemoehybrid", "vocab_size": 10, "num_hidden_layers": 2,
          "layer_types": ["conv", "attention"]}, "matrices of conv layers"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_said_and_never_guessed(config, reason):
    model = read_config(config, name="x", source="", ask=False)
    assert isinstance(model.weights, str)
    assert reason in model.weights


def test_a_file_that_does_not_count_its_layers_has_no_weights():
    (kind,) = load_models()["llama3-8b"].kinds
    with pytest.raises(UsageError, match="num_hidden_layers"):
        read_weights({"model_type": "llama"}, [dataclasses.replace(kind, num_layers=None)], {})


def test_a_dense_layer_of_its_own_width_and_shared_experts_are_counted():
    base = {"model_type": "glm4_moe", "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8, "hidden_size": 32, "vocab_size": 100,
            "intermediate_size": 64, "moe_intermediate_size": 16, "n_routed_experts": 4,
            "num_experts_per_tok": 2, "n_shared_experts": 1,
            "tie_word_embeddings": False}  # fmt: skip
    weights = read_config(base, name="x", source="", ask=False).weights
    attention = 3 * 32 * (2 * 32 + 2 * 16)
    assert weights.always_params == attention + 3 * (32 * 4 + 3 * 32 * 16)
    assert weights.expert_params == 3 * 3 * 32 * 16
    first = read_config({**base, "first_k_dense_replace": 1}, name="x", source="", ask=False)
    assert first.weights.expert_params == 2 * 3 * 32 * 16
    assert first.weights.always_params == (
        attention + 2 * (32 * 4 + 3 * 32 * 16) + 3 * 32 * 64
    )  # fmt: skip
