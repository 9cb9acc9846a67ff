"""Face-diffuser: noise fusion, the 50-step stage trace and the postfuse network."""

from __future__ import annotations

import torch
from pack.py.snf.fusion import fuse, guidance_response, log_saliency, saliency_shares
from pack.py.snf.model import Postfuse
from pack.py.snf.schedule import Stage, Stages

from ..registry import register

SNF = "SNF (Face-diffuser)"
LAST_TIMESTEP = 999


def guided(base, full, guidance):
    """Classifier-free guidance, which is the host's in the node."""
    return base + (full - base) * guidance


def fused(scene_null, scene_text, subject_text, subject_aug, guidance):
    """Prediction, shares and log maps, computed as the guider computes them."""
    models = (scene_null, scene_text), (subject_text, subject_aug)
    responses = [guidance_response(full, base, guidance) for base, full in models]
    shares = saliency_shares(responses)
    return fuse([guided(*model, guidance) for model in models], shares), shares, [log_saliency(r) for r in responses]


@register(SNF, "fuse")
@register(SNF, "tie")
@register(SNF, "zero_subject")
def fuse_case(weights, inputs, config):
    branches = (inputs[name] for name in ("eps_T_null", "eps_T_text", "eps_S_text", "eps_S_aug"))
    prediction, shares, log_maps = fused(*branches, config["guidance_scale"])
    scene, subject = (log_map[:, 0].exp() for log_map in log_maps)
    return {"fused": prediction, "mask": shares[1, :, 0], "saliency_T": scene, "saliency_S": subject}


def stage_numbers(timesteps, config):
    """The stage of every evaluation, for bounds halfway between the evaluations that the published counters separate."""

    def bound(last):
        return 1 - 0.5 * (timesteps[last] + timesteps[last + 1]) / LAST_TIMESTEP

    stages = Stages(bound(config["start_merge_step"]), bound(config["final_step"]))
    sigmas = stages.to_sigmas(lambda percent: (1 - percent) * LAST_TIMESTEP)
    return [int(sigmas.stage_at(t)) for t in timesteps]


@register(SNF, "stage_trace")
def stage_trace(weights, inputs, config):
    timesteps, guidance = inputs["timesteps"].tolist(), config["guidance_scale"]
    pndm_timesteps = timesteps[:2] + timesteps[1:]  # the released scheduler asks twice at its second timestep
    stages, pndm_stages = stage_numbers(timesteps, config), stage_numbers(pndm_timesteps, config)
    x, latents, masks, noise = inputs["latents"], [], [], {}
    for step, stage in enumerate(stages):
        coefficients = inputs["coef"][step]
        branches = [k[0] * x + k[1] * p + k[2] * q for k, p, q in zip(coefficients, inputs["P"], inputs["Q"])]
        if stage == Stage.FUSION:
            eps, shares, _ = fused(*branches, guidance)
            masks.append(shares[1, 0, 0])
        else:
            pair = branches[:2] if stage == Stage.SCENE else branches[2:]
            eps = guided(*pair, guidance)
        a, before = float(inputs["alpha_t"][step]), float(inputs["alpha_prev"][step])
        x0 = (x - (1 - a) ** 0.5 * eps) / a**0.5
        x = before**0.5 * x0 + (1 - before) ** 0.5 * eps
        latents.append(x)
        noise[step] = eps
    recorded = [0, config["start_merge_step"], config["start_merge_step"] + 1]
    recorded += [config["final_step"], config["final_step"] + 1, len(stages) - 1]
    return {
        "branch": torch.tensor(stages),
        "masks": torch.stack(masks),
        "latents": torch.cat([latents[step] for step in recorded]),
        "latents_steps": torch.tensor(recorded),
        "eps_fused_step16": noise[16],
        "pndm_timesteps": torch.tensor(pndm_timesteps),
        "pndm_branch": torch.tensor(pndm_stages),
    }


def postfuse_shapes(config):
    with torch.device("meta"):
        return {key: value.shape for key, value in Postfuse(config["embed_dim"]).state_dict().items()}


@register("Face-diffuser postfuse", "postfuse", shapes=postfuse_shapes)
def postfuse(weights, inputs, config):
    network = Postfuse(config["embed_dim"])
    network.load_state_dict(weights)
    positions = inputs["positions"].tolist()
    fused_prompt = network.fuse_prompt(inputs["text"], inputs["image_embeds"], positions)
    return {"rows": fused_prompt[0, positions]}
