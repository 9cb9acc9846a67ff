"""The three stages: the published counts, the closed ends, percent and sigma saying the same."""

from __future__ import annotations

import math

import pytest
from pack.py.snf.schedule import Stage, Stages

DDIM = [981 - 20 * i for i in range(50)]
PNDM = [981, 961, *DDIM[1:]]


def percents(timesteps):
    return [1 - t / 999 for t in timesteps]


def stages_at(stages, found):
    """The stage at each percent, as the guider asks for it, on a schedule whose sigma is 1 - percent."""
    sigmas = stages.to_sigmas(lambda percent: 1.0 - percent)
    return [sigmas.stage_at(1.0 - percent) for percent in found]


def from_steps(start_merge_step, final_step, found):
    """The stages of the published code's counters: bounds halfway between the two evaluations that each counter separates."""

    def bound(last):
        if last < 0:
            return 0.0
        return 1.0 if last + 1 >= len(found) else 0.5 * (found[last] + found[last + 1])

    return Stages(bound(start_merge_step), bound(final_step))


def counts(stages, timesteps):
    found = stages_at(stages, percents(timesteps))
    assert found == sorted(found)
    return tuple(found.count(stage) for stage in Stage)


def test_the_defaults_are_the_published_demonstration():
    assert counts(Stages(), PNDM) == (16, 15, 20)


def test_a_run_with_the_defaults_costs_what_the_published_setting_costs():
    scene, fusion, subject = counts(Stages(), PNDM)
    assert 2 * scene + 4 * fusion + 2 * subject == 132


@pytest.mark.parametrize("timesteps, expected", [(PNDM, (16, 15, 20)), (DDIM, (16, 15, 19))])
def test_step_bounds_are_inclusive(timesteps, expected):
    assert counts(from_steps(15, 30, percents(timesteps)), timesteps) == expected


@pytest.mark.parametrize("start, final", [(-1, -1), (-1, 0), (0, 0), (0, 48), (10, 40), (48, 49), (49, 60), (7, 7)])
def test_step_bounds_agree_with_the_counters(start, final):
    stages = from_steps(start, final, percents(DDIM))
    expected = [Stage.SCENE if i <= start else Stage.FUSION if i <= final else Stage.SUBJECT for i in range(50)]
    assert stages_at(stages, percents(DDIM)) == expected


@pytest.mark.parametrize("start, end, stage", [(0.0, 0.0, Stage.SUBJECT), (0.0, 1.0, Stage.FUSION), (1.0, 1.0, Stage.SCENE)])
@pytest.mark.parametrize("percent", [-1e-6, 0.0, 0.5, 1.0, 1.0 + 1e-6])
def test_a_closed_end_holds_whatever_a_scheduler_rounds(start, end, stage, percent):
    stages = Stages(start, end)
    assert stages_at(stages, [percent]) == [stage]
    assert stages.to_sigmas(sd15_sigma).stage_at(sd15_sigma(percent)) == stage


def test_a_bound_belongs_to_the_later_stage():
    stages = Stages(0.25, 0.75)
    sigmas = stages.to_sigmas(lambda percent: 1 - percent)
    assert [sigmas.stage_at(s) for s in (0.7501, 0.75, 0.2501, 0.25)] == [Stage.SCENE, Stage.FUSION, Stage.FUSION, Stage.SUBJECT]


def test_equal_bounds_leave_no_fusion():
    stages = Stages(0.5, 0.5)
    assert stages_at(stages, (0.0, 0.49, 0.5, 1.0)) == [Stage.SCENE, Stage.SCENE, Stage.SUBJECT, Stage.SUBJECT]


BETAS = [(0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * t / 999) ** 2 for t in range(1000)]


def sd15_sigma(percent):
    """The noise level of Stable Diffusion 1.5, at whole timesteps."""
    t = min(max(round((1 - percent) * 999), 0), 999)
    alpha = math.exp(sum(math.log1p(-beta) for beta in BETAS[: t + 1]))
    return math.sqrt((1 - alpha) / alpha)


def test_sigmas_separate_the_published_evaluations_as_percents_do():
    stages = Stages()
    sigmas = stages.to_sigmas(sd15_sigma)
    assert [sigmas.stage_at(sd15_sigma(p)) for p in percents(PNDM)] == stages_at(stages, percents(PNDM))
    assert 3.093 < sigmas.start < 3.348 and 1.094 < sigmas.end < 1.168


@pytest.mark.parametrize(
    "start, end, named", [(-0.1, 0.5, "start_percent"), (0.2, 1.1, "end_percent"), (0.2, math.nan, "end_percent")]
)
def test_a_bound_outside_of_the_schedule_is_refused(start, end, named):
    with pytest.raises(ValueError, match=named):
        Stages(start, end)


def test_an_end_before_the_start_is_refused():
    with pytest.raises(ValueError, match="is before start_percent"):
        Stages(0.6, 0.3)
