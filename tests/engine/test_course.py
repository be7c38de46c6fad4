"""The place of a step in a training whose settings change at a resume; numbers by hand."""

import pytest
from fvcore.common.param_scheduler import LinearParamScheduler, MultiStepParamScheduler

from dab_detr.engine.course import Course, Settings
from dab_detr.errors import InputError

STEPPED = MultiStepParamScheduler(values=[1.0, 0.1], milestones=[4, 5])
LINEAR = LinearParamScheduler(1.0, 0.0)


def course(batch_size=8, max_iter=None, epochs=4, images=32, schedule=STEPPED, name="{}.png"):
    records = [{"file_name": f"/data/{name.format(i)}"} for i in range(images)]
    settings = Settings.of(
        records, schedule, batch_size=batch_size, max_iter=max_iter, epochs=epochs
    )
    return Course(settings, schedule)


def resumed(before, step, **settings):
    after = course(**settings)
    after.load_state_dict(before.state_dict())
    return after, after.resume(step)


def rates(course, first):
    return [course.multiplier(step) for step in range(first, course.max_iter)]


def test_the_schedule_is_that_of_the_steps_when_nothing_changes():
    whole = course(max_iter=7, schedule=LINEAR)
    assert whole.max_iter == 7
    # bit for bit what a scheduler gets that counts steps
    assert rates(whole, 0) == [LINEAR(step / 7) for step in range(7)]
    assert [whole(step / 7) for step in range(8)] == [LINEAR(step / 7) for step in range(8)]
    again, changes = resumed(whole, 3, max_iter=7, schedule=LINEAR)
    assert not changes and rates(again, 3) == rates(whole, 3) and again.samples(5) == 40
    moved = course(max_iter=7, schedule=LINEAR, name="elsewhere/{}.png")
    moved.load_state_dict(whole.state_dict())
    assert moved.resume(3) == []


@pytest.mark.parametrize(
    "batch_size, left, after_drop",
    # of 128 images 64 are seen, and the rate drops after 102.4
    [(16, 4, 1), (4, 16, 6), (12, 6, 2), (64, 1, 0)],
)
def test_another_batch_size_leaves_the_images_that_are_left(batch_size, left, after_drop):
    after, changes = resumed(course(), 8, batch_size=batch_size)
    assert changes == [f"dataloader.train.total_batch_size 8 -> {batch_size}"]
    assert after.max_iter == 8 + left
    assert after.samples(8) == 64 and after.samples(9) == 64 + batch_size
    assert after.fraction_done(8) == 0.5 and after.fraction_done(after.max_iter) == 1.0
    multipliers = rates(after, 8)
    assert multipliers == [1.0] * (left - after_drop) + [0.1] * after_drop


def test_another_batch_size_leaves_the_steps_where_the_length_is_in_steps():
    after, _ = resumed(course(max_iter=10, schedule=LINEAR), 4, max_iter=10, batch_size=16,
                       schedule=LINEAR)  # fmt: skip
    assert after.max_iter == 10 and after.samples(4) == 32 and after.samples(5) == 48
    assert rates(after, 4) == pytest.approx([0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_changes_add_up_over_several_resumes():
    # 64 images in steps of 8, then 32 in steps of 16, then the rest of 128 in steps of 4
    second, _ = resumed(course(schedule=LINEAR), 8, batch_size=16, schedule=LINEAR)
    second_again, changes = resumed(second, 9, batch_size=16, schedule=LINEAR)
    assert not changes and rates(second_again, 9) == rates(second, 9)
    third, _ = resumed(second_again, 10, batch_size=4, schedule=LINEAR)
    assert third.samples(10) == 96 and third.max_iter == 18
    assert third.multiplier(10) == pytest.approx(0.25)
    # the whole 192 images of six epochs, of which 100 are seen
    fourth, changes = resumed(third, 11, batch_size=4, epochs=6, schedule=LINEAR)
    assert changes == ["train.epochs 4 -> 6"]
    assert fourth.samples(11) == 100 and fourth.max_iter == 11 + 23
    assert fourth.multiplier(11) == pytest.approx(1 - 100 / 192)


@pytest.mark.parametrize(
    "first, then, step, max_iter",
    [
        ({"max_iter": 10}, {"max_iter": 20}, 10, 20),
        ({"max_iter": 10}, {"max_iter": 8}, 6, 8),
        ({"epochs": 4}, {"epochs": 6}, 16, 24),
        ({"epochs": 4}, {"max_iter": 20}, 5, 20),
        ({"epochs": 4}, {"epochs": 4, "images": 64}, 8, 32),
    ],
)
def test_another_length_is_the_training_of_that_length(first, then, step, max_iter):
    """From its step on just as if it had been that long from the beginning."""
    after, changes = resumed(course(**first), step, **then)
    assert len(changes) > 0 and after.max_iter == max_iter
    assert rates(after, step) == rates(course(**then), step)


def test_length_and_batch_size_together_count_images():
    # 80 images at first, 40 of them seen; now 5 steps of 16, which are as many
    after, changes = resumed(course(max_iter=10), 5, max_iter=5, batch_size=16)
    assert changes == [
        "dataloader.train.total_batch_size 8 -> 16", "train.max_iter 10 -> 5"
    ]  # fmt: skip
    assert after.fraction_done(5) == 0.5 and after.max_iter == 5 + 3


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"max_iter": 9}, "train.max_iter=9 asks for 9 steps of 8 images, but 10 steps with 80"),
        ({"epochs": 2}, "train.epochs=2 asks for 8 steps of 8 images, but 10 steps with 80"),
        ({"epochs": 4, "images": 16}, "train.epochs=4 asks for 8 steps"),
        ({"max_iter": 4, "batch_size": 16}, "train.max_iter=4 asks for 4 steps of 16 images"),
    ],
)
def test_less_than_is_done_is_refused(settings, words):
    with pytest.raises(InputError, match=words):
        resumed(course(), 10, **settings)


@pytest.mark.parametrize("settings", [{}, {"batch_size": 16}, {"batch_size": 12}, {"max_iter": 16}])
def test_what_is_done_stays_done(settings):
    after, _ = resumed(course(), 16, **settings)
    assert after.max_iter == 16 and after.fraction_done(16) == 1.0 and after.samples(16) == 128


def test_other_data_and_another_schedule_are_reported():
    _, changes = resumed(course(), 3, name="other_{}.png")
    assert changes == ["other images of dataloader.train"]
    _, changes = resumed(course(max_iter=9), 3, max_iter=9, images=40, schedule=LINEAR)
    assert changes == ["images of dataloader.train 32 -> 40", "another lr_multiplier"]


def test_fewer_images_than_a_batch_has_make_an_epoch_of_one_step():
    assert course(batch_size=8, images=5, epochs=3).max_iter == 3
