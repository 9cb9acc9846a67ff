"""CA2-SIS (arXiv 2308.16071; IEEE Access 13, 2025): one code per class says how it looks, one where it is. Torch and einops only.

Idea: an image x and its semantic map M become a style code per class and a shape code per class; a generator that has nothing else
draws the image from them. Exchange a row of either and one part of the face changes its look or its form.

    symbol   here                         what
    x        image [b, 3, h, w]           in [-1, 1] (the host's IMAGE is 0..1, channels last)
    M        mask [b, k, h, w]            one channel a class, 0 or 1; after an edit channels may overlap or leave holes
    M_sw     mask given to encode_shape   the mask that drives the shape; the style keeps its own M
    S        style [b, k, 5 * 256]        style codes, one token a class; five scales, coarse to fine
    z        shape [b, k', 256]           shape codes, each a 16x16 map; k' = k - 1: class 0 (background) has none

    equation                                              where
    z_c = W nearest_128(M_c) + w                          model.MaskEmbedder     one linear layer for all classes
    s_c,i = tanh(V_i mean(f_i where M_c) + v_i)           encoder.StyleEncoder   f_i: decoder features at 8, 16, 32, 64, 128
    x' = out(cross_6(res_6(... cross_2(res_2(z), S))))    model.Generator.linear
    cross: softmax(q(pixel) k(S)^T / sqrt(d)) v(S)        model.Transformer      every pixel may read every class
    L_att = BCE(mean over heads of the logits, M)         attention.attention_loss
    S = f_c(g(noise)) * [c in M]                          encoder.NoiseMapping   styles without an image
    S_p <- S'_p, M_p <-> M'_p, z_p <- a z_p + (1-a) z'_p  codes.mix_styles, codes.edit_shape, codes.mix_shapes

We follow the published code, because its weights fix it, in these points:
  * the style decoder's skips are appended, not interleaved per class: its grouped convolutions then read other classes' channels, so
    that editing one class's pixels moves every class's code a little. Codes, once made, are strictly per class;
  * a class that is not in the mask, or vanishes at a coarse scale, gets tanh(v_i) there, not zero; from noise it gets zero;
  * "class-adaptive" is ordinary cross-attention over one token a class; only L_att in training ties class and place;
  * a swapped mask is not repaired: embedder and attention fill what the exchange left open.
We differ in: fused attention, no checkpointing wrapper, no mask argument in the generator (it never changed the image), the
feed-forward in slices of tokens, and class 0 refused in shape edits where it has no code (the original then hits the last class).
"""
