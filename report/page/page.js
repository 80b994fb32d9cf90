"use strict";
// The class filter: what carries another label is hidden.
for (const select of document.querySelectorAll("select[data-run]")) {
  const run = document.getElementById(select.dataset.run);
  const output = document.getElementById(select.dataset.run + "-shown");
  const show = () => {
    let shown = 0;
    for (const part of run.querySelectorAll("[data-label]")) {
      part.hidden = select.value !== "" && part.dataset.label !== select.value;
      if (part.tagName === "LI" && !part.hidden) shown += 1;
    }
    for (const groups of run.querySelectorAll(".groups")) groups.open ||= select.value !== "";
    run.classList.toggle("filtered", select.value !== "");
    output.textContent = shown + " pictures";
  };
  select.addEventListener("change", show);
  show();
}
