"use strict";
// Which pictures of the clips are seen.
for (const choice of document.querySelectorAll("#shown input")) {
  choice.addEventListener("change", () => {
    for (const part of document.querySelectorAll("[data-kind]")) {
      part.hidden = part.dataset.kind !== choice.value;
    }
  });
}

// Tables sort by a column: numbers the largest first, words from A to Z; again: the other way.
function sortBy(table, column, button) {
  const rows = [...table.tBodies[0].rows];
  const heads = [...table.rows[0].cells];
  const up = button.parentElement.getAttribute("aria-sort");
  const key = (row) => row.cells[column].textContent.trim();
  const areNumbers = rows.every((row) => Number.isFinite(Number(key(row))));
  const first = areNumbers ? "descending" : "ascending";
  const order = up === first ? (areNumbers ? "ascending" : "descending") : first;
  const sign = order === "ascending" ? 1 : -1;
  rows.sort((a, b) => sign * (areNumbers
    ? Number(key(a)) - Number(key(b))
    : key(a).localeCompare(key(b), undefined, { numeric: true })));
  for (const head of heads) head.removeAttribute("aria-sort");
  button.parentElement.setAttribute("aria-sort", order);
  table.tBodies[0].append(...rows);
}
for (const table of document.querySelectorAll("table.sortable")) {
  [...table.rows[0].cells].forEach((head, column) => {
    if (head.textContent === "spread") return;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "link";
    button.textContent = head.textContent;
    button.addEventListener("click", () => sortBy(table, column, button));
    head.replaceChildren(button);
  });
}
