"use strict";
// Every two seconds: what the runs are doing; and, when their files have changed, the parts of the page that differ.
const EVERY = 2000;
const follows = document.body.dataset.follows;  // what of the runs this page shows
let version = document.body.dataset.version;
const was = new Map();  // part -> its HTML as it came, before anything in it was opened

function keepOpen(from, to) {
  const before = [...from.querySelectorAll("details")];
  [...to.querySelectorAll("details")].forEach((each, k) => { if (before[k]) each.open = before[k].open; });
  from.querySelectorAll("input[type=checkbox]").forEach((box) => {
    const same = to.querySelector(`#${CSS.escape(box.id)}`);
    if (same) same.checked = box.checked;
  });
}

async function refresh() {
  const answer = await fetch(location.href, {cache: "no-store"});
  if (!answer.ok) return;  // the prompt is gone, because the run began anew: keep what was there
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  if (fresh.querySelectorAll(".legend label").length !== document.querySelectorAll(".legend label").length) {
    location.reload();  // another group of runs: other colours
    return;
  }
  version = fresh.body.dataset.version;
  for (const part of fresh.querySelectorAll("[data-part]")) {
    const here = document.getElementById(part.id);
    if (here && (was.get(part.id) ?? here.innerHTML) !== part.innerHTML) {
      const typing = here.contains(document.activeElement) && document.activeElement.matches("input, select");
      if (typing) continue;
      was.set(part.id, part.innerHTML);
      keepOpen(here, part);
      here.replaceChildren(...part.childNodes);
    }
  }
}

async function look() {
  const lost = document.getElementById("lost");
  try {
    if (!document.hidden) {
      const answer = await fetch("/now", {cache: "no-store"});
      if (!answer.ok) throw new Error(answer.status);
      const now = await answer.json();
      document.getElementById("now").innerHTML = now.html;
      if (String(now[follows]) !== version) await refresh();
      lost.hidden = true;
    }
  } catch (error) {
    lost.hidden = false;
  }
  setTimeout(look, EVERY);
}

setTimeout(look, EVERY);
