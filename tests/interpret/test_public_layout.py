"""The KV layout with tokens along lanes, byte for byte that of the public batched kernel.

Shapes, the operand of new tokens, a new token put into its page, and what a page means to the
public kernel's maths: each by the wheel's own functions beside ours.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpret.eager_pallas import Ref, eager_pallas
from interpret.kernel_cases import make_problem
from interpret.public_wheel import public_module

from rpa_kernels import inputs, layout, reference
from rpa_kernels.batch import Batch
from rpa_kernels.ints import cdiv
from rpa_kernels.verify import draw_operands
from rpa_tune.hw.chip import load_chip
from rpa_tune.interop.public.tpu_inference.functions import pretend

FP8, E5M2 = "float8_e4m3fn", "float8_e5m2"
PAGE = 128  # the public kernel's only page size in this layout
# Contexts at pages' edges and within; the last has its new token alone on a page.
BATCH = Batch(q_lens=(1, 1, 1, 1), kv_lens=(1, 128, 200, 257), num_decode=4)
CASES = [(1, 128, FP8), (1, 128, "bfloat16")]
SLOW_CASES = [(2, 80, "float32"), (2, 64, E5M2), (1, 256, FP8)]


def lane_problem(heads, head_dim, kv_dtype):
    return make_problem(
        num_q_heads=4 * heads, num_kv_heads=heads, head_dim=head_dim, kv_dtype=kv_dtype,
        page_size=PAGE, max_num_tokens=5, max_num_seqs=4, pages_per_seq=3, num_pages=12,
        kv_layout=layout.SEQ_ALONG_LANE,
    )  # fmt: skip


def bits(array):
    return np.ascontiguousarray(array).view(np.uint8)


def public_configs(module, problem, seqs, **block):
    configs = module.configs
    sizes = {"bq_sz": 1, "bq_c_sz": 1, "bkv_sz": PAGE, "batch_size": 1, "n_buffer": 2, **block}
    return configs.RpaConfigs(
        block=configs.BlockSizes(**sizes),
        model=configs.ModelConfigs(
            num_q_heads=problem.num_q_heads, num_kv_heads=problem.num_kv_heads,
            head_dim=problem.head_dim, mask_value=-1e30, sm_scale=problem.sm_scale,
        ),
        serve=configs.ServingConfigs(
            num_seqs=seqs, page_size=PAGE, total_q_tokens=5, num_page_indices=12,
            dtype_q=jnp.dtype("float32"), dtype_kv=jnp.dtype(problem.kv_dtype),
            dtype_out=jnp.dtype("float32"), kv_layout=configs.KVLayout.SEQ_ALONG_LANE,
        ),
        mode=configs.RpaCase.DECODE,
        vmem_limit_bytes=1 << 26,
    )  # fmt: skip


def public_update(module, problem, page, kv_new, token, num_cached):
    """The wheel's stitching of one new token into its page, whose cached tokens it fetched."""
    cfgs = public_configs(module, problem, 4)
    vmem = Ref.new((*cfgs.kv_vmem_shape[:3], problem.kv_cache_shape[3], 3 * PAGE), page.dtype)
    vmem.view[0, ..., :PAGE] = np.asarray(page)
    # The tile of new tokens comes behind the cached pages; of a page without any there is none.
    first = cdiv(num_cached, PAGE) * PAGE
    vmem.view[0, ..., first : first + PAGE] = np.asarray(kv_new)[..., :PAGE]
    stitch = module.kernel.stitch_utils
    with eager_pallas():
        where = jnp.int32(num_cached), jnp.int32(token)
        merged = stitch.stitch_new_kv_lane(vmem, 0, *where, cfgs=cfgs)
        stitch.store_new_kv_lane(vmem, 0, merged, cfgs=cfgs)
    return vmem.view[0, ..., :PAGE]


def public_attention(module, problem, pages, q, kv_len):
    """What the wheel's maths makes of a sequence's pages, for the query behind its last key."""
    cfgs = public_configs(module, problem, 1, bkv_sz=len(pages) * PAGE)
    heads, width = problem.num_kv_heads, cfgs.aligned_kv_head_dim
    kv = jnp.moveaxis(pages, 0, -2).reshape(heads, 2, width, -1)
    kv = jnp.where(jnp.arange(kv.shape[-1]) < kv_len, kv.astype(jnp.float32), 0)
    q = jnp.pad(q.astype(jnp.float32), ((0, 0), (0, width - problem.head_dim)))
    q = q.reshape(1, heads, -1, width)
    state = jnp.full((*q.shape[:3], 128), -jnp.inf), jnp.zeros((*q.shape[:3], 128))
    flash = module.kernel.flash_attention
    with jax.default_matmul_precision("highest"):
        p, alpha, _, total = flash.flash_attention_qk_softmax(
            q, kv[None, :, 0], *state, processed_q_len=[kv_len - 1], processed_kv_len=[0],
            effective_kv_len=[kv_len], cfgs=cfgs, bq_start=0,
        )  # fmt: skip
        acc = flash.flash_attention_pv(p, kv[None, :, 1], alpha, jnp.zeros(q.shape), cfgs)
    return (acc / total[..., :1]).reshape(-1, width)[:, : problem.head_dim]


@pytest.mark.parametrize(
    ("heads", "head_dim", "kv_dtype"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_CASES)],
)
def test_bytes_and_meaning_of_a_page(heads, head_dim, kv_dtype):
    problem = lane_problem(heads, head_dim, kv_dtype)
    module = public_module("batched")
    ops = draw_operands(problem, BATCH)
    page_table = BATCH.pages(problem)
    with pretend(load_chip("v6e"), module):
        in_lanes = module.configs.KVLayout.SEQ_ALONG_LANE
        assert problem.kv_cache_shape == module.get_kv_cache_shape(
            problem.num_pages, PAGE, heads, head_dim, jnp.dtype(kv_dtype), in_lanes
        )
        given = ops.queries, ops.keys, ops.values, ops.queries.dtype, ops.kv_cache.dtype
        _, kv_new = module.prepare_inputs(*given, in_lanes)
        ours = inputs.prepare_kv(ops.keys, ops.values, problem)
        np.testing.assert_array_equal(bits(ours[0]), bits(kv_new))
        out, cache = reference.ragged_paged_attention(
            ops.queries, ops.keys, ops.values, ops.kv_cache, ops.arrays, problem
        )
        for seq, kv_len in enumerate(BATCH.kv_lens):
            page = page_table[seq][(kv_len - 1) // PAGE]
            cached = (kv_len - 1) % PAGE
            updated = public_update(module, problem, ops.kv_cache[page], kv_new, seq, cached)
            np.testing.assert_array_equal(
                bits(updated[..., : cached + 1]), bits(cache[page][..., : cached + 1])
            )
            pages = cache[jnp.asarray(page_table[seq])]
            theirs = public_attention(module, problem, pages, ops.queries[seq], kv_len)
            np.testing.assert_allclose(out[seq], theirs, atol=1e-5, rtol=1e-5)
