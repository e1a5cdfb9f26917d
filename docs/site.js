/* A button on each block of code that copies it. */
for (const block of document.querySelectorAll(".language-bash, .language-python")) {
  const button = document.createElement("button");
  button.className = "copy";
  button.textContent = "copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(block.querySelector("code").textContent);
    button.textContent = "copied";
  });
  block.append(button);
}
