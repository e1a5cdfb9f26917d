"""``train METHOD --help``: the fields of the method, and nothing of them without one."""

import pytest


@pytest.mark.parametrize("command", ["train", "search"])
def test_help_lists_the_fields_of_a_method(run, command):
    code, out, _ = run(command, "joint_scar", "--help")
    text = " ".join(out.split())
    assert code == 0
    for part in (
        "Config of joint_scar; in brackets, the source of a default:",
        "D: our decision.",
        "--lr a number, default 0.000473: initial learning rate [P 3.1, tuned for jdl; constant]",
        "--variant one of jdl, two_step, direct, mtl, default jdl [P 3.1]",
        "Recipe of every method",
    ):
        assert part in text
    assert f"Example: cmrfast {command}" in text


def test_help_without_a_method_has_the_options_alone(run):
    code, out, _ = run("train", "--help")
    assert code == 0
    assert "train METHOD --help lists them" in " ".join(out.split())
    assert "--variant" not in out.partition("Example")[0]
