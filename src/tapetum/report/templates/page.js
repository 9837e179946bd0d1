"use strict";
for (const table of document.querySelectorAll("table[data-shown]")) {
  const body = table.tBodies[0], shown = Number(table.dataset.shown);
  const key = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
  };
  const compare = (a, b) => {
    if (a === b) return 0;
    if (a === "" || Number.isNaN(a)) return 1; // what is missing stays last, whatever the direction
    if (b === "" || Number.isNaN(b)) return -1;
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  };
  [...table.tHead.rows[0].cells].forEach((head, column) => head.addEventListener("click", () => {
    const falling = head.getAttribute("aria-sort") !== "descending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const rows = [...body.rows];
    rows.sort((one, two) => {
      const a = key(one, column), b = key(two, column);
      const missing = a === "" || b === "" || Number.isNaN(a) || Number.isNaN(b);
      return missing || !falling ? compare(a, b) : -compare(a, b);
    });
    rows.forEach((row, rank) => { row.classList.toggle("later", rank >= shown); body.append(row); });
  }));
  const more = table.closest("section").querySelector(".more");
  if (more) more.addEventListener("click", () => { table.classList.add("all"); more.remove(); });
}
