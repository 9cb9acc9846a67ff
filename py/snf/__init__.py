"""Face-diffuser (arXiv 2311.10329), saliency-adaptive noise fusion (SNF): a scene model and a subject model share one sampling run.

The saliency maps with a softmax over space follow MagicFusion (ICCV 2023, "Saliency-aware Noise Blending"); the network that adds
reference images to a prompt is FastComposer's. Torch and einops only; nothing here depends on an image size, a batch size or a host.

    paper               here                                         file
    R_T, R_S            guidance_response: s (full - base)           fusion.py
    Smooth, Omega       settings.smoothing; log_saliency             fusion.py
    M                   saliency_shares, compute_shares              fusion.py
    M eps_S + (1-M) eps_T                                            fuse in fusion.py
    T(1-alpha), T(1-beta)                                            Stages in schedule.py
    text + reference -> conditioning                                 Postfuse in model.py
    the published files                                              split_checkpoint in checkpoint.py
    masked and localisation loss, dropout                            training.py

    stage 1, scene      eps = eps_T(null) + s (eps_T(text) - eps_T(null))
    stage 2, fusion     eps = M eps_S + (1 - M) eps_T     with   eps_S = eps_S(text) + s (eps_S(ref) - eps_S(text))
    stage 3, subject    eps = eps_S as in stage 2; the subject model is never evaluated with the empty prompt

Where the paper and the published code differ, the default is the code: Smooth is a 4x4 mean resized back to the latent, the guidance
scale s stays inside R and so is the inverse temperature of the softmax, one mask serves all channels, ties go to the scene model.

Differences from both:
    * any size; the code supports 64 x 64 latents only. At that size the masks are equal, pixel by pixel;
    * maps are compared as logarithms, in float32 at least: half precision ties where a map is near 1 / (h w);
    * predictions may be x0: differences are then divided by sigma, or by sigma / (1 - sigma) for rectified flow, or the temperature
      would change with sigma;
    * stages are bounded by percent of the schedule, not by a step counter, so samplers with several evaluations per step agree;
    * options that the paper does not have: soft masks, masks per channel, Gaussian smoothing, a saliency scale apart from the
      guidance scale, masks that force or forbid a model, more than one subject model, a negative prompt for the subject model.
"""
