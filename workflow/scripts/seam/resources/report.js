"use strict";

// A click on the name of a column sorts its table by it; a second click turns the order round.
function compare(first, second) {
  const [a, b] = [first, second].map((cell) => cell.dataset.value ?? cell.textContent.trim());
  if (a === "" || b === "") return a === b ? 0 : a === "" ? 1 : -1; // cells without a value come last
  const [x, y] = [Number(a), Number(b)];
  return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, undefined, { numeric: true }) : x - y;
}

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, place) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0];
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [a.cells[place], b.cells[place]];
        const order = compare(x, y);
        const empty = [x, y].some((cell) => (cell.dataset.value ?? cell.textContent.trim()) === "");
        return down && !empty ? -order : order;
      });
      body.append(...rows);
    });
  });
}

// On a narrow screen figures shrink to its width; a click shows one larger, and it scrolls sideways.
for (const zoom of document.querySelectorAll(".zoom"))
  zoom.addEventListener("click", () => zoom.classList.toggle("large"));

// A link to a problem opens it.
function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) {
    target.open = true;
    target.scrollIntoView();
  }
}
addEventListener("hashchange", openTarget);
openTarget();

// The field above the problems shows those whose names contain what is typed.
const filter = document.getElementById("filter");
filter?.addEventListener("input", () => {
  const wanted = filter.value.toLowerCase();
  for (const problem of document.querySelectorAll("details.problem"))
    problem.hidden = !problem.querySelector("summary").textContent.toLowerCase().includes(wanted);
});
