"""Face-diffuser (arXiv 2311.10329), saliency-adaptive noise fusion (SNF): a scene model and a subject model share one sampling run.

The saliency maps with a softmax over space follow MagicFusion (ICCV 2023, "Saliency-aware Noise Blending"); the subject model's
network for reference pictures is FastComposer's. Torch and einops only; nothing here depends on a size, a batch or a host.

    paper               here                                         where
    eps_T, eps_S        Prediction: base, full, guidance             fusion.py
    R_T, R_S            response: s * (full - base), epsilon units   fusion.py
    Smooth, Omega       settings.smoothing; log_saliency             fusion.py
    M                   model_shares, saliency_mask                  fusion.py
    M eps_S + (1-M) eps_T                                            fuse, blend in fusion.py
    T(1-alpha), T(1-beta)                                            Stages in schedule.py
    text + reference -> conditioning                                 Postfuse in model.py
    the published files                                              parts in checkpoint.py
    masked and localisation loss, drops                              training.py

    stage 1, scene      eps = eps_T(null) + s (eps_T(text) - eps_T(null))
    stage 2, fusion     eps = M eps_S + (1 - M) eps_T     with   eps_S = eps_S(text) + s (eps_S(ref) - eps_S(text))
    stage 3, subject    eps = eps_S as in stage 2; the subject model never sees the empty prompt

Where the paper and the published code differ we follow the code, by default: Smooth is a 4x4 mean stretched back to size, the
guidance scale s stays inside R and so is the inverse temperature of the softmax, one mask serves all channels, ties go to the scene.

Where we differ from both:
    * any size; the code knows 64 x 64 cells only. At that size the masks are equal cell by cell;
    * maps are compared as logarithms, in float32 at least: half precision ties where a map is near 1 / (h w);
    * predictions may be denoised pictures (x0): responses are then divided by sigma, or the temperature would drift with it;
    * stages are bounded by percent of the schedule, not by a step counter, so samplers that ask more than once a step agree;
    * options that the paper does not have: soft masks, masks per channel, Gaussian smoothing, a saliency scale apart from the
      guidance, places forced or forbidden by hand, more than one subject model, a negative prompt for the subject model.
"""
