"""Paint by Example (arXiv 2211.13227, CVPR 2023): the object of one image in a hole of another.

A latent diffusion UNet receives the image with a hole beside its noise, and instead of a text a single token made from the exemplar. Only the
class token of a frozen CLIP tower is used, so the object cannot be copied and must be drawn anew to fit. Each symbol and where it is computed:

    x_s, m          source image and hole (1 where it is painted)                         `imaging.crop.CropRecord`
    x_r             exemplar, cut out and fitted to the tower's input                     `exemplar.fit_square`
    CLIP(x_r)       its class token, 1024 numbers                                         the host's CLIP vision model
    c = MLP(...)    five residual blocks, a norm, a projection: one token of width 768    `model.ExemplarMapper`
    v               the learned token that means "no exemplar"                            `model.ExemplarMapper.null`
    y               [z_t | encoded (1 - m) x_s | 1 - m] along channels, in this order     the host, by the loader's CONCAT_KEYS
    eps_c, eps_v    guidance eps_v + s (eps_c - eps_v), s = 5                             the host's sampler

The softmax over one key is 1, so attention to one token is its value, the same at every position. Hence the mapper keeps only the value path;
strength is an exact line from v to c; several exemplars mix linearly; and several exemplars in several regions are a gate on the output of an
attention layer, never more tokens (`context.py`).

Not from the paper: windows around small holes and pasting back (`imaging.crop`), and the three ways in `context.py` to make the hole attend to
the source image.

Files: `model.py`; `checkpoint.py` (which weights are read from which file); `exemplar.py`; `shapes.py` (the paper's mask shapes); `context.py`;
`training.py`.
"""
