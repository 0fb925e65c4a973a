/** On a phone the cells of a table of text stand one below the other, each under the name of its column. */
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll(".bd-article table.table")) {
    const names = [...table.querySelectorAll("thead th")].map((cell) => cell.textContent.trim());
    const rows = [...table.querySelectorAll("tbody tr")];
    const longest = Math.max(0, ...rows.flatMap((row) => [...row.children].map((cell) => cell.textContent.length)));
    if (names.length < 3 || longest < 60) continue;
    table.classList.add("stacked");
    for (const row of rows) [...row.children].forEach((cell, i) => (cell.dataset.column = names[i] ?? ""));
  }
});
