import pytest

from hpm_video.data.lists.directions import check_flip


@pytest.mark.parametrize(
    "classes",
    [
        ["Pushing [something] from left to right", "Pushing [something] from right to left", "x"],
        ["Swiping Left", "Swiping Right"],
        ["turn_right", "turn_left"],
        ["TurnLeft", "TurnRight"],
        ["Turning Hand Clockwise", "Turning Hand Counterclockwise"],
        ["clockwise", "counter-clockwise"],
        ["anti clockwise", "clockwise"],
        ["down_right", "up", "down_left"],
    ],
)
def test_classes_that_are_each_others_mirror_image_are_refused(classes: list[str]) -> None:
    with pytest.raises(
        ValueError, match=r"data.flip \(true\) must be false: mirrored, '"
    ) as caught:
        check_flip(classes)
    assert "\n" not in str(caught.value)
    assert sum(f"'{name}'" in str(caught.value) for name in classes) == 2


@pytest.mark.parametrize(
    "classes",
    [
        ["walk", "run"],
        ["upright", "bright light", "leftovers", "copyright"],
        ["eating with the left and the right hand", "x"],  # its own mirror image, in other words
        [],
    ],
)
def test_other_classes_may_be_mirrored(classes: list[str]) -> None:
    assert check_flip([name for name in classes if "hand" not in name]) == []


def test_a_direction_without_a_twin_is_named() -> None:
    assert check_flip(["Turn left", "stand", "wave RIGHT hand"]) == ["Turn left", "wave RIGHT hand"]
