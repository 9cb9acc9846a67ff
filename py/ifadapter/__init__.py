"""IFAdapter (arXiv 2409.08240, ICCV 2025): a detailed phrase for every box.

Idea. The text attention of a frozen base model is left alone; some of its layers get a second attention per instance, fused over the
picture by a learned gate. What each symbol is, and where it is computed:

    r_i, l_i        box x0 y0 x1 y1 in 0..1 and phrase of instance i                        `instances.Instance`
    e_i             hidden layers of the text encoders for l_i, [t, 77, c]
    A_i = R(e_i)    appearance tokens, 4 per text layer                                     `model.Resampler`
    P(r_i)          position embedding                                                      `model.PositionNet`
    c_i             [A_i ; EoT_i] + P(r_i), 13 tokens                                       `model.IFAdapter.tokens`
    s_i             m_i softmax(q k_i^T / sqrt(d)) v_i, q and k_i normalised per head       `injection.instance_maps`
    g_i = f(s_i)    what competes for each cell: CBAM, then a 1x1 convolution               `model.Injection.gate_logits`
    rho_i           area of the union of all boxes / area of box i, in cells                `injection.Places.area_ratio`
    w_i             softmax_i over ten slots of g_i sigmoid(rho_i)                          `injection.slot_weights`
    D               sum_i w_i s_i, the instance semantic map                                `injection.instance_map`
    out             attention + tanh(alpha) strength D, before the output projection        `injection.inject`

For the uncond row e_i and EoT_i are zero and nothing of the phrase is visible, but P(r_i) stays: `model.IFAdapter.row_sets`.

Where paper and published code differ we follow the code, which is what the published weights expect; `injection.FORMS` has both:
- the area factor multiplies the logit before the softmax (paper, eq. 7: the weight after it), and its numerator is the area of the
  union (paper: the sum of the areas);
- the softmax runs over ten slots; unused ones, and instances outside of their box, take their share of it (paper: the instances);
- P is added to the EoT token too (paper, eq. 3: to the appearance tokens);
- each layer of the resampler sees one word less than the one before (`model.visible_words`), an upstream slip that was trained with.
Where the code handles square pictures only, any grid is handled here; more than ten instances take as many slots as they are.

Files: `model.py` networks and `Config`, `injection.py` the mathematics of a layer, `training.py` the loss, `checkpoint.py` files.
`attention.py` is a different, training-free method, for when there are no weights; `instances.py` the boxes and phrases that both take.
"""
