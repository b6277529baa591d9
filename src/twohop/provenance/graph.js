"use strict";
(() => {
  const svg = document.getElementById("graph"), panel = document.getElementById("record");
  const details = JSON.parse(document.getElementById("details").textContent);
  const boxes = [...svg.querySelectorAll(".box")], edges = [...svg.querySelectorAll("#edges path")];
  const place = (box) => [Number(box.dataset.x), Number(box.dataset.y)];
  let chosen = null;

  const reach = (id, from, to) => {
    const seen = new Set([id]), todo = [id];
    while (todo.length) {
      const at = todo.pop();
      for (const edge of edges) {
        if (edge.dataset[from] === at && !seen.has(edge.dataset[to])) {
          seen.add(edge.dataset[to]);
          todo.push(edge.dataset[to]);
        }
      }
    }
    return seen;
  };
  const light = (box) => {
    const id = box?.dataset.id;
    const up = box ? reach(id, "b", "a") : new Set(), down = box ? reach(id, "a", "b") : new Set();
    svg.classList.toggle("lit", Boolean(box));
    for (const b of boxes) {
      b.classList.toggle("on", b === box);
      b.classList.toggle("up", b !== box && up.has(b.dataset.id));
      b.classList.toggle("down", b !== box && down.has(b.dataset.id));
    }
    for (const e of edges) {
      e.classList.toggle("up", up.has(e.dataset.a) && up.has(e.dataset.b));
      e.classList.toggle("down", down.has(e.dataset.a) && down.has(e.dataset.b));
    }
  };

  const add = (tag, text, parent) => {
    const element = document.createElement(tag);
    element.textContent = text;
    return parent.appendChild(element);
  };
  const list = (title, items) => {
    add("h3", title, panel);
    const ul = add("ul", "", panel);
    for (const text of items.length ? items : ["none"]) add("li", text, ul);
  };
  const show = (box) => {
    panel.replaceChildren();
    const run = details[box.dataset.id];
    add("h2", run ? run.title : box.dataset.id.replace("file:", ""), panel);
    if (!run) return add("p", "A file of the repository: no run made it.", panel);
    const facts = add("dl", "", panel);
    const pairs = {
      run: run.run_id, started: run.started, seconds: run.seconds, "peak MiB": run.peak_mib,
      commit: (run.commit || "none") + (run.dirty ? " + edits" : ""), key: run.key,
      host: [run.host.system, run.host.machine, `${run.host.cores} cores`, run.host.accelerator].filter(Boolean).join(", "),
    };
    for (const [key, value] of Object.entries(pairs)) {
      add("dt", key, facts);
      add("dd", value, facts);
    }
    list("Wrote", run.outputs.map((f) => `${f.path} (${f.bytes} bytes, sha256 ${f.sha256.slice(0, 12)})`));
    list("Read", run.inputs.map((f) => `${f.path} (sha256 ${f.sha256.slice(0, 12)})`));
    list("Models", run.models.map((m) => `${m.name}: ${m.source}, revision ${m.revision.slice(0, 12)}`));
    list("Summary", Object.entries(run.summary).map(([k, v]) => `${k} ${v}`));
    add("h3", "Params", panel);
    add("pre", JSON.stringify(run.params, null, 1), panel);
    list("Versions", Object.entries(run.versions).map(([k, v]) => `${k} ${v}`));
  };
  const choose = (box) => {
    chosen = box;
    light(box);
    if (box) show(box);
  };

  for (const box of boxes) {
    box.addEventListener("pointerenter", () => chosen || light(box));
    box.addEventListener("pointerleave", () => chosen || light(null));
    box.addEventListener("focus", () => light(box));
    box.addEventListener("blur", () => light(chosen));
    box.addEventListener("click", () => choose(box));
  }
  const step = (box, dx, dy) => {
    const [x, y] = place(box);
    const far = (b) => {
      const [ahead, aside] = [(place(b)[0] - x) * dx + (place(b)[1] - y) * dy, Math.abs((place(b)[0] - x) * dy) + Math.abs((place(b)[1] - y) * dx)];
      return ahead > 0 ? ahead + 3 * aside : Infinity;
    };
    const next = boxes.reduce((best, b) => (far(b) < far(best) ? b : best), box);
    next.focus();
  };
  const arrows = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
  document.addEventListener("keydown", (event) => {
    const box = document.activeElement.closest?.(".box");
    if (event.key === "Escape") {
      choose(null);
      document.activeElement.blur();
    } else if (box && arrows[event.key]) {
      event.preventDefault();
      step(box, ...arrows[event.key]);
    } else if (box && (event.key === "Enter" || event.key === " ")) {
      event.preventDefault();
      choose(box);
    } else if (document.activeElement.tagName !== "INPUT" && "+-0".includes(event.key)) {
      zoom({ "+": 1.25, "-": 0.8, 0: 0 }[event.key]);
    }
  });

  const search = document.getElementById("search");
  const texts = new Map(boxes.map((b) => [b, `${b.getAttribute("aria-label")} ${b.dataset.id} ${JSON.stringify(details[b.dataset.id] || "")}`.toLowerCase()]));
  const seek = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const hits = boxes.filter((b) => words.length && words.every((w) => texts.get(b).includes(w)));
    svg.classList.toggle("seeking", words.length > 0);
    for (const b of boxes) b.classList.toggle("hit", hits.includes(b));
    document.getElementById("hits").textContent = words.length ? `${hits.length} found` : "";
    return hits;
  };
  search.addEventListener("input", seek);
  search.addEventListener("keydown", (event) => {
    const hits = event.key === "Enter" ? seek() : [];
    if (hits.length) {
      hits[0].focus();
      choose(hits[0]);
    }
  });

  const whole = svg.getAttribute("viewBox").split(" ").map(Number);
  let view = [...whole];
  const look = (next) => {
    view = next;
    svg.setAttribute("viewBox", view.join(" "));
  };
  const point = (event) => new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  const zoom = (factor, at = { x: view[0] + view[2] / 2, y: view[1] + view[3] / 2 }) => {
    if (!factor) return look([...whole]);
    const f = Math.min(Math.max(factor, view[2] / (4 * whole[2])), view[2] / 200);
    look([at.x - (at.x - view[0]) / f, at.y - (at.y - view[1]) / f, view[2] / f, view[3] / f]);
  };
  for (const button of document.querySelectorAll("[data-zoom]")) button.addEventListener("click", () => zoom(Number(button.dataset.zoom)));
  svg.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(event.deltaY < 0 ? 1.15 : 1 / 1.15, point(event));
  }, { passive: false });
  let grip = null;
  svg.addEventListener("pointerdown", (event) => (grip = event.target.closest(".box") ? null : point(event)));
  addEventListener("pointerup", () => (grip = null));
  svg.addEventListener("pointermove", (event) => {
    if (!grip) return;
    const at = point(event);
    look([view[0] + grip.x - at.x, view[1] + grip.y - at.y, view[2], view[3]]);
  });
})();
