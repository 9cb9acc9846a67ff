"""Training CA2-SIS's generator: a discriminator of two scales, hinge losses, feature matching, perceptual and attention loss.

    L_G = -mean D(M, x') + 10 L_FM + 10 L_P + L_att             L_D = mean relu(1 - D(M, x)) + mean relu(1 + D(M, x'))
    L_FM = mean over scales and layers but the last of |D_i(M, x') - sg D_i(M, x)|        (specs: section 4)
    L_P  = sum_i w_i |phi_i(x') - sg phi_i(x)|,  w = 1/32, 1/16, 1/8, 1/4, 1              phi: a backbone the user has

Generator and discriminator learn in one step from one forward pass of the generator, each at its own rate (the paper's 1e-4 and 4e-4);
the original alternates and draws twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attention_loss, mean_logits
from .model import Generator

#: Of the discriminator's learning rate to the generator's.
DISCRIMINATOR_RATE = 4.0
PERCEPTUAL_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
#: Features of an image [b, 3, h, w] in [-1, 1], fine to coarse, one a perceptual weight.
Backbone = Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class Weights:
    """Of the summands of L_G. `pixels` weighs |x' - x|, which the paper has not: a start from nothing is steadier with a little of it."""

    features: float = 10.0
    perceptual: float = 10.0
    attention: float = 1.0
    pixels: float = 0.0


class PatchDiscriminator(nn.Module):
    """One scale: 4x4 convolutions, three of stride 2, spectral norm; instance norm without parameters but on the first.

    [b, k + 3, h, w] -> the outputs of its layers, the last one the verdicts [b, 1, h', w'].
    """

    def __init__(self, inputs: int, width: int = 64) -> None:
        super().__init__()
        channels = [inputs, width, 2 * width, 4 * width, 8 * width]
        self.layers = nn.ModuleList()
        for i in range(4):
            conv = nn.utils.parametrizations.spectral_norm(
                nn.Conv2d(channels[i], channels[i + 1], 4, 2 if i < 3 else 1, 2, bias=i == 0)
            )
            norm: nn.Module = nn.Identity() if i == 0 else nn.InstanceNorm2d(channels[i + 1])
            self.layers.append(nn.Sequential(conv, norm, nn.LeakyReLU(0.2)))
        self.layers.append(nn.Conv2d(channels[-1], 1, 4, 1, 2))

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for layer in self.layers:
            x = layer(x)
            found.append(x)
        return found


class Discriminator(nn.Module):
    """Two of them, the second on an image of half the size."""

    def __init__(self, classes: int, width: int = 64) -> None:
        super().__init__()
        self.scales = nn.ModuleList(PatchDiscriminator(classes + 3, width) for _ in range(2))

    def forward(self, mask: Tensor, image: Tensor) -> list[list[Tensor]]:
        """M [b, k, h, w] and x [b, 3, h, w] -> the layers' outputs of each scale."""
        x = torch.cat([mask, image], dim=1)
        return [self.scales[0](x), self.scales[1](F.avg_pool2d(x, 3, 2, 1, count_include_pad=False))]


def begin_(generator: Generator) -> Generator:
    """Residual branches of a new generator start at zero, as the published one's did."""
    for name, module in generator.named_modules():
        if name.endswith(("out_layers.3", "proj_out")):
            nn.init.zeros_(module.weight)  # type: ignore[arg-type]
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    return generator


def draw_watched(generator: Generator, shape: Tensor, style: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The image before its last step, and the logits of every cross-attention, for `attention_loss`."""
    logits: list[Tensor] = []
    picture = generator.linear(shape, style, lambda q, k, heads, grid: logits.append(mean_logits(q, k, heads, grid)))
    return picture, logits


def adversarial_losses(discriminator: Discriminator, mask: Tensor, fake: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """-mean D(x'), L_FM and L_D. Gradients of the first two reach the generator only, those of the third the discriminator only."""
    own = [p for p in discriminator.parameters() if p.requires_grad]
    for parameter in own:
        parameter.requires_grad_(False)
    seen = discriminator(mask, fake)
    for parameter in own:
        parameter.requires_grad_(True)
    both = discriminator(torch.cat([mask, mask]), torch.cat([fake.detach(), real]))
    count = len(fake)
    fooled = -torch.stack([scale[-1].mean() for scale in seen]).mean()
    matching = torch.stack(
        [F.l1_loss(a, b[count:].detach()) for scale, pair in zip(seen, both) for a, b in zip(scale[:-1], pair[:-1])]
    ).mean() * len(seen[0][:-1])  # mean over the scales, sum over the layers
    told = [F.relu(1 + scale[-1][:count]).mean() + F.relu(1 - scale[-1][count:]).mean() for scale in both]
    return fooled, matching, torch.stack(told).mean()


def perceptual_loss(backbone: Backbone, fake: Tensor, real: Tensor) -> Tensor:
    """L_P by whatever backbone the user has."""
    with torch.no_grad():
        wanted = backbone(real)
    pairs = zip(PERCEPTUAL_WEIGHTS, backbone(fake), wanted)
    return torch.stack([weight * F.l1_loss(a, b) for weight, a, b in pairs]).sum()


def training_loss(
    generator: Generator,
    discriminator: Discriminator,
    image: Tensor,
    mask: Tensor,
    weights: Weights = Weights(),
    backbone: Backbone | None = None,
) -> Tensor:
    """L_G + L_D of one batch: x [b, 3, h, w] in [-1, 1], M [b, k, h, w]."""
    picture, logits = draw_watched(generator, generator.encode_shape(mask), generator.encode_style(image, mask))
    fake = (picture.tanh() if generator.config.tanh else picture).float()
    fooled, matching, told = adversarial_losses(discriminator, mask, fake, image)
    total = fooled + weights.features * matching + told + weights.attention * attention_loss(logits, mask)
    if weights.pixels:
        total = total + weights.pixels * F.l1_loss(fake, image)
    if backbone is not None:
        total = total + weights.perceptual * perceptual_loss(backbone, fake, image)
    return total


def noise_loss(made: Tensor, wanted: Tensor, present: Tensor) -> Tensor:
    """Implicit maximum likelihood (arXiv 1809.09087): every real code draws the nearest of the made ones to itself, class by class.

    It needs no discriminator, and no code is left without noise that makes it.

    Args:
        made: codes from noise, [n, k, c]. wanted: codes of images, [b, k, c]. present: [b, k] bool, which of them count.
    """
    with torch.no_grad():
        distance = torch.cdist(wanted.transpose(0, 1), made.transpose(0, 1))  # [k, b, n]
        nearest = distance.argmin(dim=-1).T
    found = made[nearest, torch.arange(made.shape[1])]
    error = (found - wanted).square().mean(dim=-1)
    return (error * present).sum() / present.sum().clamp_min(1)


class Vgg19(nn.Module):
    """The features that L_P was published with: torchvision's VGG19 with weights that the user has; none are shipped or downloaded.

    Args:
        weights: the file's tensors (`features.0.weight` ...); those of the classifier are not needed.

    Raises:
        ValueError: tensors of the features are missing.
    """

    #: The first layer after each one that is compared: relu1_1, relu2_1, relu3_1, relu4_1, relu5_1.
    ENDS = (2, 7, 12, 21, 30)

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        import torchvision  # the host's own requirement; only this loss needs it

        with torch.device("meta"):  # the weights come from the file
            self.features = torchvision.models.vgg19(weights=None).features[: self.ENDS[-1]]
        missing = [key for key in self.state_dict() if key not in weights]
        if missing:
            raise ValueError(f"CA2-SIS training: the backbone's file lacks {missing[0]}; give torchvision's vgg19 weights.")
        self.load_state_dict({key: weights[key] for key in self.state_dict()}, assign=True)
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features of images [b, 3, h, w] in [-1, 1], fine to coarse."""
        mean, std = (torch.tensor(v, device=x.device).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        x, found = ((x + 1) / 2 - mean) / std, []
        for number, layer in enumerate(self.features, start=1):
            x = layer(x)
            if number in self.ENDS:
                found.append(x)
        return found
