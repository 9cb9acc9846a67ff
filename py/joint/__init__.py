"""One attention for text, image and references: what transformer (DiT) bases compute, and how it is divided by region.

A transformer base has no cross-attention slots to replace. Its layers attend to one sequence, and everything the pack does there is an
addition to the logits and a few more keys:

    out_i = softmax_j( R q_i . R k_j / sqrt(d) + B_ij ) v_j         j over [texts | image cells | references | padding | exemplars]

    quantity                                    where
    B between text r and cell p                 bias.sequence_bias     log w_r(p), both ways: arXiv 2411.02395, 2503.12885
    B between texts of different regions        bias.sequence_bias     minus infinity
    B between cells p and p'                    bias.Separation        log(1 - gamma (1 - same))
    B of reference columns                      bias.sequence_bias     log w_j(p); references attend only to themselves
    B of exemplar columns                       bias.ExtraKeys         log rho + log(N / N_x) + b (C - 1/4), own cells log(1 - rho)
    R, positions of a text                      rotation.Rotation      those it has when it is the only text
    which tokens an attention call holds        layout.Layout

torch and einops only; `py/host/joint` installs it on the host's models.
"""
