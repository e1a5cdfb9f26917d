"""The viewer: pages that show volumes in 3-D, with no other file and no network."""

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from cmrfast.data import Volume, read_dicom_folder, read_nifti, write_nifti
from cmrfast.data.phantom.marker import mark_synthetic
from cmrfast.errors import FileError
from cmrfast.methods import Picture
from cmrfast.runs.document import asset
from cmrfast.runs.view import CaseOptions, view_case, view_files
from cmrfast.runs.view.scene import crop_to_labels, scene_of_picture
from cmrfast.train import train
from tests.support import training_task
from tests.support.browser import CHROMIUM, Browser
from tests.support.paths import ROOT

SHAPE = (24, 20, 6)
TILTED = torch.tensor(
    [[-1.4, 0.2, 0, 10], [-0.2, -1.4, 0, 20], [0, 0, 6, -30], [0, 0, 0, 1]], dtype=torch.float64
)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """An image, a mask of two labels and a map, by name; the current folder is theirs."""
    monkeypatch.chdir(tmp_path)
    x, y, z = torch.meshgrid(*(torch.arange(n) for n in SHAPE), indexing="ij")
    image = (100 * x + 10 * y + z + 500).short()[None]
    mask = torch.zeros(1, *SHAPE, dtype=torch.uint8)
    mask[:, 6:18, 5:15, 1:5] = 1
    mask[:, 10:13, 8:12, 2:4] = 2
    volumes = {"image": image, "heart": mask, "chance": mask.float() / 2.5}
    for name, data in volumes.items():
        write_nifti(tmp_path / f"{name}.nii.gz", Volume(data, TILTED))
    return {name: Path(f"{name}.nii.gz") for name in volumes}


def scene_in(page):
    """What the page says about its scene, and its volumes as they are read back."""
    html = page.read_text()
    scene = json.loads(
        re.search(r"<script type=application/json class=scene>(.*?)</script>", html)[1]
    )
    stored = re.findall(r"<script type=text/plain id=(case-\d)>(.*?)</script>", html)
    volumes = {}
    for name, content in stored:
        file = page.with_name(f"{name}.nii.gz")
        file.write_bytes(base64.b64decode(content))
        volumes[name] = read_nifti(file)
    return scene, volumes


def test_a_page_holds_the_volumes_as_they_are(files):
    page = view_files(files["image"], [files["heart"], files["chance"]])
    assert page == Path("image.html")
    scene, volumes = scene_in(page)
    for n, file in enumerate(files.values()):
        original = read_nifti(file)
        assert volumes[f"case-{n}"].shares_grid(original)
        torch.testing.assert_close(
            volumes[f"case-{n}"].data, original.data, rtol=0, atol=0, check_dtype=False
        )
    heart, chance = scene["layers"]
    assert (heart["name"], heart["kind"], chance["kind"]) == ("heart", "mask", "map")
    assert heart["labels"] == {"1": ["label 1", "#e69f00"], "2": ["label 2", "#56b4e9"]}
    vox = torch.tensor(scene["vox_from_world"]) @ torch.tensor([*scene["start_mm"], 1.0])
    i, j, k = vox[:3].round().int().tolist()
    assert read_nifti(files["heart"]).data[0, i, j, k] > 0  # it begins in the mask
    assert "x 20 x 6 voxels of 1.41 x 1.41 x 6 mm" in page.read_text()


def test_masks_may_have_names_and_one_label_that_of_the_file(files):
    write_nifti("scar.nii.gz", Volume(torch.ones(1, *SHAPE, dtype=torch.bool), TILTED))
    scene, _ = scene_in(view_files(files["image"], ["scar.nii.gz"], "out.html"))
    assert scene["layers"][0]["labels"] == {"1": ["scar", "#e69f00"]}
    scene, _ = scene_in(view_files(files["image"], {"drawn": "scar.nii.gz"}, "out.html"))
    assert scene["layers"][0]["name"] == "drawn"


def test_masks_of_one_name_are_told_from_each_other(files):
    for folder in ("first", "second"):
        Path(folder).mkdir()
        Path(folder, "scar.nii.gz").write_bytes(files["heart"].read_bytes())
    scene, _ = scene_in(view_files(files["image"], ["first/scar.nii.gz", "second/scar.nii.gz"]))
    assert [layer["name"] for layer in scene["layers"]] == ["first/scar", "second/scar"]
    Path("other").mkdir()
    Path("first").rename("other/first")
    twice = ["first/scar.nii.gz", "other/first/scar.nii.gz"]
    Path("second").rename("first")
    scene, _ = scene_in(view_files(files["image"], twice))
    assert [layer["name"] for layer in scene["layers"]] == twice


def test_other_grids_are_shown_and_said(files):
    write_nifti(
        "coarse.nii.gz", Volume(torch.ones(1, 4, 4, 3), torch.diag(torch.tensor([5.0, 5, 9, 1])))
    )
    text = view_files(files["image"], ["coarse.nii.gz"], "out.html").read_text()
    assert "coarse lies on another grid than the image: it is resampled to it." in text


def test_values_are_stored_small_and_finite(files):
    data = torch.tensor([0.0, np.nan, np.inf, 3.0], dtype=torch.float64).reshape(1, 2, 2, 1)
    write_nifti("odd.nii", Volume(data, TILTED))
    write_nifti("ints.nii", Volume(torch.tensor([0, 7, 3, 300]).reshape(1, 2, 2, 1), TILTED))
    write_nifti("long.nii", Volume(torch.tensor([0, 7, 3, 70000]).reshape(1, 2, 2, 1), TILTED))
    dtypes = {"odd": torch.float32, "ints": torch.int16, "long": torch.float32}
    for name, dtype in dtypes.items():
        _, volumes = scene_in(view_files(f"{name}.nii"))
        assert volumes["case-0"].data.dtype == dtype
    assert scene_in(view_files("odd.nii"))[1]["case-0"].data.flatten().tolist() == [0, 0, 0, 3]


def test_a_single_slice_has_one_plane_and_time_points_a_slider(files):
    write_nifti("flat.nii.gz", Volume(torch.rand(1, 9, 8, 1), torch.eye(4)))
    page = view_files("flat.nii.gz")
    assert re.findall(r"data-plane=(\w+)", page.read_text()) == ["axial"]
    write_nifti("side.nii.gz", Volume(torch.rand(1, 1, 8, 9), torch.eye(4)))
    page = view_files("side.nii.gz")
    assert re.findall(r"data-plane=(\w+)", page.read_text()) == ["sagittal"]
    write_nifti("cine.nii.gz", Volume(torch.rand(5, 9, 8, 3), torch.eye(4)))
    page = view_files("cine.nii.gz")
    assert "of 5 <input class=frame type=range min=1 max=5" in page.read_text()
    scene, volumes = scene_in(view_files("cine.nii.gz", frame=2))
    assert (scene["frames"], volumes["case-0"].channels) == (1, 1)
    whole = read_nifti("cine.nii.gz").data[1:2]
    assert torch.equal(volumes["case-0"].data, whole)


def test_names_of_files_are_no_html(files):
    name = "<img src=x onerror=alert(1)>'\".nii.gz"
    Path(name).write_bytes(files["image"].read_bytes())
    mask = Path("</script><script>alert(1)</script>.nii.gz".replace("/", "\u2215"))
    mask.write_bytes(files["heart"].read_bytes())
    text = view_files(name, [mask], "out.html").read_text()
    assert "<img src=x" not in text
    assert "<script>alert" not in text


def test_a_folder_of_dicom_slices_is_an_image(tmp_path):
    test_dicom = pytest.importorskip("tests.data.test_dicom")
    folder = tmp_path / "series"
    folder.mkdir()
    for n in range(3):
        test_dicom.put(folder / f"{n}.dcm", 8 * n)
    page = view_files(folder, (), tmp_path / "out.html")
    assert scene_in(page)[1]["case-0"].shares_grid(read_dicom_folder(folder))


def test_synthetic_patients_are_called_so(files):
    mark_synthetic(Path())
    assert "<p>The patient is synthetic.</p>" in view_files(files["image"]).read_text()


def test_what_cannot_be_shown_is_said(files):
    image = files["image"]
    with pytest.raises(FileError, match=r"image.nii.gz must be a mask of at most 64 whole numbers"):
        view_files(image, [image])
    with pytest.raises(FileError, match=r"take 0\.\d+ MB in a page, more than 0.001; .*--max-mb"):
        view_files(image, most_mb=0.001)
    with pytest.raises(FileError, match=r"nowhere.nii: No such file"):
        view_files("nowhere.nii")
    Path("text.nii").write_text("text")
    with pytest.raises(FileError, match=r"text\.nii"):
        view_files("text.nii")
    with pytest.raises(FileError, match=r"view: no/out\.html: No such file or directory"):
        view_files(image, (), "no/out.html")
    write_nifti("cine.nii.gz", Volume(torch.rand(5, *SHAPE), TILTED))
    with pytest.raises(
        FileError, match=r"--frame must be a time point of cine.nii.gz, 1 to 5; got 6"
    ):
        view_files("cine.nii.gz", frame=6)
    write_nifti("two.nii.gz", Volume(torch.ones(2, *SHAPE), TILTED))
    with pytest.raises(FileError, match=r"two.nii.gz must have one time point, or 5 as cine"):
        view_files("cine.nii.gz", ["two.nii.gz"])


def test_differences_of_two_masks_are_named():
    image = Volume(torch.zeros(1, 5, 1, 1), torch.eye(4))
    predicted, reference = (
        image.with_data(torch.tensor(values, dtype=torch.uint8).reshape(1, 5, 1, 1))
        for values in ([0, 1, 1, 0, 1], [0, 1, 2, 1, 0])
    )
    scene = scene_of_picture("a", Picture(image, predicted, reference), {1: "scar"})
    assert [layer.name for layer in scene.layers] == ["prediction", "reference", "difference"]
    assert scene.layers[2].volume.data.flatten().tolist() == [0, 1, 4, 2, 3]
    assert [layer.shown for layer in scene.layers] == [True, False, False]
    scene = scene_of_picture("a", Picture(image, predicted, before=reference), {1: "scar"})
    assert {layer.name: layer.shown for layer in scene.layers} == {
        "before registration": False,
        "prediction": True,
    }


def test_a_crop_keeps_positions():
    image = Volume(torch.arange(24000.0).reshape(1, 40, 30, 20), TILTED)
    mask = torch.zeros(1, 40, 30, 20, dtype=torch.uint8)
    mask[:, 20, 15, 10] = 1
    scene = scene_of_picture("a", Picture(image, image.with_data(mask)), {})
    cropped = crop_to_labels(scene, 7.0)
    assert cropped.image.shape == (11, 11, 3)
    place = cropped.layers[0].volume.data[0].nonzero()[0]
    assert cropped.image.data[0][tuple(place)] == image.data[0, 20, 15, 10]
    world = [
        (volume.world_from_vox @ torch.tensor([*voxel, 1.0]).double()).tolist()
        for volume, voxel in ((cropped.image, place.tolist()), (image, [20, 15, 10]))
    ]
    assert world[0] == pytest.approx(world[1])
    empty = scene_of_picture("a", Picture(image, image.with_data(mask * 0)), {})
    assert crop_to_labels(empty, 7.0) is empty


def test_a_patient_of_a_run(tmp_path, monkeypatch):
    training_task.install(monkeypatch.setattr)
    changes = training_task.SMALL
    run = train("siamese_lesion", "nowhere", tmp_path / "r", steps=1, changes=changes, device="cpu")
    name = run.plan.split.test[0]
    page = view_case(run, name)
    assert page == run.path / f"view-{name}.html"
    assert "<p class=subtitle>siamese_lesion; a test patient</p>" in page.read_text()
    assert "synthetic" not in page.read_text()
    scene, _ = scene_in(page)
    assert scene["layers"][0]["labels"] == {"1": ["lesion", "#e69f00"]}
    with pytest.raises(FileError, match="has no patient subject; did you mean subject"):
        view_case(run, "subject", tmp_path / "out.html", CaseOptions(data="elsewhere"))


def test_niivue_is_the_one_that_is_recorded_and_has_its_licences():
    record = json.loads(asset("niivue/version.json"))
    bundle = gzip.decompress(asset("niivue/niivue.umd.js.gz"))
    assert hashlib.sha256(bundle).hexdigest() == record["sha256"]
    assert record["licence"] == "BSD-2-Clause"
    assert b"Redistributions in binary form must reproduce" in asset("niivue/LICENSE")
    notices = asset("niivue/NOTICES").decode()
    assert {"fflate", "gl-matrix", "nifti-reader-js"} <= {
        *re.findall(r"^([\w-]+) [\d.]+$", notices, re.M)
    }


def test_every_asset_is_part_of_a_wheel():
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["cmrfast"]
    packed = {path for pattern in patterns for path in (ROOT / "cmrfast").glob(pattern)}
    there = {path for path in (ROOT / "cmrfast/runs/assets").rglob("*") if path.is_file()}
    assert there
    assert there <= packed


READY = "document.querySelector('.viewer').classList.contains('ready')"
#: Of the canvas as it is drawn now: the spread of brightness, and how much of it has a colour.
MEASURE = """(() => {
    const nv = document.querySelector('.viewer').niivue;
    nv.drawScene();
    const gl = nv.gl, { width, height } = gl.canvas, bytes = new Uint8Array(4 * width * height);
    gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, bytes);
    const count = width * height;
    let sum = 0, squares = 0, coloured = 0;
    for (let n = 0; n < bytes.length; n += 4) {
        const [r, g, b] = bytes.subarray(n, n + 3);
        sum += r; squares += r * r;
        coloured += Math.max(r, g, b) - Math.min(r, g, b) > 60;
    }
    return [Math.sqrt(squares / count - (sum / count) ** 2), coloured / count];
})()"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_shows_image_and_overlays(files):
    page = view_files(files["image"], [files["heart"], files["chance"]])
    with Browser(page, width=600, height=500) as browser:
        browser.wait(READY)
        spread, both = browser.run(MEASURE)
        assert spread > 20
        assert both > 0.01
        browser.run("document.querySelectorAll('[data-layer]').forEach((box) => box.click())")
        spread, none = browser.run(MEASURE)
        assert spread > 20
        assert none < 0.2 * both
        browser.run("document.querySelector('[data-layer]').click()")
        assert browser.run(MEASURE)[1] > 2 * none
        for plane in ("axial", "coronal", "render"):
            browser.run(f"document.querySelector('[data-plane={plane}]').click()")
            assert browser.run(MEASURE)[0] > 10
        assert (browser.errors, browser.requests) == ([], [])


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_says_where_the_crosshair_is(files):
    page = view_files(files["image"], [files["heart"]])
    at = "(document.querySelector('.viewer').niivue)"
    with Browser(page, width=400, height=700, dark=True) as browser:
        browser.wait(READY)
        for voxel, label in (([2, 3, 1], ""), ([7, 9, 2], "label 1"), ([11, 9, 3], "label 2")):
            mm = (TILTED @ torch.tensor([*voxel, 1.0]).double())[:3].tolist()
            browser.run(f"{at}.scene.crosshairPos = {at}.mm2frac({mm}, 0, true)")
            browser.run(f"{at}.createOnLocationChange()")
            shown = browser.run("document.querySelector('.readout').textContent")
            value = 100 * voxel[0] + 10 * voxel[1] + voxel[2] + 500
            x, y, z = (f"{number:.1f}" for number in mm)
            wanted = f"Voxel {', '.join(map(str, voxel))} · x {x}, y {y}, z {z} mm · value {value}"
            assert shown == wanted + (f" · heart: {label}" if label else "")
        assert browser.run("document.documentElement.scrollWidth") == 400
        assert (browser.errors, browser.requests) == ([], [])


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_time_points_are_moved_through(files):
    ramp = torch.arange(3.0)[:, None, None, None].expand(3, *SHAPE) * 100 + 50
    write_nifti("cine.nii.gz", Volume(ramp, TILTED))
    with Browser(view_files("cine.nii.gz"), width=600, height=500) as browser:
        browser.wait(READY)
        readout = "document.querySelector('.readout').textContent"
        assert browser.run(readout).endswith("value 50")
        browser.run(
            "(() => { const f = document.querySelector('.frame'); f.value = 3;"
            "f.dispatchEvent(new Event('input')); })()"
        )
        browser.wait(f"{readout}.endsWith('value 250')", 10)
        assert browser.errors == []


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_without_webgl_the_page_shows_slices(files):
    with Browser(view_files(files["image"], [files["heart"]]), gl=False) as browser:
        reason = browser.run("document.querySelector('.reason').textContent")
        assert reason.startswith("This browser has no WebGL 2, which the viewer needs; slices are")
        assert browser.run("document.querySelector('.static img').clientWidth") > 100
        assert browser.run("document.querySelector('.stage').clientHeight") == 0
        assert (browser.errors, browser.requests) == ([], [])
