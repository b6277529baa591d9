"use strict";
(() => {
  const table = document.getElementById("answers");
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => ({
    row,
    cells: [...row.cells].map((cell) => cell.textContent.trim()),
    text: row.textContent.toLowerCase(),
  }));
  const field = (id) => document.getElementById(id);
  const show = () => {
    const words = field("find").value.toLowerCase().split(/\s+/).filter(Boolean);
    const [model, condition, grade] = ["by-model", "by-condition", "by-grade"].map((id) => field(id).value);
    let shown = 0, right = 0;
    for (const { row, cells, text } of rows) {
      const hit = words.every((w) => text.includes(w)) && (!model || cells[3] === model) &&
        (!condition || cells[4] === condition) && (!grade || cells[6].startsWith(grade));
      row.hidden = !hit;
      shown += hit;
      right += hit && cells[6].startsWith("right");
    }
    field("count").textContent = `${shown} answers, ${right} right`;
  };
  for (const id of ["find", "by-model", "by-condition", "by-grade"]) field(id).addEventListener("input", show);
  for (const button of table.querySelectorAll("th button")) {
    button.addEventListener("click", () => {
      const head = button.parentElement;
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const th of table.tHead.rows[0].cells) th.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const i = head.cellIndex;
      rows.sort((a, b) => a.cells[i].localeCompare(b.cells[i]) * (up ? 1 : -1));
      body.append(...rows.map((r) => r.row));
    });
  }
  show();

  const cited = (event) => event.target.closest("[data-record]");
  const say = (text) => {
    const box = field("copied");
    box.textContent = text;
    box.hidden = false;
    clearTimeout(say.timer);
    say.timer = setTimeout(() => (box.hidden = true), 6000);
  };
  document.addEventListener("mouseover", (event) => {
    const at = cited(event);
    if (at && !at.title) at.title = at.dataset.record;
  });
  document.addEventListener("click", (event) => {
    const at = cited(event);
    if (!at || !getSelection().isCollapsed) return;
    const command = `twohop lineage view '${at.dataset.record}'`;
    const copied = navigator.clipboard ? navigator.clipboard.writeText(command) : Promise.reject();
    copied.then(() => say(`copied: ${command}`), () => say(command));
  });
})();
