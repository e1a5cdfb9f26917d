"use strict";
// Sliders through the slices; what is folded in is printed as well.
(() => {
  for (const slices of document.querySelectorAll(".slices")) {
    const images = slices.querySelectorAll("img"), slider = slices.querySelector("input");
    const show = () => {
      images.forEach((image, n) => image.classList.toggle("on", n === Number(slider.value)));
      slices.querySelector("output").textContent = images[slider.value].alt;
    };
    slider.addEventListener("input", show);
    show();
  }
  addEventListener("beforeprint", () => {
    document.querySelectorAll(".about details").forEach((part) => { part.open = true; });
  });
})();
