"""Face-diffuser: noise fusion, the 50-step stage trace and the postfuse network."""

from __future__ import annotations

import torch
from pack.py.snf.fusion import Prediction, blend
from pack.py.snf.model import Postfuse
from pack.py.snf.schedule import Stage, Stages

from ..registry import register

SNF = "SNF (Face-diffuser)"
LAST_TIMESTEP = 999


def fused(scene_null, scene_text, subject_text, subject_aug, guidance):
    return blend([Prediction(scene_null, scene_text, guidance), Prediction(subject_text, subject_aug, guidance)])


@register(SNF, "fuse")
@register(SNF, "tie")
@register(SNF, "zero_subject")
def fuse_case(weights, inputs, config):
    branches = (inputs[name] for name in ("eps_T_null", "eps_T_text", "eps_S_text", "eps_S_aug"))
    result = fused(*branches, config["guidance_scale"])
    scene, subject = result.log_maps[:, :, 0].exp()
    return {"fused": result.prediction, "mask": result.shares[1, :, 0], "saliency_T": scene, "saliency_S": subject}


def branches_of(timesteps, config):
    """The stage of every evaluation, by percent."""
    percents = [1 - t / LAST_TIMESTEP for t in timesteps]
    stages = Stages.from_steps(config["start_merge_step"], config["final_step"], percents)
    return [int(stages.at(percent)) for percent in percents]


@register(SNF, "stage_trace")
def stage_trace(weights, inputs, config):
    timesteps, guidance = inputs["timesteps"].tolist(), config["guidance_scale"]
    pndm_timesteps = timesteps[:2] + timesteps[1:]  # the released scheduler asks twice at its second timestep
    stages, pndm_stages = branches_of(timesteps, config), branches_of(pndm_timesteps, config)
    x, latents, masks, noise = inputs["latents"], [], [], {}
    for step, stage in enumerate(stages):
        coefficients = inputs["coef"][step]
        branches = [k[0] * x + k[1] * p + k[2] * q for k, p, q in zip(coefficients, inputs["P"], inputs["Q"])]
        if stage == Stage.FUSION:
            result = fused(*branches, guidance)
            eps = result.prediction
            masks.append(result.shares[1, 0, 0])
        else:
            pair = branches[:2] if stage == Stage.SCENE else branches[2:]
            eps = Prediction(*pair, guidance).guided()
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
    fused_prompt = network.fused_prompt(inputs["text"], inputs["image_embeds"], positions)
    return {"rows": fused_prompt[0, positions]}
