"""Tables, BIDS trees and other folders of one's own: what is read, and what is refused."""

import os
import random

import pytest
import torch

from cmrfast import FileError
from cmrfast.data import Volume, open_dataset, write_nifti
from cmrfast.data.datasets import Case, guess_cases, layout, read_table, recognise, write_table
from cmrfast.data.datasets.bids import read_bids
from cmrfast.data.datasets.names import sequence_name, structure_name
from cmrfast.methods import get, open_cases, trainable
from tests.data.test_datasets import bids, put, table


@pytest.fixture(autouse=True)
def _no_waiting_for_disks(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def test_the_columns_of_a_table(tmp_path):
    table(tmp_path)
    first, second = read_table(tmp_path)
    assert (first.name, [*first.images], [*first.labels]) == ("p2", ["LGE"], ["scar"])
    assert first.faults == ("LGE_myocardium label is missing",)
    assert {key: labelling.on for key, labelling in second.labelling.items()} == {
        "scar": "LGE",  # the only sequence
        "LGE_myocardium": "LGE",
    }
    assert (first.info, second.info) == (
        {"age": "", "split": "train"},
        {"age": "61", "split": "test"},
    )


def test_a_table_is_read_back_as_it_was_written(tmp_path):
    table(tmp_path)
    cases = read_table(tmp_path).cases
    write_table(cases, tmp_path / "images" / "copy.csv")
    again = read_table(tmp_path / "images" / "copy.csv").cases
    assert [(c.images, c.labels, c.labelling) for c in again] == [
        (c.images, c.labels, c.labelling) for c in cases
    ]
    text = (tmp_path / "images" / "copy.csv").read_text()
    assert "p10,p10/lge.nii.gz," in text  # below the folder of the table
    assert f",{tmp_path}/masks/p10.nii.gz," in text  # elsewhere


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the first row must name each column once, one of them case; got nothing"),
        ("name,LGE\np,a.nii\n", "one of them case; got name, LGE"),
        ("case,LGE,LGE\np,a.nii,b.nii\n", "must name each column once"),
        ("case,LGE\n", "it lists no case"),
        ("case,LGE\np,a.nii,x\n", "line 2 must have 2 cells; got 3"),
        ("case,LGE\n\n\np,a.nii,x\n", "line 4 must have 2 cells; got 3"),
        ('case,LGE\n"p\n1",a.nii\n\nq\n', "line 5 must have 2 cells; got 1"),
        ("case,LGE\n,a.nii\n", "each row must name a case that no other row names; got ''"),
        ("case,LGE\np,a.nii\np,b.nii\n", "that no other row names; got 'p'"),
        (
            "case,LGE,split\np,a.nii,both\n",
            "split must be train, validate, test or empty; p has 'both'",
        ),
    ],
)
def test_a_wrong_table_is_named(tmp_path, text, message):
    (tmp_path / "cases.csv").write_text(text)
    with pytest.raises(FileError) as error:
        read_table(tmp_path)
    assert str(error.value).startswith(f"read_table: {tmp_path}/cases.csv: ")
    assert message in str(error.value)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileError, match=r"read_table: .*gone.csv: No such file or directory"):
        read_table(tmp_path / "gone.csv")
    (tmp_path / "cases.csv").write_text("Case\tLGE\np\tgone.nii\n")
    assert read_table(tmp_path).faults == ["p: LGE image is missing: there is no file gone.nii"]
    with pytest.raises(FileError, match=r"write_table: .*: No such file or directory"):
        write_table([], tmp_path / "none" / "cases.csv")


def test_a_table_that_is_no_text(tmp_path):
    (tmp_path / "cases.csv").write_bytes(b"case,LGE\np,\xff.nii\n")
    with pytest.raises(FileError, match=r"read_table: .*cases.csv: .*can't decode"):
        read_table(tmp_path)


def test_a_table_is_in_utf8_everywhere(tmp_path, monkeypatch):
    monkeypatch.setattr("locale.getencoding", lambda: "ascii")
    case = Case("Müller", {"LGE": tmp_path / "ä.nii"}, {}, {})
    write_table([case], tmp_path / "cases.csv")
    assert "Müller,ä.nii," in (tmp_path / "cases.csv").read_bytes().decode()
    latin = Case("p", {"LGE": tmp_path / os.fsdecode(b"\xe4.nii")}, {}, {})
    with pytest.raises(FileError, match=r"write_table: the files of 'p' must have names in UTF-8;"):
        write_table([case, latin], tmp_path / "b.csv")
    assert not (tmp_path / "b.csv").exists()


def test_a_table_that_is_too_large(tmp_path, monkeypatch):
    bids(tmp_path)
    table(tmp_path)
    (tmp_path / "derivatives/dseg.tsv").write_text("index\tname\n" + "0\tx\n" * 20_000 + "1\tLV\n")
    assert read_bids(tmp_path)[0].labelling["label"].classes == {"LV": (1,)}
    monkeypatch.setattr(layout, "_TABLE_LIMIT", 50)
    for read in (read_bids, read_table):
        with pytest.raises(FileError, match=r"sv.*: it is larger than 0 MiB"):
            read(tmp_path)


def test_damaged_descriptions_raise_only_file_errors(tmp_path):
    table(tmp_path)
    bids(tmp_path)
    numbers, refused = random.Random(0), 0
    for path in (tmp_path / "cases.csv", tmp_path / "derivatives" / "dseg.tsv"):
        whole = path.read_bytes()
        for _ in range(200):
            damaged = bytearray(whole)
            for _ in range(numbers.randint(1, 4)):
                damaged[numbers.randrange(len(damaged))] = numbers.choice(b'\0\n\t",;\xffaA19')
            path.write_bytes(damaged[: numbers.randint(1, len(damaged))])
            for read in (read_table, read_bids):
                try:
                    for case in read(tmp_path):
                        case.check()
                except FileError:
                    refused += 1
        path.write_bytes(whole)
    assert refused > 50


def test_subjects_of_bids(tmp_path):
    bids(tmp_path)
    once, twice = read_bids(tmp_path)
    assert ([*once.images], [*once.labels]) == (["FLAIR"], ["brain", "label"])
    assert once.labelling["label"].classes == {"LV": (1,), "scar": (3,)}
    assert [*twice.images] == ["earlier FLAIR", "later FLAIR"]
    assert {k: x.on for k, x in twice.labelling.items()} == {
        "earlier brain": "earlier FLAIR",
        "later brain": "later FLAIR",
    }


def test_a_mask_of_bids_lies_on_the_image_of_its_session_and_acquisition(tmp_path):
    for start in ("ses-1_", "ses-10_", "ses-2_acq-a_", "ses-2_acq-ab_"):
        put(tmp_path / f"sub-1/anat/sub-1_{start}LGE.nii.gz")
        put(tmp_path / f"sub-1/anat/sub-1_{start}label-scar_mask.nii.gz")
    put(tmp_path / "sub-1/anat/sub-1_ses-2_label-lv_mask.nii.gz")
    (case,) = read_bids(tmp_path)
    assert {key: labelling.on for key, labelling in case.labelling.items()} == {
        "ses-1 scar": "ses-1 LGE",
        "ses-10 scar": "ses-10 LGE",
        "ses-2 a scar": "ses-2 a LGE",
        "ses-2 ab scar": "ses-2 ab LGE",
        "ses-2 lv": "",  # of two acquisitions
    }


def test_what_is_wrong_with_bids_is_named(tmp_path):
    with pytest.raises(FileError, match=r"read_bids: .* holds no case of bids; it should hold"):
        read_bids(tmp_path)
    with pytest.raises(FileError, match=r"read_bids: .*none is not a folder"):
        read_bids(tmp_path / "none")
    bids(tmp_path)
    put(tmp_path / "sub-2/func/sub-2_FLAIR.nii.gz")
    (case, _) = read_bids(tmp_path)
    assert [fault.partition(";")[0] for fault in case.faults] == ["FLAIR image occurs twice"]
    (tmp_path / "derivatives/dseg.tsv").write_text("index\tname\none\tLV\n")
    with pytest.raises(FileError, match=r"dseg.tsv must have the columns index, a whole number"):
        read_bids(tmp_path)


def visits(root, *sessions, times=None):
    """A subject whose FLAIR images are of some sessions: its case."""
    for session in sessions:
        name = f"sub-1_ses-{session}_FLAIR.nii.gz" if session else "sub-1_FLAIR.nii.gz"
        put(root / "sub-1" / (f"ses-{session}" if session else "") / "anat" / name)
    if times is not None:
        rows = "".join(f"ses-{session}\t{time}\n" for session, time in times.items())
        (root / "sub-1/sub-1_sessions.tsv").write_text(f"session_id\tacq_time\n{rows}")
    (case,) = read_bids(root)
    return case


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("1", "2"),
        ("2", "10"),
        ("m06", "m12"),
        ("12mo", "24mo"),
        ("20191231", "20200101"),
        ("pre", "post"),
        ("screening", "followup"),
        ("Baseline", "M12"),
        ("bl", "Followup"),
    ],
)
def test_the_earlier_session_by_its_label(tmp_path, earlier, later):
    case = visits(tmp_path, earlier, later)
    assert f"ses-{earlier}" in case.images["earlier FLAIR"].name
    assert f"ses-{later}" in case.images["later FLAIR"].name
    assert case.faults == ()


@pytest.mark.parametrize(
    ("early", "late"),
    [
        ("2020-01-31T09:30:00", "2020-01-31T09:30:00.500"),
        ("2020-01-31", "2020-02-01T00:00:00Z"),
        ("1890-01-31T09:30:00", "1891-01-31T09:30:00"),
    ],
)
@pytest.mark.parametrize(("earlier", "later"), [("before", "after"), ("2", "1"), ("post", "pre")])
def test_the_earlier_session_by_its_time(tmp_path, earlier, later, early, late):
    times = {later: late, "unused": late, earlier: early}
    case = visits(tmp_path, earlier, later, times=times)
    assert f"ses-{earlier}" in case.images["earlier FLAIR"].name
    assert f"ses-{later}" in case.images["later FLAIR"].name
    assert case.faults == ()


@pytest.mark.parametrize("times", [None, {"A": "2020-01-31"}, {"A": "2020-01-31", "B": "n/a"}])
@pytest.mark.parametrize(
    "sessions", [("A", "B"), ("1", "01"), ("m1", "y1"), ("bl", "pre"), ("", "2"), ("", "bl")]
)
def test_sessions_without_an_order_are_neither_earlier_nor_later(tmp_path, sessions, times):
    case = visits(tmp_path, *sessions, times=times)
    assert {*case.images} == {f"ses-{s} FLAIR" if s else "FLAIR" for s in sessions}
    (fault,) = case.faults
    for session in sessions:
        assert f"ses-{session} " in fault if session else "files without a session" in fault
    assert "sub-1_sessions.tsv in the subject's folder must give the acq_time of both" in fault
    method = get("new_lesions")
    with pytest.raises(FileError, match=r"missing: .*earlier image.*; sub-1: which of .* is ear"):
        trainable(method, open_cases(method, tmp_path, layout="bids"))


def test_equal_times_leave_the_order_to_the_labels(tmp_path):
    case = visits(tmp_path, "10", "2", times={"10": "2020-01-31", "2": "2020-01-31"})
    assert "ses-2" in case.images["earlier FLAIR"].name


def test_more_than_two_sessions_keep_their_labels(tmp_path):
    case = visits(tmp_path, "A", "B", "1")
    assert {*case.images} == {"ses-A FLAIR", "ses-B FLAIR", "ses-1 FLAIR"}
    assert case.faults == ()


@pytest.mark.parametrize(
    "table",
    ["session_id\tacq_time\nses-A\tnoon\n", "acq_time\n2020-01-31\n", "acq_time\tb\n\xff\n"],
)
def test_a_wrong_table_of_sessions_is_refused(tmp_path, table):
    visits(tmp_path, "A", "B")
    (tmp_path / "sub-1/sub-1_sessions.tsv").write_bytes(table.encode("latin1"))
    with pytest.raises(FileError, match=r"sub-1_sessions.tsv must have the columns session_id and"):
        read_bids(tmp_path)


def test_any_folder_is_a_start(tmp_path):
    put(tmp_path / "a_LGE.nii.gz")
    put(tmp_path / "a_mask.nii")
    put(tmp_path / "b.nii")
    put(tmp_path / "day1" / "c" / "c_T2.nii")
    found = {case.name: (*case.images, *case.labels) for case in guess_cases(tmp_path)}
    assert found == {"a": ("LGE", "mask"), "b": ("image",), "day1_c": ("T2",)}
    put(tmp_path / "a_scar.nii")
    labelling = guess_cases(tmp_path).case("a").labelling
    assert (labelling["scar"].classes, labelling["mask"].classes) == ({"scar": (1,)}, {})
    with pytest.raises(FileError, match=r"guess_cases: .*none is not a folder"):
        guess_cases(tmp_path / "none")
    (tmp_path / "none").mkdir()
    with pytest.raises(FileError, match="holds no NIfTI file"):
        guess_cases(tmp_path / "none")
    for name in ("a/b_c", "a_b/c"):
        put(tmp_path / "two" / name / "LGE.nii.gz")
    with pytest.raises(FileError, match=r"two/a/b_c and in .*two/a_b/c would be one case, a_b_c;"):
        guess_cases(tmp_path / "two")
    with pytest.raises(FileError, match=r"has no known layout; cmrfast data describe .* --write"):
        recognise(tmp_path / "none")


def test_a_layout_of_one_s_own_is_known_by_its_file(tmp_path):
    bids(tmp_path)
    assert recognise(tmp_path, ["emidec"]).name == "bids"
    table(tmp_path)
    assert recognise(tmp_path).name == "table"
    assert recognise(tmp_path / "cases.csv").name == "table"
    with pytest.raises(FileError) as error:
        recognise(tmp_path / "gone", ["emidec", "myops"])
    assert str(error.value) == f"recognise: {tmp_path}/gone: No such file or directory"
    (tmp_path / "a.nii").touch()
    with pytest.raises(FileError) as error:
        recognise(tmp_path / "a.nii")
    assert (
        str(error.value) == f"recognise: {tmp_path}/a.nii is a file, not the folder of a data set"
    )
    with pytest.raises(FileError, match=r"recognise: .*: embedded null byte"):
        recognise("a\0")


@pytest.mark.parametrize("name", ["LGE", "lge", "DE", "late gadolinium", "PSIR"])
def test_other_names_of_sequences(name):
    assert sequence_name(name) == "lge"


@pytest.mark.parametrize("name", ["no-reflow", "No reflow", "MVO", "no_reflow"])
def test_other_names_of_structures(name):
    assert structure_name(name) == "no_reflow"


def test_masks_of_several_files_share_a_grid(tmp_path):
    table(tmp_path)
    write_nifti(
        tmp_path / "masks" / "p10.nii.gz",
        Volume(torch.ones(1, 3, 1, 2, dtype=torch.uint8), torch.eye(4)),
    )
    from cmrfast.methods import get, open_cases

    case = open_cases(get("joint_scar"), tmp_path).case("p10")
    with pytest.raises(FileError, match=r"p10.nii.gz must lie on the grid of .*p10_wall.nii.gz"):
        case.label("LGE")


def test_a_time_point_is_chosen(tmp_path):
    data = torch.arange(24).view(4, 3, 2, 1).to(torch.int16)
    write_nifti(tmp_path / "cine.nii.gz", Volume(data, torch.eye(4)))
    (tmp_path / "cases.csv").write_text("case,C0\np,cine.nii.gz\n")
    from dataclasses import replace

    case = open_dataset("table", tmp_path)[0]
    assert case.image("C0").channels == 4
    chosen = replace(case, frame=2).image("C0", channels=1)
    assert torch.equal(chosen.data, data[1:2])
    with pytest.raises(FileError, match="holds the time points 1 to 4; got frame 5"):
        replace(case, frame=5).image("C0", channels=1)
