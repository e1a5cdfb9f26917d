// Search in pages that are opened from a disk: browsers start no worker there, so its script runs in
// a hidden frame. Material's plugin "offline" takes any polyfill of this name for its own.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    #frame = document.createElement("iframe");
    #ready; // the frame's window, once the script has run there

    constructor(url) {
      super();
      this.#frame.hidden = true;
      this.#frame.srcdoc = "";
      this.#ready = new Promise((resolve, reject) => {
        this.#frame.addEventListener("load", () => {
          const inner = this.#frame.contentWindow;
          inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
          const script = inner.document.createElement("script");
          script.addEventListener("load", () => resolve(inner));
          script.addEventListener("error", () => reject(new Error(`${url} cannot be loaded`)));
          script.src = url;
          inner.document.body.append(script);
        });
      });
      document.body.append(this.#frame);
    }

    async postMessage(data) {
      const inner = await this.#ready;
      inner.dispatchEvent(new inner.MessageEvent("message", { data }));
    }

    terminate() {
      this.#frame.remove();
    }
  };
}
