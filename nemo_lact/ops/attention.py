"""Sliding-window attention through torch's fused attention, without a T × T matrix for long input."""

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    from flash_attn import flash_attn_varlen_func
except ImportError:  # optional speed-up
    flash_attn_varlen_func = None
try:
    from nemo_lact.ops import triton_attention, triton_window
except ImportError:  # no Triton
    triton_attention = triton_window = None


def window_attention(
    q: Tensor, k: Tensor, v: Tensor, valid: Tensor, left: int, right: int, dropout_p: float = 0.0, chunk: int = 0
) -> Tensor:
    """Frame t attends to the valid frames in [t − left, t + right], or chunk by chunk.

    Args:
        q, k, v: [B, H, T, d], rotary positions already applied.
        valid: [B, T] bool, False for padding: never attended to.
        left, right: window in frames; −1 means all.
        dropout_p: attention dropout.
        chunk: 0, or NeMo's chunked_limited style: a frame sees all of its chunk of so many frames (`right` + 1) and
            the left // chunk chunks before it. Chunks are counted from the first frame given here.

    Returns:
        [B, H, T, d]. Padding frames hold finite values of no meaning.
    """
    # x.size() is a tensor while tracing: comparing it would bake the example's length into the graph.
    tracing = torch.jit.is_tracing()
    eager = not tracing and not torch.compiler.is_compiling()
    flash = chunk == 0 and _use_flash(q, tracing)
    # Training on a GPU in half precision. flash-attn goes first, but it would cut a compiled layer in pieces.
    if chunk == 0 and not tracing and torch.is_grad_enabled() and not (flash and eager):
        halves = _as_autocast(q, k, v)
        if _use_training(*halves, left, right, dropout_p):
            return triton_window.window_training(*halves, valid, left, right, dropout_p)
    if flash:
        return _flash(q, k, v, valid, left, right, dropout_p)
    if chunk == 0 and eager and _use_kernel(q, k, v, left, right, dropout_p):
        return triton_attention.window_forward(q, k, v, valid, left, right)
    block = max(left, right, 16)
    if chunk > 0:
        block = -(-block // chunk) * chunk  # blocks of whole chunks
    if left < 0 or right < 0 or (not tracing and q.size(2) <= 2 * block):
        return _dense(q, k, v, valid, left, right, chunk, dropout_p)
    return _blocks(q, k, v, valid, left, right, chunk, block, dropout_p)


def cached_attention(
    q: Tensor, k: Tensor, v: Tensor, valid: Tensor, left: int, right: int, chunk: int = 0
) -> Tensor:
    """`window_attention` of the last n of L + n frames: L cached keys stand before the n new ones.

    Args:
        q: [B, H, n, d].
        k, v: [B, H, L + n, d].
        valid: [B, L + n] bool, False for empty cache slots and padding.
        left, right, chunk: as there; with `chunk`, both L and the first new frame are at a chunk's border.

    Returns:
        [B, H, n, d].
    """
    keys = torch.arange(k.size(2), device=q.device)
    own = keys[k.size(2) - q.size(2) :]
    mask = valid[:, None, None, :] & window_mask(own, keys, left, right, chunk)  # [B, 1, n, L + n]
    mask = mask | (own[:, None] == keys[None, :])  # as in _dense
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _dense(q: Tensor, k: Tensor, v: Tensor, valid: Tensor, left: int, right: int, chunk: int, dropout_p: float):
    """One call over all frames; the mask is T × T only if the window is narrower than the input."""
    if left < 0 and right < 0:
        mask = valid[:, None, None, :]  # [B, 1, 1, T]
        # A row of length 0 would have no key and give NaN; opened, it gives padding.
        mask = mask | ~mask.any(dim=-1, keepdim=True)
    else:
        t = torch.arange(q.size(2), device=q.device)
        mask = valid[:, None, None, :] & window_mask(t, t, left, right, chunk)  # [B, 1, T, T]
        mask = mask | (t[:, None] == t[None, :])  # a padding query sees itself: without any key it would be NaN
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p)


def window_mask(query: Tensor, key: Tensor, left: int, right: int, chunk: int) -> Tensor:
    """[Q, K] bool from positions [Q] and [K]."""
    if chunk > 0:
        query, key = query // chunk, key // chunk
        left, right = left // chunk if left >= 0 else -1, 0
    offset = key[None, :] - query[:, None]
    mask = offset >= -left if left >= 0 else torch.ones_like(offset, dtype=torch.bool)
    return mask & (offset <= right) if right >= 0 else mask


@torch.compiler.disable  # symbolic lengths cut in blocks take torch a minute to compile
def _blocks(
    q: Tensor, k: Tensor, v: Tensor, valid: Tensor, left: int, right: int, chunk: int, block: int, dropout_p: float
) -> Tensor:
    """Queries in blocks of `block` ≥ max(left, right) frames; each sees its own block and its neighbours'."""
    if chunk == 0 and _use_kernel(q, k, v, left, right, dropout_p):  # called from a compiled layer
        return triton_attention.window_forward(q, k, v, valid, left, right)
    batch, heads, frames, width = q.shape
    n = (frames + block - 1) // block  # blocks
    extra = n * block - frames
    before, after = int(left > 0), int(right > 0 and chunk == 0)
    pad = (before * block, extra + after * block)

    def neighbours(x: Tensor) -> Tensor:  # [B, H, T, d] -> [B * n, H, (before + 1 + after) * block, d]
        x = F.pad(x, (0, 0, pad[0], pad[1])).view(batch, heads, n + before + after, block, width)
        x = torch.cat([x[:, :, i : i + n] for i in range(before + 1 + after)], dim=3)
        return x.transpose(1, 2).reshape(batch * n, heads, -1, width)

    query = F.pad(q, (0, 0, 0, extra)).view(batch, heads, n, block, width)
    query = query.transpose(1, 2).reshape(batch * n, heads, block, width)

    key_valid = F.pad(valid, pad, value=False).view(batch, n + before + after, block)
    key_valid = torch.cat([key_valid[:, i : i + n] for i in range(before + 1 + after)], dim=2)  # [B, n, K]
    key_valid = key_valid.reshape(batch * n, 1, 1, -1)
    own = torch.arange(block, device=q.device) + before * block
    keys = torch.arange((before + 1 + after) * block, device=q.device)
    mask = key_valid & window_mask(own, keys, left, right, chunk)  # [B * n, 1, block, K]
    mask = mask | (own[:, None] == keys[None, :])  # as in _dense

    out = F.scaled_dot_product_attention(query, neighbours(k), neighbours(v), attn_mask=mask, dropout_p=dropout_p)
    out = out.view(batch, n, heads, block, width).transpose(1, 2).reshape(batch, heads, n * block, width)
    return out[:, :, :frames]


def _as_autocast(*tensors: Tensor) -> list[Tensor]:
    """The tensors in the dtype in which autocast would give them to torch's attention."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [x if x.dtype == torch.float64 else x.to(dtype) for x in tensors]


def _use_training(q: Tensor, k: Tensor, v: Tensor, left: int, right: int, dropout_p: float) -> bool:
    return triton_window is not None and triton_window.can_train(q, k, v, left, right, dropout_p)


def _use_kernel(q: Tensor, k: Tensor, v: Tensor, left: int, right: int, dropout_p: float) -> bool:
    chosen = triton_attention is not None and triton_attention.CHOSEN
    return chosen and triton_attention.can_run(q, k, v, left, right, dropout_p)


def _use_flash(q: Tensor, tracing: bool) -> bool:
    return (
        flash_attn_varlen_func is not None
        and q.is_cuda
        and not tracing
        and q.dtype in (torch.float16, torch.bfloat16)
        and q.size(-1) <= 256
    )


def _flash(q: Tensor, k: Tensor, v: Tensor, valid: Tensor, left: int, right: int, dropout_p: float) -> Tensor:
    """flash-attn on the valid frames only, rows packed end to end; padding frames come out as zeros."""
    lengths = valid.sum(dim=1, dtype=torch.int32)  # [B]
    bounds = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))  # [B + 1]
    where = valid.nonzero(as_tuple=True)
    packed = [x.transpose(1, 2)[where] for x in (q, k, v)]  # [sum of lengths, H, d]
    longest = int(lengths.max())
    if longest == 0:
        return torch.zeros_like(q)
    out = flash_attn_varlen_func(
        *packed, bounds, bounds, longest, longest, dropout_p=dropout_p, window_size=(left, right)
    )
    full = q.new_zeros(q.size(0), q.size(2), q.size(1), q.size(3))
    full[where] = out
    return full.transpose(1, 2)
