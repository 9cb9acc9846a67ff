"""AM-Adapter (arXiv 2412.03150): an exemplar's appearance is transferred to a semantic map, class by class.

Idea. A diffusion model denoises the target Y while its self-attention may also attend to an exemplar X, which the same model processes
beside it. A small network, the matcher, compares target tokens with exemplar tokens and their classes, and decides which exemplar tokens
get more attention. A second small network, ControlNeXt, keeps the target's layout.

    n, r          tokens of target and exemplar after the layer's norm                [b, l, c], [b, m, c]
    q             W_q n; keys and values are W_k, W_v of [n ; r], the target's own tokens first
    A_self, A_ref q k^T / sqrt(d), the two parts of the logits                        [b, n, l, l], [b, n, l, m]
    p^Y, p^X      class shares of each target cell, each exemplar cell                [b, l, k], [b, m, k]
    C             categorical matching cost, 1 where the classes agree                [b, l, m]
    phi           the matcher: "4-D" convolutions over (target token, exemplar token)
    P, peak       phi(A_ref, C) >= 0, and its largest value                           [b, l, n, m], [b]

    C = p^Y p^X^T                                            agreement.compare_classes, ClassAgreement.block
    phi = 4 x [convolution 1x1x3x3, one-group norm, ReLU]    model.Encoder, model.Matcher
    P = phi(A_ref, C), at most 1024 x 1024 tokens            attention.match_tokens
    g = P - peak / 4                                         attention.Match.block
    softmax([A_self ; A_ref + log w + g]) [V_self ; V_ref]   attention.augmented_attention, conditional rows only
    h <- h + scale * crossnorm(ControlNeXt(S, t), h)         model.ControlNeXt, model.inject

Without the matcher's weights g is a closed form (attention.Settings.mode): class_bias b (C - 1/4), hard_mask 0 or -inf, concat_only 0,
masactrl (the exemplar instead of the own image where a class is shared).

Where the published code departs from the paper's formulas, agreement.Behaviour names the difference. PUBLISHED_CODE repeats the code, for
the authors' weights; PAPER_FORMULAS is meant for everything else:
    transposed    C's rows are exemplar tokens although the logits' rows are target tokens
    flat          token matrices are resized as if they were images, which permutes tokens on all grids but 32x32
    joint_peak    the peak is taken over all rows of the call, unconditional ones included
    part_encoder  (False in the published code) the encoder for "down" serves every layer
"""
