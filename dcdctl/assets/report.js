"use strict";
// Filters of the queries. The selection is in the address after #, so that a link shows what its sender saw.
(() => {
  const SHOWN_AT_FIRST = 12;
  const form = document.getElementById("filters");
  if (!form) return;
  const list = document.getElementById("query-list");
  const status = document.getElementById("status");
  const more = document.getElementById("more");
  const { models, sizes, outcomes } = JSON.parse(document.getElementById("outcomes").textContent);
  const cards = Array.from(list.children, (node) => ({
    node,
    direction: node.dataset.direction,
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
  const defaults = Object.fromEntries(new FormData(form));
  let numShown = SHOWN_AT_FIRST;

  function selection() {
    const values = Object.fromEntries(new FormData(form));
    const position = (name) => Math.max(0, models.indexOf(values[name]));
    return { ...values, ours: position("ours"), base: position("base") };
  }

  function matching({ show, direction, ours, base, words }) {
    const terms = words.trim().toLowerCase().split(/\s+/);
    const gain = ({ ranks }) => Math.log(ranks[base] / ranks[ours]);
    const matches = cards.filter(
      (card) =>
        (direction === "both" || card.direction === direction) &&
        shows[show](card.ranks[ours], card.ranks[base]) &&
        terms.every((word) => card.words.includes(word)),
    );
    if (show === "wins") matches.sort((one, other) => gain(other) - gain(one));
    if (show === "losses") matches.sort((one, other) => gain(one) - gain(other));
    return matches;
  }

  function summary(count, { direction, ours, base }) {
    const directions = direction === "both" ? Object.keys(sizes) : [direction];
    const sum = (values) => values.reduce((total, value) => total + value, 0).toLocaleString("en");
    const total = (name) => sum(directions.map((key) => outcomes[key][ours][base][name]));
    const numCards = cards.filter((card) => directions.includes(card.direction)).length;
    const shown = `${count.toLocaleString("en")} of the ${numCards} queries on this page.`;
    const all = `Over all ${sum(directions.map((key) => sizes[key]))} queries`;
    if (ours === base) return `${shown} ${all}, ${models[ours]} hits ${total("both_hit")} and misses ${total("both_miss")}.`;
    const score = `${models[ours]} wins ${total("wins")} and loses ${total("losses")} against ${models[base]}`;
    return `${shown} ${all}, ${score}; both hit ${total("both_hit")}, both miss ${total("both_miss")}.`;
  }

  function draw() {
    const state = selection();
    const matches = matching(state);
    for (const { node } of cards) node.hidden = true;
    matches.slice(0, numShown).forEach(({ node }) => {
      node.hidden = false;
      Array.from(node.querySelectorAll(".answer"), (part, position) =>
        part.classList.toggle("is-compared", models.length > 2 && (position === state.ours || position === state.base)),
      );
    });
    list.append(...matches.map(({ node }) => node));
    status.textContent = summary(matches.length, state);
    more.hidden = matches.length <= numShown;
    more.textContent = `Show ${Math.min(SHOWN_AT_FIRST, matches.length - numShown)} more of ${matches.length}`;
    for (const span of document.querySelectorAll(".ours")) span.textContent = models[state.ours];
  }

  // Links to sections use the address too.
  const isState = () => location.hash.includes("=");

  function readAddress() {
    const parameters = new URLSearchParams(location.hash.slice(1));
    for (const [name, value] of Object.entries({ ...defaults, ...Object.fromEntries(parameters) })) {
      const field = form.elements.namedItem(name);
      const known = field instanceof RadioNodeList ? Array.from(field, (option) => option.value) : field && field.options && models;
      // Unknown values, from another page or misspelled, are ignored.
      if (field) field.value = known && !known.includes(value) ? defaults[name] : value;
    }
  }

  function writeAddress() {
    const values = Object.entries(Object.fromEntries(new FormData(form)));
    const parameters = new URLSearchParams(values.filter(([name, value]) => value !== defaults[name]));
    history.replaceState(null, "", `#${parameters.size ? parameters : "queries"}`);
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
