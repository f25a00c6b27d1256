"use strict";

// Sorting: a click on a header sorts by its column, a second click the other way. Numbers by value, the largest first;
// what has no number comes last. The average stays below.
const valueOf = (row, column) => {
  const cell = row.cells[column];
  return "value" in cell.dataset ? (cell.dataset.value === "" ? NaN : Number(cell.dataset.value)) : cell.textContent;
};

const compare = (a, b, direction) => {
  if (typeof a === "string" || typeof b === "string") return direction * String(a).localeCompare(String(b));
  if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
  return direction * (a - b);
};

for (const header of document.querySelectorAll("thead th")) {
  header.addEventListener("click", () => {
    const column = header.cellIndex;
    const body = header.closest("table").tBodies[0];
    const rows = [...body.rows];
    const numeric = rows.some((row) => typeof valueOf(row, column) === "number");
    const first = numeric ? "descending" : "ascending";
    const second = numeric ? "ascending" : "descending";
    const order = header.getAttribute("aria-sort") === first ? second : first;
    for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", order);
    const direction = order === "ascending" ? 1 : -1;
    body.append(...rows.sort((a, b) => compare(valueOf(a, column), valueOf(b, column), direction)));
  });
}

// The gallery: a case opens enlarged; buttons and arrow keys go on to its neighbours.
const viewer = document.getElementById("viewer");
const cases = [...document.querySelectorAll(".case")];
let current = 0;

const show = (number) => {
  current = (number + cases.length) % cases.length;
  viewer.querySelector(".enlarged").innerHTML = cases[current].innerHTML;
  if (!viewer.open) viewer.showModal();
};

cases.forEach((item, number) => item.addEventListener("click", () => show(number)));
viewer.addEventListener("click", (event) => {
  if (event.target === viewer || "close" in event.target.dataset) viewer.close();
  else if ("step" in event.target.dataset) show(current + Number(event.target.dataset.step));
});
viewer.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") show(current - 1);
  if (event.key === "ArrowRight") show(current + 1);
});

// Paper has no folds.
const folds = [...document.querySelectorAll("details")];
addEventListener("beforeprint", () => folds.forEach((fold) => (fold.open = true)));
