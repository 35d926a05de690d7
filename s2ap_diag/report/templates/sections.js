// Sections: opened by a link to them, all at once, and for printing.
const sections = [...document.querySelectorAll("details.run")];

function openTarget() {
  const target = sections.find((section) => "#" + section.id === location.hash);
  if (target) {
    target.open = true;
    target.scrollIntoView();
  }
}

addEventListener("hashchange", openTarget);
table.addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (link && link.hash === location.hash) openTarget();
});
openTarget();

const controls = document.createElement("div");
controls.className = "controls";
for (const [text, open] of [["Open all", true], ["Close all", false]]) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = text;
  button.addEventListener("click", () => sections.forEach((section) => { section.open = open; }));
  controls.append(button);
}
document.getElementById("each").after(controls);

let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open], .columns)")];
  closed.forEach((details) => { details.open = true; });
});
addEventListener("afterprint", () => closed.forEach((details) => { details.open = false; }));


// Arms: a click on one in the key of a card shows and hides it in the card's pictures.
for (const item of document.querySelectorAll(".arms [data-arm]")) {
  const button = document.createElement("button");
  button.type = "button";
  button.setAttribute("aria-pressed", "true");
  button.append(...item.childNodes);
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(shown));
    item.closest(".card").querySelectorAll(`svg [data-arm="${item.dataset.arm}"]`).forEach((drawn) => {
      drawn.classList.toggle("off", !shown);
    });
  });
  item.append(button);
}
