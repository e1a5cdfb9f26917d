"use strict";
// Shows every section.viewer with NiiVue, which comes compressed in the page and starts when the
// first of them is opened. Nothing is loaded from anywhere else.
(() => {
  const PLANES = { axial: 0, coronal: 1, sagittal: 2, multiplanar: 3, render: 4 };
  const inPage = (id) => document.getElementById(id).textContent;
  let library;

  async function inflate(base64) {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  function load() {
    library ??= inflate(inPage("niivue-bundle")).then((code) => {
      const script = document.createElement("script");
      script.textContent = code;
      document.head.append(script);
      return window.niivue;
    });
    return library;
  }

  // Why there can be no viewer here; empty if there can.
  function reason() {
    if (!document.createElement("canvas").getContext("webgl2")) {
      return "This browser has no WebGL 2, which the viewer needs; slices are shown as pictures instead.";
    }
    if (typeof DecompressionStream === "undefined") {
      return "This browser is too old for the viewer; slices are shown as pictures instead.";
    }
    return "";
  }

  function colours(labels) {
    const values = Object.keys(labels).map(Number);
    const part = (n) => values.map((v) => parseInt(labels[v][1].slice(1 + 2 * n, 3 + 2 * n), 16));
    return {
      R: [0, ...part(0)], G: [0, ...part(1)], B: [0, ...part(2)],
      A: [0, ...values.map(() => 255)], I: [0, ...values],
      labels: ["", ...values.map((v) => labels[v][0])],
    };
  }

  async function addVolumes(nv, scene, NVImage) {
    const [low, high] = scene.window;
    const one = (id, options) =>
      NVImage.loadFromBase64({ base64: inPage(id), name: `${id}.nii.gz`, ...options });
    nv.addVolume(await one(scene.volume, { colormap: "gray", cal_min: low, cal_max: high }));
    for (const layer of scene.layers) {
      const map = layer.kind === "map";
      const volume = await one(layer.volume, {
        opacity: 0,
        ...(map ? { colormap: "inferno", cal_min: 0.02, cal_max: 1 } : {}),
      });
      if (!map) volume.setColormapLabel(colours(layer.labels));
      nv.addVolume(volume);
    }
  }

  const format = (x) => (Number.isInteger(x) ? `${x}` : `${Number(x.toPrecision(4))}`);

  // Position and values at the crosshair, in the voxels of the file, counted from 0 as in Python.
  function describe(scene, location, shown) {
    const mm = Array.from(location.mm).slice(0, 3);
    const vox = scene.vox_from_world.slice(0, 3).map((row, axis) => {
      const x = Math.round(row[0] * mm[0] + row[1] * mm[1] + row[2] * mm[2] + row[3]);
      return Math.min(Math.max(x, 0), scene.shape[axis] - 1) + 0;
    });
    const [x, y, z] = mm.map((value) => value.toFixed(1));
    const parts = [`Voxel ${vox.join(", ")}`, `x ${x}, y ${y}, z ${z} mm`];
    location.values.forEach(({ value }, n) => {
      const layer = scene.layers[n - 1];
      if (!layer) parts.push(`value ${format(value)}`);
      else if (!shown.includes(n)) return;
      else if (layer.kind === "map") parts.push(`${layer.name} ${value.toFixed(2)}`);
      else if (value) parts.push(`${layer.name}: ${layer.labels[Math.round(value)]?.[0] ?? value}`);
    });
    return parts.join(" · ");
  }

  function connect(section, nv, scene) {
    const find = (selector) => section.querySelector(selector);
    const buttons = section.querySelectorAll("[data-plane]");
    const switches = section.querySelectorAll("[data-layer]");
    const show = (plane) => {
      nv.setSliceType(PLANES[plane]);
      buttons.forEach((b) => b.setAttribute("aria-pressed", b.dataset.plane === plane));
    };
    const readout = find(".readout");
    nv.onLocationChange = (location) => {
      const shown = [...switches].filter((s) => s.checked).map((s) => Number(s.dataset.layer));
      readout.textContent = describe(scene, location, shown);
    };
    const fade = () => {
      nv.setOpacity(0, find(".image").value / 100);
      switches.forEach((s) => {
        nv.setOpacity(Number(s.dataset.layer), s.checked ? find(".opacity").value / 100 : 0);
      });
      nv.createOnLocationChange();
    };
    buttons.forEach((b) => b.addEventListener("click", () => show(b.dataset.plane)));
    switches.forEach((s) => s.addEventListener("change", fade));
    find(".image").addEventListener("input", fade);
    find(".opacity").addEventListener("input", fade);
    find(".smooth").addEventListener("change", (e) => nv.setInterpolation(!e.target.checked));
    find(".frame")?.addEventListener("input", (e) => {
      find("output").textContent = e.target.value;
      [scene, ...scene.layers].forEach((item, n) => {
        if (item.frames > 1) nv.setFrame4D(nv.volumes[n].id, e.target.value - 1);
      });
    });
    nv.scene.crosshairPos = nv.mm2frac(scene.start_mm, 0, true);
    fade();
    show(scene.flat ? scene.plane : "multiplanar");
  }

  async function open(section) {
    const scene = JSON.parse(section.querySelector("script.scene").textContent);
    const stage = section.querySelector(".stage");
    const { Niivue, NVImage } = await load();
    stage.hidden = false;
    section.querySelector("button.open")?.remove();
    const nv = new Niivue({
      backColor: [0, 0, 0, 1], crosshairColor: [0.55, 0.85, 1, 0.8], crosshairWidth: 0.3,
      crosshairWidthUnit: "percent", crosshairGap: 2, fontColor: [0.85, 0.88, 0.92, 1],
      isRadiologicalConvention: true, isNearestInterpolation: true, dragAndDropEnabled: false,
      show3Dcrosshair: true, multiplanarShowRender: scene.flat ? 0 : 1, logLevel: "error",
    });
    await nv.attachToCanvas(section.querySelector("canvas"));
    await addVolumes(nv, scene, NVImage);
    connect(section, nv, scene);
    section.niivue = nv; // for scripts and tests
    section.classList.add("ready");
  }

  function explain(section, sentence) {
    section.querySelector("button.open")?.remove();
    section.querySelector(".stage").hidden = true;
    section.querySelector(".reason").textContent = sentence;
    section.querySelector(".static").hidden = false;
  }

  for (const section of document.querySelectorAll("section.viewer")) {
    const sentence = reason();
    const start = () => open(section).catch((error) => {
      console.error(error);
      explain(section, `The viewer failed (${error.message}); slices are shown as pictures instead.`);
    });
    if (sentence) explain(section, sentence);
    else if (section.dataset.opened === "1") start();
    else section.querySelector("button.open").addEventListener("click", start);
  }
})();
