"""The memory of one layer: fast weights of a SwiGLU network, updated chunk by chunk. This file defines it.

    f_W(x) = W1 ( silu(W0 x) ⊙ (W2 x) )

For a chunk with keys K and values V the update is one gradient step on −Σ_t ⟨f_W(k_t), v_t⟩, written out
(no autograd: it also runs under `torch.inference_mode`). Source: arXiv 2505.23884.
"""

import math
from typing import NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_lact.ops.newton_schulz import orthogonalise


class FastWeights(NamedTuple):
    """W0, W2 [..., m, d] and W1 [..., d, m]; also used for their gradients, momenta and differences."""

    w0: Tensor
    w1: Tensor
    w2: Tensor


def zeros_like(weights: FastWeights) -> FastWeights:
    """Zeros of the same shapes."""
    return FastWeights(torch.zeros_like(weights.w0), torch.zeros_like(weights.w1), torch.zeros_like(weights.w2))


def _t(x: Tensor) -> Tensor:
    """Rows and columns exchanged; permute and not transpose, whose rank an exported loop does not know."""
    return x.permute(0, 1, 3, 2)


def read(weights: FastWeights, q: Tensor) -> Tensor:
    """f_W(q): q [B, H, C, d] -> [B, H, C, d], in q's dtype."""
    w0, w1, w2 = weights.w0.to(q.dtype), weights.w1.to(q.dtype), weights.w2.to(q.dtype)
    hidden = F.silu(q @ _t(w0)) * (q @ _t(w2))  # [B, H, C, m]
    return hidden @ _t(w1)


def chunk_gradient(weights: FastWeights, k: Tensor, v: Tensor, eta: Tensor) -> FastWeights:
    """Step of the weights for one chunk: −gradient of −Σ_t ⟨f_W(k_t), v_t⟩, each frame scaled by its step sizes.

    Args:
        weights: W0, W2 [B, H, m, d], W1 [B, H, d, m], held fixed over the chunk.
        k, v: [B, H, C, d].
        eta: [B, H, C, 3, 1 or d] fp32: step sizes of W0, W1, W2; 0 where the frame is padding.
    """
    if k.dtype == torch.float16:  # too narrow: orthogonalising magnifies the gradient of small steps beyond its range
        k, v = k.float(), v.float()
    w0, w1, w2 = weights.w0.to(k.dtype), weights.w1.to(k.dtype), weights.w2.to(k.dtype)
    gate = k @ _t(w0)  # [B, H, C, m]
    up = k @ _t(w2)  # [B, H, C, m]
    sigma = torch.sigmoid(gate)
    act = gate * sigma
    d_hidden = v @ w1  # [B, H, C, m]: gradient at the hidden layer, ∂⟨f, v⟩/∂h = W1ᵀ v
    d_up = d_hidden * act
    d_gate = d_hidden * up * sigma * (1 + gate * (1 - sigma))
    # Outer products in the state's precision: rounding a sum of fewer frames than channels to bf16 fills its null
    # space with noise, which orthogonalising enlarges some 500 times.
    dtype = weights.w0.dtype
    k_0, v_1, k_2 = k.to(dtype) * eta[..., 0, :], v.to(dtype) * eta[..., 1, :], k.to(dtype) * eta[..., 2, :]
    return FastWeights(
        _t(d_gate).to(dtype) @ k_0.to(dtype),  # [B, H, m, d]
        _t(v_1).to(dtype) @ (act * up).to(dtype),  # [B, H, d, m]
        _t(d_up).to(dtype) @ k_2.to(dtype),  # [B, H, m, d]
    )


def emphasis(frames: Tensor, chunk_size: int, relevance: float) -> Tensor:
    """(C + r) / (n + r), by which a finite `relevance` r enlarges the sum over a chunk's n frames; 1 for a full one."""
    return (chunk_size + relevance) / (frames + relevance).clamp(min=1.0)


def evidence(frames: Tensor, chunk_size: int, relevance: float) -> Tensor:
    """Size of the step from a chunk of so many frames against that from a full one, in the dtype of a division.

    Infinite `relevance`: their share n / C, as sums have it. Else r frames count as known before, and the step is
    n / (n + r) of that from endless frames, as in MAP adaptation of speaker models (Reynolds, Quatieri and Dunn 2000).
    """
    share = (frames / chunk_size).clamp(max=1.0)
    return share if relevance == math.inf else share * emphasis(frames, chunk_size, relevance)


def evident(eta: Tensor, frames: Tensor, chunk_size: int, relevance: float) -> Tensor:
    """Step sizes [B, H, T, ...] with the `emphasis` of frames [B, 1 or T], for kernels that sum up and step in one."""
    if relevance == math.inf:
        return eta
    return eta * emphasis(frames, chunk_size, relevance)[:, None, :, None, None].to(eta.dtype)


def evident_chunks(eta: Tensor, valid: Tensor, chunk_size: int, relevance: float) -> Tensor:
    """`evident` of all chunks: eta [B, H, T, ...], valid [B, T]."""
    if relevance == math.inf:
        return eta
    own = (torch.arange(valid.size(1), device=valid.device) // chunk_size).expand(valid.shape)  # chunk of each frame
    frames = torch.zeros(valid.shape, device=valid.device).scatter_add(1, own, valid.float()).gather(1, own)  # [B, T]
    return evident(eta, frames, chunk_size, relevance)


def exact(weights: FastWeights, q: Tensor) -> bool:
    """True where the memory of an fp32 model works in float64, so that its steps do not depend on rounding."""
    return weights.w0.dtype == torch.float64 and q.dtype == torch.float32


def row_length(w: Tensor) -> Tensor:
    """Euclidean length of each row: [..., r, c] -> [..., r, 1]."""
    return torch.sqrt((w * w).sum(dim=-1, keepdim=True) + 1e-12)


def _orthogonal(m: FastWeights, rounded: bool) -> Tuple[Tensor, Tensor, Tensor]:
    if not torch.jit.is_scripting() and m.w0.shape == m.w1.shape:  # all three in one
        x = _orthogonal_one(torch.stack([m.w0, m.w1, m.w2], dim=2), rounded)  # [B, H, 3, d, d]
        return x[:, :, 0], x[:, :, 1], x[:, :, 2]
    return _orthogonal_one(m.w0, rounded), _orthogonal_one(m.w1, rounded), _orthogonal_one(m.w2, rounded)


def _orthogonal_one(x: Tensor, rounded: bool) -> Tensor:
    if x.dtype == torch.bfloat16 or x.dtype == torch.float16:  # fp32_states: false in a half-precision model
        return orthogonalise(x.float()).to(x.dtype)
    return orthogonalise(x, rounded)


def _moved(w: Tensor, step: Tensor, length: Tensor, learn: Tensor) -> Tensor:
    """W + step with rows scaled back to `length`; rows of the batch that learned nothing keep W to the bit."""
    new = torch.addcmul(w, step, learn.to(w.dtype))
    # Multiply by a ratio: it is exactly 1 when nothing moved, so a zero step changes no bit.
    return new * torch.where(learn, length / row_length(new), 1.0)


def update(
    weights: FastWeights,
    momentum: FastWeights,
    gradient: FastWeights,
    mu: Tensor,
    frames: Tensor,
    lengths: FastWeights,
    chunk_size: int,
    use_muon: bool,
    use_momentum: bool,
    rounded: bool,
    anchor: FastWeights,
    retention: float,
    relevance: float,
) -> Tuple[FastWeights, FastWeights]:
    """One chunk's step: M <- ΔW + μ M, orthogonalised with `use_muon`; W <- W + M, rows scaled to `lengths`.

    With `retention` ρ below 1 the step starts from A + ρ (W − A), A the anchor, and `gradient` is that of `faded`.

    Args:
        weights, momentum, gradient: [B, H, ., .]; the gradient is zero in rows without frames.
        mu: [B, H] momentum gate, the mean over the chunk's valid frames.
        frames: [B] valid frames of the chunk. A row with none keeps weights and momentum.
        lengths: row lengths of the initial weights, [H, m, 1], [H, d, 1], [H, m, 1].
        chunk_size: frames of a full chunk. An orthogonalised step has the same size however few frames made it,
            so it is scaled by the `evidence` in the chunk.
        rounded: as `orthogonalise` has it.
        anchor: [H, ., .], the weights learned in training; not read with `retention` 1.
        retention: of a full chunk; a shorter one has a power of it, by its evidence.
        relevance: of `evidence`.
    """
    learn = (frames > 0)[:, None, None, None]
    count = frames.to(weights.w0.dtype)[:, None, None, None]
    gain = evidence(count, chunk_size, relevance)
    m0, m1, m2 = gradient.w0, gradient.w1, gradient.w2
    if relevance != math.inf:
        more = emphasis(count, chunk_size, relevance)
        m0, m1, m2 = more * m0, more * m1, more * m2
    if use_momentum:
        # M stays to the bit without frames.
        kept = torch.where(learn, mu[:, :, None, None].to(m0.dtype), 1.0)
        m0 = torch.addcmul(m0, kept, momentum.w0)
        m1 = torch.addcmul(m1, kept, momentum.w1)
        m2 = torch.addcmul(m2, kept, momentum.w2)
    s0, s1, s2 = m0, m1, m2
    if use_muon:
        s0, s1, s2 = _orthogonal(FastWeights(m0, m1, m2), rounded)
        s0, s1, s2 = gain * s0, gain * s1, gain * s2
    w0, w1, w2 = weights.w0, weights.w1, weights.w2  # a branch that gives a named tuple cannot be exported
    if retention < 1.0:  # lerp(A, W, ρ) is W to the bit where ρ is 1, without frames, and where W is A
        left = torch.pow(retention, gain)
        w0, w1, w2 = torch.lerp(anchor.w0, w0, left), torch.lerp(anchor.w1, w1, left), torch.lerp(anchor.w2, w2, left)
    moved = FastWeights(
        _moved(w0, s0, lengths.w0, learn),
        _moved(w1, s1, lengths.w1, learn),
        _moved(w2, s2, lengths.w2, learn),
    )
    return moved, FastWeights(m0, m1, m2) if use_momentum else momentum


def faded(weights: FastWeights, anchor: FastWeights, retention: float) -> FastWeights:
    """A + ρ (W − A), A the anchor: where a chunk's gradient is taken. What it was learned with is what it is added to.

    ρ is that of a full chunk even where the chunk stays short: a stream sums up gradients before it knows.
    """
    if retention == 1.0:
        return weights
    return FastWeights(
        torch.lerp(anchor.w0, weights.w0, retention),
        torch.lerp(anchor.w1, weights.w1, retention),
        torch.lerp(anchor.w2, weights.w2, retention),
    )


def forgetting(weights: FastWeights, anchor: Optional[FastWeights], retention: float) -> Tuple[FastWeights, float]:
    """`update`'s last two arguments, of which the exporter takes no None: without an anchor nothing is forgotten."""
    return (weights, 1.0) if anchor is None else (anchor, retention)


def _run_chunks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    mu: Tensor,
    valid: Tensor,
    initial: Tuple[Tensor, Tensor, Tensor],
    carried: Tuple[Tensor, Tensor, Tensor],
    rows: Tuple[Tensor, Tensor, Tensor],
    chunk_size: int,
    bidirectional: bool,
    use_muon: bool,
    use_momentum: bool,
    anchors: Tuple[Tensor, Tensor, Tensor],
    retention: float,
    relevance: float,
) -> Tuple[Tensor, Tuple[Tensor, Tensor, Tensor], Tuple[Tensor, Tensor, Tensor]]:
    """The chunk loop. Weights, momentum and row lengths come and go as plain tuples: a trace keeps no others."""
    weights = FastWeights(initial[0], initial[1], initial[2])
    momentum = FastWeights(carried[0], carried[1], carried[2])
    lengths = FastWeights(rows[0], rows[1], rows[2])
    anchor = FastWeights(anchors[0], anchors[1], anchors[2])
    rounded = exact(weights, q)
    outs = [q[:, :, :0]]
    for start in range(0, q.size(2), chunk_size):
        end = min(start + chunk_size, q.size(2))
        seen = valid[:, start:end]  # [B, C]
        frames = seen.sum(dim=1)  # [B]
        weight = seen.to(mu.dtype)[:, None, :]  # [B, 1, C]
        mean_mu = (mu[:, :, start:end] * weight).sum(dim=-1) / weight.sum(dim=-1).clamp(min=1.0)  # [B, H]
        if not bidirectional:
            outs.append(read(weights, q[:, :, start:end]))
        learner = faded(weights, anchor, retention)
        gradient = chunk_gradient(learner, k[:, :, start:end], v[:, :, start:end], eta[:, :, start:end])
        weights, momentum = update(
            weights, momentum, gradient, mean_mu, frames, lengths, chunk_size, use_muon, use_momentum, rounded,
            anchor, retention, relevance,
        )  # fmt: skip
        if bidirectional:
            outs.append(read(weights, q[:, :, start:end]))
    out = torch.cat(outs, dim=2)
    return out, (weights.w0, weights.w1, weights.w2), (momentum.w0, momentum.w1, momentum.w2)


# For export: a traced loop would freeze the example's number of chunks into the graph.
_run_chunks_exported = torch.jit.script_if_tracing(_run_chunks)


def lact_swiglu_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    mu: Tensor,
    valid: Tensor,
    weights: FastWeights,
    momentum: FastWeights,
    lengths: FastWeights,
    chunk_size: int,
    mode: str = 'bidirectional',
    use_muon: bool = True,
    use_momentum: bool = True,
    anchor: Optional[FastWeights] = None,
    retention: float = 1.0,
    relevance: float = math.inf,
) -> Tuple[Tensor, FastWeights, FastWeights]:
    """Update and read the memory over T frames, chunk by chunk.

    Args:
        q, k, v: [B, H, T, d], the dtype of the products; q and k of unit length.
        eta: [B, H, T, 3, 1 or d] fp32 step sizes of W0, W1, W2 (per head, or per head and channel).
        mu: [B, H, T] fp32 momentum gate in (0, 1); unused without `use_momentum`.
        valid: [B, T] bool, False for padding, which is neither learned from nor changes the state.
        weights: current W0, W2 [B, H, m, d], W1 [B, H, d, m]; their dtype is that of the state (fp32 normally).
        momentum: same shapes.
        lengths: `row_length` of the initial weights, [H, m, 1], [H, d, 1], [H, m, 1].
        chunk_size: frames a step of the memory. Chunks are counted from the first frame given here.
        anchor, retention: before each step the weights go back towards the anchor [H, ., .], as `update` says.
        relevance: how large the step of a short chunk is, as `evidence` says.
        mode: 'bidirectional' updates with a chunk, then reads with its queries; 'causal' reads, then updates.

    Returns:
        Read [B, H, T, d] in q's dtype (padding frames hold finite values of no meaning), weights, momentum.
        A last chunk shorter than `chunk_size` is learned from too, as the last step.

    Source: DESIGN of this project, docs/design.md; arXiv 2505.23884.
    """
    if mode not in ('bidirectional', 'causal'):
        raise ValueError(f"mode is '{mode}'; choose 'bidirectional' or 'causal'")
    eta = eta * valid[:, None, :, None, None].to(eta.dtype)
    weights = _contiguous(weights)
    anchor, retention = forgetting(weights, anchor, retention)
    options = (chunk_size, mode == 'bidirectional', use_muon, use_momentum, tuple(anchor), retention, relevance)
    # Precision is chosen by the dtypes of the arguments, not by an autocast region around.
    with torch.autocast(device_type=q.device.type, enabled=False):
        run = _run_chunks_exported if torch.jit.is_tracing() else _run_chunks
        out, w, m = run(q, k, v, eta, mu, valid, tuple(weights), tuple(momentum), tuple(lengths), *options)
    # The shape is known; the exporter of a scripted loop is told its rank here.
    return out.reshape(q.shape), FastWeights(*w), FastWeights(*m)


def lact_swiglu_frozen(q: Tensor, weights: FastWeights, chunk_size: int) -> Tensor:
    """The read without updates, [B, H, T, d]: what `lact_swiglu_reference` gives when every step size is 0.

    Chunk by chunk, because a matrix product may round otherwise for another number of rows. At once in graphs, where
    the chunks would be unrolled: torch.compile would compile again, for minutes, at every new number of them.
    """
    with torch.autocast(device_type=q.device.type, enabled=False):
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            return read(weights, q)
        weights = _contiguous(weights)
        return torch.cat([read(weights, part) for part in q.split(chunk_size, dim=2)], dim=2)


def _contiguous(weights: FastWeights) -> FastWeights:
    """Expanded initial weights laid out like updated ones: a product rounds otherwise for other strides."""
    return FastWeights(weights.w0.contiguous(), weights.w1.contiguous(), weights.w2.contiguous())
