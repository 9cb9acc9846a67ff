"""IFAdapter (arXiv 2409.08240, ICCV 2025): a detailed phrase for every box.

The text attention of a frozen base model stays unchanged; some of its layers get one additional attention per instance, fused over the
image by a learned gate. What each symbol is, and where it is computed:

    r_i, l_i        box x0 y0 x1 y1 in 0..1 and phrase of instance i                        `instances.Instance`
    e_i             hidden layers of the text encoders for l_i, [t, 77, c]
    A_i = R(e_i)    appearance tokens, 4 per text layer                                     `model.Resampler`
    P(r_i)          position embedding                                                      `model.PositionNet`
    c_i             [A_i ; EoT_i] + P(r_i), 13 tokens                                       `model.IFAdapter.tokens`
    s_i             m_i softmax(q k_i^T / sqrt(d)) v_i, q and k_i normalised per head       `attention.compute_instance_maps`
    g_i = f(s_i)    the gate's logit of each cell: CBAM, then a 1x1 convolution             `model.Injection.gate_logits`
    rho_i           area of the union of all boxes / area of box i, in cells                `attention.InstanceRegions.area_ratio`
    w_i             softmax_i over ten slots of g_i sigmoid(rho_i)                          `attention.compute_slot_weights`
    D               sum_i w_i s_i, the instance semantic map                                `attention.fuse_instance_maps`
    out             attention + tanh(alpha) strength D, before the output projection        `attention.compute_injection` is the second term

For an unconditional row e_i and EoT_i are zero and no token of the phrase is visible, but P(r_i) stays; see
`model.IFAdapter.conditional_and_unconditional_tokens`.

Where paper and published code differ we follow the code, which is what the published weights expect; `attention.FUSIONS` has both:
- the area factor multiplies the logit before the softmax (paper, eq. 7: the weight after it), and its numerator is the area of the
  union (paper: the sum of the areas);
- the softmax runs over ten slots; unused ones, and instances that do not cover a cell, take their share of it (paper: the instances);
- P is added to the EoT token too (paper, eq. 3: to the appearance tokens);
- each layer of the resampler sees one word less than the one before (`model.visible_words`), a slip that the weights were trained with.
The published code handles square images only, this one any grid; more than ten instances use as many slots as there are instances.

Files: `model.py` networks and `Config`, `attention.py` the mathematics of a layer, `training.py` the loss, `checkpoint.py` files.
`regional.py` is a different, training-free method for use without weights; `instances.py` and `boxes.py` are the layouts of both.
"""
