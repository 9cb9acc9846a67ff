"""Paint by Example (arXiv 2211.13227, CVPR 2023): the thing of one picture in a hole of another.

Idea. A latent diffusion UNet gets the picture with a hole beside its noise, and instead of a text a single token made from the exemplar:
only the class token of a frozen CLIP tower, so that nothing can be copied and the thing has to be drawn anew to fit. What each symbol is, and
where it is computed:

    x_s, m          source picture and hole (1 where it is painted anew)                      `stitching.Cut`
    x_r             exemplar, cut out, fitted, as the tower reads it                          `exemplar.pixels`
    CLIP(x_r)       its class token, 1024 numbers                                             the host's tower
    c = MLP(...)    five residual blocks, a norm, a projection: one token of 768 numbers      `model.ExemplarMapper`
    v               the learned token that stands for "no exemplar"                           `model.ExemplarMapper.null`
    y               [z_t | encoded (1 - m) x_s | 1 - m] along channels, in this order         the host, told by the loader
    eps_c, eps_v    guidance eps_v + s (eps_c - eps_v), s = 5                                 the host's sampler

One token has one consequence that everything here uses: the softmax over one key is 1, so attention to it is its value, the same everywhere.
Hence in the mapper only the value path is kept; strength is an exact line from v to c; several exemplars mix linearly; and several exemplars
in several places are a gate on the output of an attention layer, never more tokens (`attention.py`).

What is ours and not of the paper: windows around small holes, paste-back that leaves the rest of the picture alone (`stitching.py`), and
`attention.py`'s three ways to hear the source inside of the hole.

Files: `model.py`, `checkpoint.py` with `unet_names.py` (what is read of which file), `exemplar.py`, `stitching.py`, `shapes.py` (the paper's
mask shapes), `attention.py`, `training.py`.
"""
