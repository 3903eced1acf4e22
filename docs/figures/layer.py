"""Draws docs/figures/layer.png: python docs/figures/layer.py (needs matplotlib)."""

from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

BLUE, ORANGE, GREY = '#dbe9f6', '#fde4cf', '#eeeeee'


def box(ax, x, y, w, h, text, color):
    style = 'round,pad=0.02,rounding_size=0.12'
    ax.add_patch(FancyBboxPatch((x, y), w, h, boxstyle=style, fc=color, ec='#444', lw=1.2))
    ax.text(x + w / 2, y + h / 2, text, ha='center', va='center', fontsize=10)


def arrow(ax, start, end, text=None, dashed=False, side=0.12):
    style = dict(arrowstyle='-|>', color='#444', lw=1.2, linestyle='--' if dashed else '-')
    ax.annotate('', xy=end, xytext=start, arrowprops=style)
    if text:
        ax.text((start[0] + end[0]) / 2 + side, (start[1] + end[1]) / 2, text, fontsize=9, va='center')


fig, ax = plt.subplots(figsize=(9.6, 5.2))
ax.set_xlim(0, 12)
ax.set_ylim(0, 6.6)
ax.axis('off')
box(ax, 4.4, 0.2, 3.2, 0.6, 'norm', GREY)
box(ax, 4.4, 1.25, 3.2, 0.6, 'one projection: q, k, v', GREY)
box(ax, 0.5, 2.6, 4.2, 1.3, 'window attention\nframes t − left … t + right\nthe near past, exactly', BLUE)
MEMORY = 'memory: fast weights\n$W_1(\\,\\mathrm{silu}(W_0 q) \\odot W_2 q\\,)$\nthe whole recording'
box(ax, 5.6, 2.6, 4.2, 1.3, MEMORY, ORANGE)
box(ax, 10.25, 2.6, 1.7, 1.3, 'update\nonce a chunk:\n$W \\leftarrow W + M$', ORANGE)
box(ax, 5.9, 4.35, 3.6, 0.5, 'norm and gate, per head', GREY)
box(ax, 4.4, 5.25, 3.2, 0.6, '+   then output projection', GREY)
arrow(ax, (6, 0.82), (6, 1.23))
arrow(ax, (5.3, 1.87), (3.2, 2.56))
arrow(ax, (6.6, 1.87), (7.4, 2.56), 'q')
arrow(ax, (7.62, 1.6), (11.1, 2.56), dashed=True)
ax.text(8.6, 1.45, 'k, v, step sizes η, momentum μ', fontsize=9)
arrow(ax, (10.27, 3.25), (9.85, 3.25), dashed=True)
arrow(ax, (2.6, 3.94), (4.8, 5.22))
arrow(ax, (7.7, 3.94), (7.7, 4.31))
arrow(ax, (7.4, 4.88), (6.8, 5.22))
arrow(ax, (6, 5.88), (6, 6.4))
fig.savefig(Path(__file__).with_suffix('.png'), dpi=110, bbox_inches='tight')
