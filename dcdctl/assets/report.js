"use strict";
// Filters of the queries. What is chosen stands in the address after #, so that a link shows what its sender saw.
(() => {
  const SHOWN_AT_FIRST = 12;
  const form = document.getElementById("filters");
  if (!form) return;
  const list = document.getElementById("query-list");
  const told = document.getElementById("told");
  const more = document.getElementById("more");
  const { models, sizes, outcomes } = JSON.parse(document.getElementById("outcomes").textContent);
  const cards = Array.from(list.children, (node) => ({
    node,
    way: node.dataset.way,
    ranks: node.dataset.ranks.split(" ").map(Number),
    words: node.querySelector(".words").textContent.toLowerCase(),
  }));
  const shows = {
    all: () => true,
    wins: (ours, base) => ours < base,
    losses: (ours, base) => ours > base,
    "both-hit": (ours, base) => ours === 1 && base === 1,
    "both-miss": (ours, base) => ours > 1 && base > 1,
  };
  const usual = Object.fromEntries(new FormData(form));
  let numShown = SHOWN_AT_FIRST;

  function chosen() {
    const values = Object.fromEntries(new FormData(form));
    const place = (name) => Math.max(0, models.indexOf(values[name]));
    return { ...values, ours: place("ours"), base: place("base") };
  }

  function matching({ show, way, ours, base, words }) {
    const wanted = words.trim().toLowerCase().split(/\s+/);
    const gain = ({ ranks }) => Math.log(ranks[base] / ranks[ours]);
    const found = cards.filter(
      (card) =>
        (way === "both" || card.way === way) && shows[show](card.ranks[ours], card.ranks[base]) && wanted.every((word) => card.words.includes(word)),
    );
    if (show === "wins") found.sort((one, other) => gain(other) - gain(one));
    if (show === "losses") found.sort((one, other) => gain(one) - gain(other));
    return found;
  }

  function sentence(count, { way, ours, base }) {
    const ways = way === "both" ? Object.keys(sizes) : [way];
    const sum = (values) => values.reduce((total, value) => total + value, 0).toLocaleString("en");
    const of = (name) => sum(ways.map((one) => outcomes[one][ours][base][name]));
    const here = `${count.toLocaleString("en")} of the ${cards.filter((card) => ways.includes(card.way)).length} queries kept here.`;
    const all = `Of all ${sum(ways.map((one) => sizes[one]))}`;
    if (ours === base) return `${here} ${all} ${models[ours]} hits ${of("both_hit")} and misses ${of("both_miss")}.`;
    const score = `${models[ours]} wins ${of("wins")} and loses ${of("losses")} to ${models[base]}`;
    return `${here} ${all} ${score}; both hit ${of("both_hit")}, both miss ${of("both_miss")} in first place.`;
  }

  function draw() {
    const state = chosen();
    const found = matching(state);
    for (const { node } of cards) node.hidden = true;
    found.slice(0, numShown).forEach(({ node }) => {
      node.hidden = false;
      Array.from(node.querySelectorAll(".answer"), (part, place) =>
        part.classList.toggle("is-compared", models.length > 2 && (place === state.ours || place === state.base)),
      );
    });
    list.append(...found.map(({ node }) => node));
    told.textContent = sentence(found.length, state);
    more.hidden = found.length <= numShown;
    more.textContent = `Show ${Math.min(SHOWN_AT_FIRST, found.length - numShown)} more of ${found.length}`;
    for (const span of document.querySelectorAll(".ours")) span.textContent = models[state.ours];
  }

  // The links to sections use the address too.
  const isState = () => location.hash.includes("=");

  function readAddress() {
    const asked = new URLSearchParams(location.hash.slice(1));
    for (const [name, value] of Object.entries({ ...usual, ...Object.fromEntries(asked) })) {
      const field = form.elements.namedItem(name);
      const known = field instanceof RadioNodeList ? Array.from(field, (one) => one.value) : field && field.options && models;
      // What is not known, of another page or misspelt, is as if it were not there.
      if (field) field.value = known && !known.includes(value) ? usual[name] : value;
    }
  }

  function writeAddress() {
    const values = Object.entries(Object.fromEntries(new FormData(form)));
    const told = new URLSearchParams(values.filter(([name, value]) => value !== usual[name]));
    history.replaceState(null, "", `#${told.size ? told : "queries"}`);
  }

  form.addEventListener("input", () => {
    numShown = SHOWN_AT_FIRST;
    writeAddress();
    draw();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => {
    numShown += SHOWN_AT_FIRST;
    draw();
  });
  window.addEventListener("hashchange", () => {
    if (!isState()) return;
    readAddress();
    draw();
  });
  form.hidden = false;
  if (isState()) {
    readAddress();
    document.getElementById("queries").scrollIntoView();
  }
  draw();
})();
